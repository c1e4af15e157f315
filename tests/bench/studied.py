"""Pages of the documentation and exchanges about them: what the parts of `documents.py` train on.

With `--exchanges` the questions and answers are those of prefixray's own self-study, made once for a page, a base and
their number, and kept there. Without, the page's own sentences stand for answers: as long, and no minutes of writing,
but a teacher that reads along is surer of them than of what it has written itself.

What the teacher, the base with the whole page in its context, expects at an answer is computed anew for each part, in
the precision in which the part trains.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import Template, make_template
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.documents import Document, read_documents
from prefixray.data.documents.exchanges import read_exchanges
from prefixray.data.documents.made import is_made, made_from
from prefixray.data.entries import NumQuestions
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.in_context import read_context
from prefixray.model.base import Base, load_in
from prefixray.self_study.questions import passages_of
from prefixray.self_study.study import study
from prefixray.self_study.teacher import TOP_K, predict

SEED = 1
SPLITS = ("train", "dev")
Examples = Sequence[Example]
FORM = {"template": "chat", "chunk_tokens": 256, "max_source_tokens": 64, "max_target_tokens": 48}


@dataclass(frozen=True)
class Page:
    """A page, and the questions and answers about it."""

    document: Document
    template: Template
    ids: Sequence[int]  # of the page alone
    examples: dict[str, Examples]  # by split

    def rows(self, base: Base, split: str, num_kept: int = TOP_K) -> list[Row]:
        """The rows of a split. Their teacher is the base with the page in its context, cut to so many tokens."""
        examples, context = self.examples[split], read_context(base, self.template, self.ids)
        teachers = predict(base, context, examples, num_kept=num_kept)
        taught = [replace(example, teacher=teacher) for example, teacher in zip(examples, teachers, strict=True)]
        return encode(taught, self.template)


def studied(base: Base, file: Path, options: argparse.Namespace) -> Page:
    """A page with `--train` and `--dev` exchanges about it."""
    (document,) = read_documents(str(file))
    counts = NumQuestions(train=options.train, dev=options.dev, test=1)
    task = TaskConfig(name="document", path=str(file), num_questions=counts, **options.task)
    if options.exchanges is None:
        examples = _sentences(document.text, counts)
    else:
        examples = _exchanges(base, document, task, options)
    return Page(document, make_template(base, task), base.text_ids(document.text), examples)


def _exchanges(base: Base, document: Document, task: TaskConfig, options: argparse.Namespace) -> dict[str, Examples]:
    """What self-study has made or makes now."""
    made = made_from(document, task, base=options.base, precision=base.precision, seed=SEED)
    folder = options.exchanges / f"{document.name}-{base.precision}-{options.train}-{options.dev}"
    if not is_made(folder, made):
        study(base, task, document, folder, made=made, seed=SEED)
    exchanges = read_exchanges(folder)
    return {
        split: [Example(each.question, each.answer) for each in exchanges if each.split == split] for split in SPLITS
    }


def _sentences(text: str, counts: NumQuestions) -> dict[str, Examples]:
    """The page's sentences as answers; from the first one again where they do not suffice."""
    sentences = itertools.cycle(passages_of(text))
    return {
        split: [Example(f"What does the page say, in place {index}?", next(sentences)) for index in range(count)]
        for split, count in (("train", counts.train), ("dev", counts.dev))
    }


def load(options: argparse.Namespace, precision: str) -> Base:
    """A base of its own."""
    return load_in(options.base, precision, "cpu")


def config(options: argparse.Namespace, **recipe: object) -> TrialConfig:
    """One configuration: a prefix that starts as its page's first tokens, the first of which stays as it is."""
    method = PrefixTrial(
        preseqlen=options.preseqlen, mid_dim=None, init_token=None, init_from="document", frozen_positions=1
    )
    values = {"batch_size": options.batch_size, "num_steps": options.steps, "learning_rate": options.rate, **recipe}
    return TrialConfig(arm="documents", method=method, objective="distill", **values)  # type: ignore[arg-type]
