"""A base with artifacts on it: text in, text out, in a few lines of Python.

>>> base = open_base("gpt2-medium")
>>> prefix, lora = base.bind("my-prefix"), base.bind("my-lora")
>>> prefix.generate(["name : The Eagle | food : Chinese"])
>>> generate_together(["name : The Eagle", "name : The Mill"], [prefix, lora])

Sources of different artifacts share the batches of one base, as trials do in training. In fp32 each source gets the
hypothesis that it gets alone; in bf16 a hypothesis can depend on its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prefixray.artifacts.record import check_decoding, check_template
from prefixray.artifacts.store import load_artifact, restore_method
from prefixray.batching.template import Template
from prefixray.config.files.found import find_sweep
from prefixray.config.schema import DecodingSettings
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.model.base import Base, load_in
from prefixray.model.binding.binder import Binder
from prefixray.results.hypotheses import best_artifact

Progress = Callable[[int, int], None]
"""Called with how many sources are done, and of how many."""


def silent(num_done: int, num_sources: int) -> None:
    """The `Progress` that nobody watches."""


@dataclass(frozen=True)
class OpenBase:
    """A base in memory, for any number of artifacts."""

    base: Base

    def bind(self, artifact: Path | str, *, decoding: Mapping[str, Any] | None = None) -> "Tuned":
        """The artifact in this folder, on this base; `decoding` replaces single settings that the artifact records.

        Raises `UserError` where the artifact is damaged or was made for another base, and for unknown settings.
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
        method = restore_method(self.base, Binder.of(self.base.model).record, tensors, record)
        settings = DecodingSettings(**{**(record["decoding"] or {}), **(decoding or {})})
        template = Template.from_record(self.base.tokenizer, record["template"])
        return Tuned(self.base, method, template, settings)


def open_base(name: str, *, precision: str = "fp32", device: str = "auto", trust_remote_code: bool = False) -> OpenBase:
    """Load the base called `name`: a hub id, a folder, a GGUF file, or `package:file`, as in a sweep file.

    `precision` is "fp32", "bf16", "4bit" or "auto" (bf16 where the device is fast with it); `device` is "cpu",
    "cuda", or "auto" (a GPU where torch finds one). Python files beside the weights run only with `trust_remote_code`.
    Raises `UserError` where the name names nothing, where prefixray cannot train the model, and where the device or the
    hub is not there.
    """
    return OpenBase(load_in(name, precision, device, trust_remote_code=trust_remote_code))


class Tuned:
    """An artifact on its base."""

    def __init__(self, base: Base, method: Method, template: Template, decoding: DecodingSettings) -> None:
        self.base, self.method, self.template, self.decoding = base, method, template, decoding
        self.insert = method.insert(None)

    @property
    def model(self) -> PreTrainedModel:
        """The model that runs: the base's, or the artifact's own after fine-tuning."""
        own_model = self.method.own_model
        return self.base.model if own_model is None else own_model

    @classmethod
    def load(
        cls,
        artifact: Path | str,
        *,
        device: str = "auto",
        decoding: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> "Tuned":
        """Load an artifact, and the base that it names in the precision of its training.

        `decoding` replaces single settings that the artifact records. Raises `UserError` as `open_base` does, and where
        the artifact is damaged or its base has changed.
        """
        _, record = load_artifact(Path(artifact))
        code = trust_remote_code
        base = open_base(record["base"]["name"], precision=record["precision"], device=device, trust_remote_code=code)
        return base.bind(artifact, decoding=decoding)

    @classmethod
    def best(cls, sweep: Path | str, arm: str | None = None, *, device: str = "auto") -> "Tuned":
        """The best final run of a sweep's prefix arm, or of the arm called `arm`, with the sweep's decoding settings.

        `sweep` is a sweep's folder or file. Raises `UserError` as `load` does, and where the sweep has no such run.
        """
        found = best_artifact(find_sweep(sweep), arm)
        return cls.load(found.artifact, device=device, decoding=found.decoding)

    def generate(self, sources: Sequence[str], *, on_progress: Progress = silent) -> list[str]:
        """The best hypothesis for each source, in order; sources are texts in the form of the task's own.

        `on_progress` is called with how many sources are done, and of how many. Raises `UserError` where a source
        leaves no room for its hypothesis, and for one text in place of a list.
        """
        return generate_together(sources, [self] * len(sources), on_progress=on_progress)


def generate_together(sources: Sequence[str], tuned: Sequence[Tuned], *, on_progress: Progress = silent) -> list[str]:
    """The best hypothesis for `sources[i]` by the artifact `tuned[i]`, in order.

    Artifacts on one base with the same template and decoding settings share batches; a fine-tuned model runs by itself.
    Raises `UserError` as `Tuned.generate` does, and where the two lists differ in length.
    """
    if isinstance(sources, str):
        raise UserError("sources: must be a list of texts, not one text: generate([text])")
    if len(sources) != len(tuned):
        raise UserError(f"sources: {len(sources)} of them, artifacts: {len(tuned)}; give one artifact per source")
    hypotheses = [""] * len(sources)
    num_done = 0

    def count(num_more: int) -> None:
        nonlocal num_done
        num_done += num_more
        on_progress(num_done, len(sources))

    count(0)
    for indices in _sharing(tuned):
        texts = _generate_alike([sources[index] for index in indices], [tuned[index] for index in indices], count)
        for index, text in zip(indices, texts, strict=True):
            hypotheses[index] = text
    return hypotheses


def _sharing(tuned: Sequence[Tuned]) -> list[list[int]]:
    """Indices of artifacts that can share batches."""
    groups: list[list[int]] = []
    for index, artifact in enumerate(tuned):
        for group in groups:
            first = tuned[group[0]]
            alike = (artifact.template, artifact.decoding) == (first.template, first.decoding)
            if alike and artifact.model is first.model:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _generate_alike(sources: Sequence[str], tuned: Sequence[Tuned], on_done: Callable[[int], None]) -> list[str]:
    """The hypotheses of artifacts that share batches."""
    first = tuned[0]
    base = replace(first.base, model=first.model)
    is_own = first.model is not first.base.model
    mixed = is_own and first.base.model.dtype == torch.bfloat16  # a fine-tuned model has fp32 weights, as in training
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=mixed):
        inserts = [artifact.insert for artifact in tuned]
        return generate(base, first.template, sources, inserts, first.decoding, on_done=on_done)
