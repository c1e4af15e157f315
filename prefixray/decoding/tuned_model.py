"""A base with artifacts on it: text in, text out, in a few lines of Python.

>>> base = open_base("gpt2-medium")
>>> prefix, lora = base.bind("my-prefix"), base.bind("my-lora")
>>> prefix.generate(["name : The Eagle | food : Chinese"])
>>> generate_together(["name : The Eagle", "name : The Mill"], [prefix, lora])
>>> prefix.generate(["name : The Eagle"], temperature=0.7, stream=lambda source, piece: print(piece, end=""))

Sources of different artifacts share the batches of one base, as trials do in training. In fp32 each source gets the
hypothesis that it gets alone; in bf16 a hypothesis can depend on its batch.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefixray.artifacts.hub import pull
from prefixray.artifacts.record import check_decoding, check_template, commit_of, trial_method
from prefixray.artifacts.store import load_artifact, load_as_decoded, restore_method
from prefixray.batching.template import Template
from prefixray.config.files.found import find_sweep
from prefixray.config.schema import DecodingSettings
from prefixray.decoding.as_cache import inputs_of_generate
from prefixray.decoding.generate import generate
from prefixray.decoding.sampling import SampledSettings
from prefixray.decoding.streaming import Pieces, Stream, Watched
from prefixray.errors import UserError
from prefixray.methods.catalog import facts_of
from prefixray.methods.contract import Method
from prefixray.model.base import Base, load_in
from prefixray.model.binding.binder import Binder
from prefixray.results.artifacts import base_of, best_artifact

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many sources are done, and of how many."""


_ALONE = threading.RLock()  # what is bound to a base is bound for every thread's forwards


def silent(num_done: int, num_sources: int) -> None:
    """The `Progress` that nobody watches."""


@dataclass(frozen=True)
class OpenBase:
    """A base in memory, for any number of artifacts."""

    base: Base

    def bind(self, artifact: Path | str, *, decoding: Mapping[str, Any] | None = None) -> "Tuned":
        """The artifact in this folder, on this base; `decoding` replaces single settings that the artifact records.

        A final run's artifact in the folder of a finished sweep decodes with the sweep's settings. An artifact that was
        trained in another precision is bound with a warning. Raises `UserError` where the artifact is damaged or was
        made for another base, and for unknown settings.
        """
        check_decoding(decoding or {})
        return self._bound(Path(artifact), *load_as_decoded(Path(artifact)), decoding or {})

    def _bound(
        self, artifact: Path, tensors: dict[str, Tensor], record: dict[str, Any], decoding: Mapping[str, Any]
    ) -> "Tuned":
        shape = self.base.shape
        check_template(
            str(artifact),
            record["template"],
            vocab_size=shape.vocab_size,
            is_encoder_decoder=shape.is_encoder_decoder,
        )
        trained, now = record["precision"], self.base.precision
        if trained != now:
            problem = f"was trained on a base in {trained}, and this one is in {now}: its texts may be others"
            logger.warning("%s: %s; open_base(.., precision=%r)", artifact, problem, trained)
        with _ALONE:
            method = restore_method(self.base, Binder.of(self.base.model).record, tensors, record)
        settings = DecodingSettings(**{**(record["decoding"] or {}), **decoding})
        template = Template.from_record(self.base, record["template"])
        return Tuned(self.base, method, template, settings, about=_about(record))


def open_base(name: str, *, precision: str = "fp32", device: str = "auto", trust_remote_code: bool = False) -> OpenBase:
    """Load the base called `name`: a hub id, a folder, a GGUF file, or `package:file`, as in a sweep file.

    `precision` is "fp32", "bf16", "4bit" or "auto" (bf16 where the device is fast with it); `device` is "cpu",
    "cuda", or "auto" (a GPU where torch finds one). Python files beside the weights run only with `trust_remote_code`.
    Raises `UserError` where the name names nothing, where prefixray cannot train the model, and where the device or the
    hub is not there.
    """
    return OpenBase(load_in(name, precision, device, trust_remote_code=trust_remote_code))


