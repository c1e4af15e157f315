"""Decode a split, and score or write its hypotheses.

The final stage does so with each final run, the command `decode` again with a run's artifact. Both decode one artifact
at a time, so that the recorded settings and threads give the same batches and the same hypotheses.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefixray.artifacts.store import load_artifact, restore_method
from prefixray.batching.template import Template
from prefixray.config.schema import DecodingSettings
from prefixray.data import Sourced, load_task
from prefixray.data.catalog import CATALOG
from prefixray.decoding.likelihoods import read_references
from prefixray.decoding.tuned_model import Progress, Tuned, silent
from prefixray.decoding.untrained import load_untrained, made_from
from prefixray.errors import UserError
from prefixray.metrics import Scored, is_of_likelihoods
from prefixray.model.binding.binder import Binder
from prefixray.results.artifacts import Found, base_and_task
from prefixray.results.hypotheses import Split, read_split_record, score_all, split_sources, write_hypotheses
from prefixray.results.likelihoods import likelihoods_made_from, write_likelihoods
from prefixray.results.record import IN_CONTEXT, UNTRAINED
from prefixray.system.atomic_files import write_whole
from prefixray.training.trainer import Trainer


@dataclass(frozen=True)
class Decoded:
    """A decoded split: a hypothesis per source, the metrics over all of them, and in what they were computed."""

    sources: tuple[Sourced, ...]
    hypotheses: list[str]
    scores: dict[str, Scored]
    unscored: dict[str, str]  # metrics that cannot be computed here, and why
    precision: str
    device: str


def decode_artifact(
    found: Found,
    split: Split,
    *,
    num_threads: int,
    device: str = "auto",
    decoding: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    on_progress: Progress = silent,
) -> Decoded:
    """Decode and score a split of the task that an artifact names; on a CPU, with so many threads.

    `decoding` replaces single settings of the sweep. The sweep's metrics are scored, but for those of likelihoods; for
    an artifact without a sweep, those of the task. In the paper's evaluation texts are compared as the task's script
    does. Raises `UserError` as `Tuned.load` does, and where the task's data is not there.
    """
    _, meta = load_artifact(found.artifact)
    base, task_config = base_and_task(found, meta)
    task = load_task(task_config, meta.get("document"))
    sources = split_sources(task, split, meta.get("document"))
    if not sources:
        raise UserError(f"{found.artifact}: {split} has no question about {meta.get('document')}; take --split dev")
    settings = {**found.decoding, **(decoding or {})}
    with _threads(num_threads):
        code = trust_remote_code
        tuned = Tuned.load(found.artifact, base=base, device=device, decoding=settings, trust_remote_code=code)
        hypotheses = tuned.generate([sourced.source for sourced in sources], on_progress=on_progress)
    form = CATALOG[task.name].word_form if found.evaluation == "paper" else None
    metrics = [metric for metric in found.metrics or task.metrics if not is_of_likelihoods(metric)]
    scores, unscored = dict[str, Scored](), dict[str, str]()
    for metric in metrics:  # one may need Java, or a module that lies elsewhere
        try:
            scores |= score_all(hypotheses, sources, [metric], form)
        except UserError as error:
            unscored[metric] = str(error)
    return Decoded(sources, hypotheses, scores, unscored, tuned.base.precision, tuned.base.device.type)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode_for_sweep(
    trainer: Trainer,
    model: str,
    folder: Path,
    split: Split,
    settings: Mapping[str, Any],
    metrics: Sequence[str] = (),
    document: str | None = None,
    on_progress: Progress = silent,
) -> None:
    """Decode a split into `folder` with a model: the folder of an artifact, or the name of an untrained arm.

    Where a document is named, the model is about it, and decodes what the split has about it.

    `SPLIT.json` beside the three files says from what they were made and on what device with how many threads, and is
    written last. A split that was made from the same is not decoded again. Where one of the metrics is computed from
    likelihoods, the references are read too, into a file of their own.
    """
    decoding, sources = DecodingSettings(**settings), split_sources(trainer.task, split, document)
    is_untrained = model in UNTRAINED
    tensors, meta = ({}, made_from(model, trainer.task, document)) if is_untrained else load_artifact(Path(model))
    read_from: dict[str, Any] = {
        "artifact": meta,
        "base": trainer.base.digest,
        "sources": hashlib.sha256(repr(sources).encode()).hexdigest(),
    }
    decoded_from = {"decoding": decoding.model_dump(), **read_from}
    if model == IN_CONTEXT:  # how much of the document it sees depends on the room that an answer needs
        read_from["max_new_tokens"] = decoding.max_new_tokens
    is_decoded = _made_from(folder, split) == decoded_from
    is_read = not any(map(is_of_likelihoods, metrics)) or likelihoods_made_from(folder, split) == read_from
    if is_decoded and is_read:
        return
    if is_untrained:
        tuned, about = load_untrained(trainer, model, decoding, document)
    else:
        tuned, about = _restored(trainer, tensors, meta, decoding), {}
    if not is_read:
        write_likelihoods(folder, split, read_references(tuned, sources), read_from)
    if not is_decoded:
        _decode(tuned, folder, split, sources, {"made_from": decoded_from, **about}, on_progress)


def _restored(
    trainer: Trainer, tensors: dict[str, Tensor], meta: Mapping[str, Any], decoding: DecodingSettings
) -> Tuned:
    base = trainer.base
    method = restore_method(base, Binder.of(base.model).record, tensors, meta)
    return Tuned(base, method, Template.from_record(base, meta["template"]), decoding)


def _decode(
    tuned: Tuned,
    folder: Path,
    split: Split,
    sources: Sequence[Sourced],
    about: Mapping[str, Any],
    on_progress: Progress,
) -> None:
    """Decode, and write the files; `about` goes into the record, with what one row's keys and values in front take."""
    record = folder / f"{split}.json"
    record.unlink(missing_ok=True)
    started = time.monotonic()
    hypotheses = tuned.generate([sourced.source for sourced in sources], on_progress=on_progress)
    write_hypotheses(folder, split, hypotheses, sources)
    made_on = {"device": tuned.base.device.type, "num_threads": torch.get_num_threads()}
    count = sum(prefix.numel() for prefix in tuned.insert.prefixes.values())
    kv = {"numbers": count, "bytes": count * tuned.base.model.dtype.itemsize}
    seconds = time.monotonic() - started
    write_whole(record, json.dumps({**about, **made_on, "kv": kv, "seconds": seconds}, indent=1) + "\n")


def _made_from(folder: Path, split: Split) -> dict[str, Any]:
    """What a split was made from, by its `SPLIT.json`; empty where the file is missing or damaged.

    Settings that it lacks are those of an earlier version, which decoded by today's defaults.
    """
    try:
        made_from: dict[str, Any] = read_split_record(folder, split)["made_from"]
        return {**made_from, "decoding": {**DecodingSettings().model_dump(), **made_from["decoding"]}}
    except (KeyError, TypeError):
        return {}
