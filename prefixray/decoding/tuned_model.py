"""A base with artifacts bound to it: text in, text out, in a few lines of Python.

>>> base = open_base("gpt2-medium")
>>> prefix, lora = base.bind("my-prefix"), base.bind("my-lora")
>>> prefix.generate(["name : The Eagle | food : Chinese"])
>>> generate_together(["name : The Eagle", "name : The Mill"], [prefix, lora])

Rows of different artifacts share the batches of one base, as trials do in training; each gets the hypothesis that it
gets alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prefixray.artifacts.record import check_decoding, check_template
from prefixray.artifacts.store import load_artifact, restore_method
from prefixray.batching.template import Template
from prefixray.config.load import find_sweep
from prefixray.config.schema import DecodingSettings
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.model.base import Base, load_in
from prefixray.model.binding.binder import Binder
from prefixray.results.hypotheses import best_artifact


@dataclass(frozen=True)
class OpenBase:
    """A base in memory that artifacts are bound to, any number of them."""

    base: Base
    binder: Binder

    def bind(self, artifact: Path | str, *, decoding: Mapping[str, Any] | None = None) -> "Tuned":
        """An artifact on this base; `decoding` replaces single settings of those it records.

        Raises `UserError` where the artifact is damaged, or was made for another base.
        """
        check_decoding(decoding or {})
        tensors, record = load_artifact(Path(artifact))
        shape = self.base.shape
        check_template(
            str(artifact),
            record["template"],
            vocab_size=shape.vocab_size,
            is_encoder_decoder=shape.is_encoder_decoder,
        )
        method = restore_method(self.base, self.binder.record, tensors, record)
        settings = DecodingSettings(**{**(record["decoding"] or {}), **(decoding or {})})
        template = Template.from_record(self.base.tokenizer, record["template"])
        own = method.own_model
        return Tuned(self.base, method, template, settings, self.binder if own is None else Binder.of(own))


def open_base(name: str, *, precision: str = "fp32", device: str = "cpu", trust_remote_code: bool = False) -> OpenBase:
    """Load the base called `name`, as a sweep file names it, in fp32, bf16, 4bit or auto.

    Raises `UserError` as `load_base` does.
    """
    base = load_in(name, precision, device, trust_remote_code=trust_remote_code)
    return OpenBase(base, Binder.of(base.model))


class Tuned:
    """An artifact bound to its base."""

    def __init__(
        self, base: Base, method: Method, template: Template, decoding: DecodingSettings, binder: Binder
    ) -> None:
        self.base, self.method, self.template, self.decoding = base, method, template, decoding
        self.binder = binder
        self._insert = method.insert(None)

    @classmethod
    def load(
        cls,
        artifact: Path | str,
        *,
        device: str = "cpu",
        decoding: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> "Tuned":
        """Load an artifact with the base that it names, in the precision it was trained in.

        Raises `UserError` where the artifact is damaged, or its base is not what it was.
        """
        _, record = load_artifact(Path(artifact))
        code = trust_remote_code
        base = open_base(record["base"]["name"], precision=record["precision"], device=device, trust_remote_code=code)
        return base.bind(artifact, decoding=decoding)

    @classmethod
    def best(cls, sweep: Path | str, arm: str | None = None, *, device: str = "cpu") -> "Tuned":
        """The best prefix of a finished sweep, or its best run of another arm, with the sweep's decoding settings."""
        artifact, decoding = best_artifact(find_sweep(sweep), arm)
        return cls.load(artifact, device=device, decoding=decoding)

    def generate(self, sources: Sequence[str]) -> list[str]:
        """A hypothesis per source; sources are linearised as the task's are.

        Raises `UserError` for a single text, which would be a source a letter.
        """
        return generate_together(sources, [self] * len(sources))


def generate_together(sources: Sequence[str], tuned: Sequence[Tuned]) -> list[str]:
    """A hypothesis per source, under the artifact at the same place in `tuned`.

    Those that run on one base with one template and one decoding share batches; fine-tuning runs on a model of its
    own, and so by itself.
    """
    if isinstance(sources, str):
        raise UserError("sources: must be a list of texts, not one text: generate([text])")
    if len(sources) != len(tuned):
        raise UserError(f"sources: {len(sources)} of them, artifacts: {len(tuned)}; give one artifact per source")
    hypotheses = [""] * len(sources)
    for places in _sharing(tuned):
        texts = _generate_alike([sources[place] for place in places], [tuned[place] for place in places])
        for place, text in zip(places, texts, strict=True):
            hypotheses[place] = text
    return hypotheses


def _sharing(tuned: Sequence[Tuned]) -> list[list[int]]:
    """Places of artifacts that can stand in one batch."""
    groups: list[list[int]] = []
    for place, one in enumerate(tuned):
        for group in groups:
            first = tuned[group[0]]
            if one.binder is first.binder and (one.template, one.decoding) == (first.template, first.decoding):
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def _generate_alike(sources: Sequence[str], tuned: Sequence[Tuned]) -> list[str]:
    first = tuned[0]
    own = first.method.own_model
    running = first.base if own is None else replace(first.base, model=own)
    mixed = own is not None and first.base.model.dtype == torch.bfloat16  # fp32 weights, as in training
    with torch.autocast(first.base.device.type, dtype=torch.bfloat16, enabled=mixed):
        inserts = [one._insert for one in tuned]
        return generate(running, first.binder, first.template, sources, inserts, first.decoding)
