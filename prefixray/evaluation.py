"""Decode, score, and write hypotheses: what the final stage does with a trial, and `decode` again with its artifact.

Both go through `Tuned.generate`, one artifact at a time, so that the recorded settings give the same batches and the
same hypotheses.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prefixray.attention import Binder
from prefixray.base import Base, load_in
from prefixray.batching import Template
from prefixray.checkpoint import load_artifact, restore_method
from prefixray.config import TaskConfig
from prefixray.generation import Decoding, generate
from prefixray.hypotheses import Split, best_artifact, score_all, split_sources, write_hypotheses
from prefixray.methods import Method, Untuned
from prefixray.metrics import Scored
from prefixray.sweepfile import find_sweep
from prefixray.tasks import Sourced, load_task
from prefixray.trainer import Trainer


@dataclass(frozen=True)
class Decoded:
    """A decoded split: a hypothesis per source, and the scores of all."""

    sources: tuple[Sourced, ...]
    hypotheses: list[str]
    scores: dict[str, Scored]


class Tuned:
    """A base with an artifact bound to it: text in, text out."""

    def __init__(self, base: Base, method: Method, template: Template, decoding: Decoding, binder: Binder) -> None:
        self.base, self.method, self.template, self.decoding = base, method, template, decoding
        self._binder = binder

    @classmethod
    def load(cls, artifact: Path | str, *, device: str = "cpu", decoding: Mapping[str, Any] | None = None) -> "Tuned":
        """Load an artifact on the base that it names; `decoding` replaces single settings of those it records.

        Raises `UserError` where the artifact is damaged, or its base is not what it was.
        """
        tensors, meta = load_artifact(Path(artifact))
        base = load_in(meta["base"]["name"], meta["precision"], device)
        binder = Binder(base.model)
        method = restore_method(base, binder.record, tensors, meta)
        settings = Decoding(**{**(meta["decoding"] or {}), **(decoding or {})})
        template = Template.from_record(base.tokenizer, meta["template"])
        return cls(base, method, template, settings, binder if method.own_model is None else Binder(method.own_model))

    @classmethod
    def best(cls, sweep: Path | str, arm: str | None = None, *, device: str = "cpu") -> "Tuned":
        """The best prefix of a finished sweep, or its best run of another arm, with the sweep's decoding settings."""
        artifact, decoding = best_artifact(find_sweep(sweep), arm)
        return cls.load(artifact, device=device, decoding=decoding)

    def generate(self, sources: Sequence[str]) -> list[str]:
        """A hypothesis per source; sources are linearised as the task's are."""
        texts = list(sources)
        own = self.method.own_model
        running = self.base if own is None else replace(self.base, model=own)
        insert = self.method.insert(None)
        mixed = own is not None and self.base.model.dtype == torch.bfloat16  # fp32 weights, as in training
        with torch.autocast(self.base.device.type, dtype=torch.bfloat16, enabled=mixed):
            return generate(running, self._binder, self.template, texts, [insert] * len(texts), self.decoding)


def decode_artifact(
    folder: Path, split: Split, *, device: str = "cpu", decoding: Mapping[str, Any] | None = None
) -> Decoded:
    """Decode and score a split of the task that an artifact names.

    Raises `UserError` as `Tuned.load` does, and where the task's data is not there.
    """
    _, meta = load_artifact(folder)
    task = load_task(TaskConfig.model_validate(meta["task"]))
    sources = split_sources(task, split)
    hypotheses = Tuned.load(folder, device=device, decoding=decoding).generate([one.source for one in sources])
    return Decoded(sources, hypotheses, score_all(hypotheses, sources, task.metrics))


def decode_for_sweep(
    trainer: Trainer, artifact: Path | None, folder: Path, split: Split, settings: Mapping[str, Any]
) -> None:
    """Decode a split into `folder` with an artifact, or with the untuned base, unless `folder` holds just that already.

    `SPLIT.json` beside the three files says what made them; it is written last.
    """
    decoding, sources = Decoding(**settings), split_sources(trainer.task, split)
    tensors, meta = ({}, {}) if artifact is None else load_artifact(artifact)
    made_from = {
        "decoding": asdict(decoding),
        "artifact": meta,
        "base": trainer.base.digest,
        "sources": hashlib.sha256(repr(sources).encode()).hexdigest(),
    }
    record = folder / f"{split}.json"
    if _read_record(record).get("made_from") == made_from:
        return
    record.unlink(missing_ok=True)
    base, binder = trainer.base, trainer.pack.binder
    method: Method = Untuned() if artifact is None else restore_method(base, binder.record, tensors, meta)
    started = time.monotonic()
    template = Template.from_record(base.tokenizer, meta["template"]) if meta else trainer.template
    tuned = Tuned(base, method, template, decoding, binder if method.own_model is None else Binder(method.own_model))
    hypotheses = tuned.generate([one.source for one in sources])
    write_hypotheses(folder, split, hypotheses, sources)
    seconds = time.monotonic() - started
    scratch = record.with_suffix(".json.tmp")
    scratch.write_text(json.dumps({"made_from": made_from, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(record)


def _read_record(path: Path) -> dict[str, Any]:
    """What a decoding has written about itself; nothing where it cannot be read."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record
