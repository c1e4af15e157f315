"""Decode, score, and write hypotheses: what the final stage does with a trial, and `decode` again with its artifact.

Both go through `decode_method` and `decode_artifact`, one artifact at a time, so that the recorded settings give the
same batches and the same hypotheses.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prefixray.attention import Binder, Insert
from prefixray.base import Base, choose_dtype, load_base
from prefixray.batching import Template
from prefixray.checkpoint import load_artifact, restore_method
from prefixray.config import TaskConfig
from prefixray.generation import Decoding, generate
from prefixray.hypotheses import Split, score_all, split_sources, write_hypotheses
from prefixray.methods import Method
from prefixray.metrics import Scored
from prefixray.tasks import Sourced, load_task
from prefixray.trainer import Trainer


@dataclass(frozen=True)
class Decoded:
    """A decoded split: a hypothesis per source, and the scores of all."""

    sources: tuple[Sourced, ...]
    hypotheses: list[str]
    scores: dict[str, Scored]


def decode_method(
    base: Base, binder: Binder, template: Template, method: Method, sources: Sequence[Sourced], *, decoding: Decoding
) -> list[str]:
    """A hypothesis per source from a trained method.

    `binder` is that of the model that runs. A method's own model runs under autocast where the base is bf16.
    """
    texts = [sourced.source for sourced in sources]
    own = method.own_model
    running = base if own is None else replace(base, model=own)
    mixed = own is not None and base.model.dtype == torch.bfloat16
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=mixed):
        return generate(running, binder, template, texts, [method.insert(None)] * len(texts), decoding)


def decode_artifact(
    folder: Path, split: Split, *, device: str = "cpu", decoding: Mapping[str, Any] | None = None
) -> Decoded:
    """Decode and score a split with an artifact, on the base and the task that it names.

    `decoding` replaces single settings of those that the artifact records. Raises `UserError` where the artifact is
    damaged, or its base or its task are not what they were.
    """
    tensors, meta = load_artifact(folder)
    task = load_task(TaskConfig.model_validate(meta["task"]))
    base = load_base(meta["base"]["name"], dtype=choose_dtype(meta["precision"], device), device=device)
    binder = Binder(base.model)
    method = restore_method(base, binder.record, tensors, meta)
    if method.own_model is not None:
        binder = Binder(method.own_model)
    template = Template.from_record(base.tokenizer, meta["template"])
    settings = Decoding(**{**(meta["decoding"] or {}), **(decoding or {})})
    sources = split_sources(task, split)
    hypotheses = decode_method(base, binder, template, method, sources, decoding=settings)
    return Decoded(sources, hypotheses, score_all(hypotheses, sources, task.metrics))


def decode_for_sweep(
    trainer: Trainer, artifact: Path | None, folder: Path, split: Split, settings: Mapping[str, Any]
) -> None:
    """Decode a split into `folder` with an artifact, or with the untuned base, unless `folder` holds just that already.

    `SPLIT.json` beside the three files says what made them; it is written last.
    """
    decoding = Decoding(**settings)
    tensors, meta = ({}, {}) if artifact is None else load_artifact(artifact)
    made_from = {"decoding": asdict(decoding), "scores": meta.get("scores"), "config": meta.get("config")}
    record = folder / f"{split}.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["made_from"] == made_from:
        return
    base, binder = trainer.base, trainer.pack.binder
    sources = split_sources(trainer.task, split)
    started = time.monotonic()
    if artifact is None:
        texts, untuned = [sourced.source for sourced in sources], Insert()
        hypotheses = generate(base, binder, trainer.template, texts, [untuned] * len(texts), decoding)
    else:
        method = restore_method(base, binder.record, tensors, meta)
        own = binder if method.own_model is None else Binder(method.own_model)
        hypotheses = decode_method(base, own, trainer.template, method, sources, decoding=decoding)
    write_hypotheses(folder, split, hypotheses, sources)
    seconds = time.monotonic() - started
    record.write_text(json.dumps({"made_from": made_from, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