def open_base_of(record: Mapping[str, Any], name: str, *, device: str, trust_remote_code: bool) -> OpenBase:
    """The base of an artifact, called `name` here: in the precision of its training, from the hub at its commit."""
    precision, commit = record["precision"], commit_of(record["base"], name)
    return OpenBase(load_in(name, precision, device, trust_remote_code=trust_remote_code, commit=commit))


class Tuned:
    """An artifact on its base."""

    def __init__(
        self, base: Base, method: Method, template: Template, decoding: DecodingSettings, *, about: str = ""
    ) -> None:
        self.base, self.method, self.template, self.decoding = base, method, template, decoding
        self.insert = method.insert(None)
        self.about = about or f"{type(method).__name__} on {base.name}"

    def __repr__(self) -> str:
        place = f"{self.base.precision} on {self.base.device.type}"
        return f"<Tuned: {self.about}; {place}; {self.decoding.num_beams} beams>"

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
        base: str | None = None,
        device: str = "auto",
        decoding: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> "Tuned":
        """Load an artifact, and the base that it names in the precision of its training, from the hub at its commit.

        `base` says where the base lies now; `decoding` replaces single settings that the artifact records. Raises
        `UserError` as `open_base` does, and where the artifact is damaged or its base has changed.
        """
        tensors, record = load_as_decoded(Path(artifact))
        check_decoding(decoding or {})
        name = base or record["base"]["name"]
        opened = open_base_of(record, name, device=device, trust_remote_code=trust_remote_code)
        return opened._bound(Path(artifact), tensors, record, decoding or {})

    @classmethod
    def best(
        cls,
        sweep: Path | str,
        arm: str | None = None,
        *,
        document: str | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> "Tuned":
        """The winner of a sweep's prefix arm, or of the arm called `arm`: its final run with the first seed.

        Where no prefix arm has a run, it is the best of all arms. It decodes with the sweep's settings. `sweep` is a
        sweep's folder or file; of a sweep over several documents `document` names one. Raises `UserError` as `load`
        does, and where the sweep has no such run.
        """
        found = best_artifact(find_sweep(sweep), arm, document)
        base = base_of(found.sweep, load_artifact(found.artifact)[1])
        code = trust_remote_code
        return cls.load(found.artifact, base=base, device=device, decoding=found.decoding, trust_remote_code=code)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        *,
        revision: str | None = None,
        base: str | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> "Tuned":
        """Load an artifact that `export --push` has put on the hub as the model `repo`, USER/NAME.

        `revision` is a branch, a tag or a commit. `base` is needed where the artifact was trained on a folder or file
        of its owner's: the same weights here. Raises `UserError` as `load` does, and where the hub does not give it.
        """
        return cls.load(pull(repo, revision), base=base, device=device, trust_remote_code=trust_remote_code)

    def generate(
        self,
        sources: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        stream: Stream | None = None,
        on_progress: Progress = silent,
    ) -> list[str]:
        """The best hypothesis for each source, in order; sources are texts in the form of the task's own.

        `max_new_tokens` replaces the artifact's own setting. With a `temperature` above 0 tokens are drawn, by torch's
        generator of random numbers; without one, the likeliest text is searched for. `stream` is called with a source's
        index and the next piece of its hypothesis: with several beams, what all of them agree on (of an
        encoder-decoder, the whole of it at the end). `on_progress` is called with how many sources are done, and of how
        many. If several threads generate, they do so one after another. Raises `UserError` where a source leaves no
        room for its hypothesis, for one text in place of a list, and for settings out of their range.
        """
        asked = copy(self)
        asked.decoding = _changed(self.decoding, max_new_tokens, temperature)
        return generate_together(sources, [asked] * len(sources), on_progress=on_progress, stream=stream)

    def as_cache(self, sources: Sequence[str], *, num_beams: int = 1) -> dict[str, Any]:
        """The arguments with which stock transformers generates behind the prefix, its past key values among them.

        `model.generate(**tuned.as_cache(sources, num_beams=5), max_new_tokens=100)`; the model is the base as
        transformers loads it in the precision of training, or `tuned.model`. Other settings of the search are the
        model's own: its `generation_config` may draw tokens at random, so set it to `GenerationConfig()`. The output
        has the prompts, padded on the left, in front of the new tokens. A cache serves one call: `generate` fills it.
        Raises `UserError` where the artifact is no prefix in front of a decoder-only base's rows.
        """
        _check_list(sources)
        return inputs_of_generate(self.base, self.template, self.insert, sources, num_beams)


@contextmanager
def running(tuned: Tuned) -> Iterator[Base]:
    """The base with the model that runs in place of its own, and the precision in which it runs."""
    base, is_own = tuned.base, tuned.model is not tuned.base.model
    mixed = is_own and base.model.dtype == torch.bfloat16  # a fine-tuned model has fp32 weights, as in training
    with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=mixed):
        yield replace(base, model=tuned.model)


