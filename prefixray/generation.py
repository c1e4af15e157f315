"""Decoding: transformers' `generate` with what trials put into the base bound to the rows.

Sources are decoded in batches of like length, padded on the left. Rows of different trials may share a batch. In low
precision a hypothesis may depend on the rows beside it, so what shall come out the same again is decoded by itself.
"""

# B rows, S tokens of the longest prompt, N new tokens

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prefixray.attention import Binder, Insert
from prefixray.base import Base
from prefixray.batching import Template
from prefixray.config import FinalConfig, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """The settings of the beam search: the same for every arm, and recorded with the results."""

    num_beams: int = 5
    min_new_tokens: int = 0
    max_new_tokens: int = 100
    length_penalty: float = 1.0
    batch_size: int = 16  # sources at once

    @classmethod
    def of(cls, config: FinalConfig) -> "Decoding":
        """The settings in a sweep file."""
        return cls(config.num_beams, config.min_new_tokens, config.max_new_tokens, config.length_penalty)


@dataclass(frozen=True)
class _Job:
    """One distinct pair of an insert and a source."""

    insert: Insert
    prompt: tuple[int, ...]
    places: list[int]  # where its hypothesis goes


def generate(
    base: Base,
    binder: Binder,
    template: Template,
    sources: Sequence[str],
    inserts: Sequence[Insert],
    decoding: Decoding,
) -> list[str]:
    """The best hypothesis for each source, under the insert at the same place in `inserts`.

    `binder` is that of `base.model`, which may be a trial's own copy (`replace(base, model=own)`). Each distinct pair
    is decoded once. Raises `UserError` where a source leaves no room for its hypothesis.
    """
    jobs = _distinct(template, sources, inserts)
    _check_room(base, jobs, decoding)
    jobs.sort(key=lambda job: -len(job.prompt))  # stable: equal lengths stay in their order
    hypotheses = [""] * len(sources)
    with _as_given(base.model):
        for start in range(0, len(jobs), decoding.batch_size):
            batch = _together(jobs[start : start + decoding.batch_size])
            for job, text in zip(batch, _decode(base, binder, template, batch, decoding), strict=True):
                for place in job.places:
                    hypotheses[place] = text
    return hypotheses


def _distinct(template: Template, sources: Sequence[str], inserts: Sequence[Insert]) -> list[_Job]:
    jobs: dict[tuple[int, str], _Job] = {}
    for place, (source, insert) in enumerate(zip(sources, inserts, strict=True)):
        job = jobs.get((id(insert), source))
        if job is None:
            job = jobs[id(insert), source] = _Job(insert, tuple(template.encode_source(source)), [])
        job.places.append(place)
    return list(jobs.values())


def _check_room(base: Base, jobs: Sequence[_Job], decoding: Decoding) -> None:
    limit = base.shape.max_positions
    longest = max((job.insert.num_positions + len(job.prompt) for job in jobs), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise UserError(
            f"max_new_tokens: {decoding.max_new_tokens}: prefix and longest source take {longest} of the {limit} "
            f"positions of {base.name}; lower max_new_tokens or task.max_source_tokens"
        )


def _together(jobs: Sequence[_Job]) -> list[_Job]:
    """The same jobs with those of one insert side by side."""
    order = {id(job.insert): None for job in jobs}
    return [job for insert in order for job in jobs if id(job.insert) == insert]


def _decode(base: Base, binder: Binder, template: Template, jobs: Sequence[_Job], decoding: Decoding) -> list[str]:
    """One batch: the hypotheses of its jobs."""
    ids, mask = _left_pad([job.prompt for job in jobs], template.pad_id, base.device)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=decoding.num_beams,
        do_sample=False,
        early_stopping=False,
        min_new_tokens=decoding.min_new_tokens or None,
        max_new_tokens=decoding.max_new_tokens,
        length_penalty=decoding.length_penalty,
        eos_token_id=template.eos_id,
        pad_token_id=template.pad_id,
    )
    model: Any = base.model
    distinct = {id(job.insert): job.insert for job in jobs}
    slots = {key: slot for slot, key in enumerate(distinct)}
    with binder.bind(list(distinct.values()), [slots[id(job.insert)] for job in jobs]):
        output = model.generate(ids, attention_mask=mask, generation_config=settings)
    return [_text(base, template, row) for row in output[:, ids.shape[1] :].tolist()]


def _left_pad(prompts: Sequence[tuple[int, ...]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, S); the mask is 1 on real tokens."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _text(base: Base, template: Template, new_ids: list[int]) -> str:
    """New tokens as text: up to the end token and the first line break, without special tokens."""
    if template.eos_id in new_ids:
        new_ids = new_ids[: new_ids.index(template.eos_id)]
    text: Any = base.tokenizer.decode(new_ids, skip_special_tokens=True)
    stripped = str(text).strip()
    return stripped.splitlines()[0].strip() if stripped else ""


@contextmanager
def _as_given(model: PreTrainedModel) -> Iterator[None]:
    """In eval mode, and without the decoding habits that a base may bring in its generation_config."""
    was_training, own = model.training, model.generation_config
    model.train(False)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own
        model.train(was_training)
