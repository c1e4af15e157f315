"""The arms that nobody trains: the base as it is, and with the task's document in front of each source.

The second is the ceiling of a sweep over a document, and shows what its keys and values take. A document that does not
fit is cut at its end. Its keys and values are computed by the worker that decodes, once, and kept nowhere.
"""

import hashlib
from typing import Any

from prefixray.config.schema import DecodingSettings
from prefixray.data import Task
from prefixray.decoding.in_context import fitting, most_rows, read_context
from prefixray.decoding.tuned_model import Tuned
from prefixray.methods.contract import Untuned
from prefixray.results.record import IN_CONTEXT, UNTRAINED
from prefixray.training.trainer import Trainer


def made_from(arm: str, task: Task, document: str | None = None) -> dict[str, Any]:
    """What an untrained arm is made from besides its base, as plain values; of several documents one is named."""
    assert arm in UNTRAINED, f"{arm} is no untrained arm"
    return {} if arm != IN_CONTEXT else {"text": hashlib.sha256(_text(task, document).encode()).hexdigest()}


def load_untrained(
    trainer: Trainer, arm: str, decoding: DecodingSettings, document: str | None = None
) -> tuple[Tuned, dict[str, Any]]:
    """An untrained arm on the trainer's base, to decode with these settings, and what a record says of it.

    Of several documents the one that it sees is named.
    The record of an arm that sees a text says how many tokens that has, and how many of them are seen.
    """
    base, template, task = trainer.base, trainer.template, trainer.task
    if arm != IN_CONTEXT:
        return Tuned(base, Untuned(), template, decoding), {}
    ids = base.text_ids(_text(task, document))
    sources = [sourced.source for sourced in (*task.dev_sources, *task.test_sources)]
    longest = max(map(len, template.encode_sources(sources))) - len(template.before)
    seen = fitting(base, template, ids, longest + max(decoding.max_new_tokens, template.max_target_tokens + 1))
    context = read_context(base, template, seen)
    batch_size = min(decoding.batch_size, most_rows(context.insert))
    settings = decoding.model_copy(update={"batch_size": batch_size})
    about = {"text": {"num_tokens": len(ids), "num_seen": len(seen)}}
    return Tuned(base, Untuned(context.insert), context.template, settings), about


def _text(task: Task, document: str | None) -> str:
    assert task.documents, "the task has a document"
    return next(each.text for each in task.documents if document in (None, each.name))