def generate_together(
    sources: Sequence[str], tuned: Sequence[Tuned], *, on_progress: Progress = silent, stream: Stream | None = None
) -> list[str]:
    """The best hypothesis for `sources[i]` by the artifact `tuned[i]`, in order.

    Artifacts on one base with the same template and decoding settings share batches; a fine-tuned model runs by itself.
    `on_progress` and `stream` are as in `Tuned.generate`, which says what `UserError` is raised for; another is raised
    where the two lists differ in length.
    """
    _check_list(sources)
    sources = list(sources)  # a Series would be read by its labels
    if len(sources) != len(tuned):
        raise UserError(f"sources: {len(sources)} of them, artifacts: {len(tuned)}; give one artifact per source")
    hypotheses = [""] * len(sources)
    pieces = None if stream is None else Pieces(stream)
    num_done = 0

    def count(num_more: int) -> None:
        nonlocal num_done
        num_done += num_more
        on_progress(num_done, len(sources))

    count(0)
    for indices in _sharing(tuned):
        watched = Watched(count, None if pieces is None else pieces.of(indices))
        with _ALONE:
            texts = _generate_alike([sources[index] for index in indices], [tuned[index] for index in indices], watched)
        for index, text in zip(indices, texts, strict=True):
            hypotheses[index] = text
    return hypotheses


def _check_list(sources: Sequence[str]) -> None:
    if isinstance(sources, str):
        raise UserError("sources: must be a list of texts, not one text: generate([text])")


def _changed(settings: DecodingSettings, max_new_tokens: int | None, temperature: float | None) -> DecodingSettings:
    """The settings with these values in place of their own. Raises `UserError` for values out of their range."""
    if max_new_tokens is not None:
        check_decoding({"max_new_tokens": max_new_tokens})
        settings = settings.model_copy(update={"max_new_tokens": max_new_tokens})
    if temperature is None:
        return settings
    if not 0.0 < temperature < math.inf:
        raise UserError(f"temperature: {temperature}: must be above 0; without it the likeliest text is searched for")
    return SampledSettings(**{**settings.model_dump(), "num_beams": 1, "temperature": temperature})


def _about(record: Mapping[str, Any]) -> str:
    """What the artifact is, in a line: its kind and sizes, its base, its task, its dev loss."""
    method, scores = trial_method(record), record["scores"]
    sizes = {key: value for key, value in method.model_dump(exclude={"method"}).items() if type(value) is int and value}
    values = ", ".join(f"{key} {value}" for key, value in sizes.items())
    loss = f", dev loss {scores['dev/loss']:.3f}" if "dev/loss" in scores else ""
    kind = f"{facts_of(method).artifact(method)[0]}{f' ({values})' if values else ''}"
    return f"{kind} on {record['base']['name']}, tuned on {record['task']['name']}{loss}"


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


def _generate_alike(sources: Sequence[str], tuned: Sequence[Tuned], watched: Watched) -> list[str]:
    """The hypotheses of artifacts that share batches."""
    first = tuned[0]
    with running(first) as base:
        inserts = [artifact.insert for artifact in tuned]
        return generate(base, first.template, sources, inserts, first.decoding, watched=watched)
