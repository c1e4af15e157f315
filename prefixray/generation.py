"""Decoding: transformers' `generate` with what trials put into the base bound to the rows.

Sources are decoded in batches of like length. To `generate`, the prompt of a decoder-only model is its last token; the
tokens before it run once per source, not once per beam, and are bound as a longer prefix, which all beams share. Rows
of different trials may share a batch. In low precision a hypothesis may depend on the rows beside it, so what shall
come out the same again is decoded by itself.
"""

# B rows, S tokens of the longest prompt

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel

from prefixray.attention import Binder, Insert
from prefixray.base import Base
from prefixray.batching import Template, make_room, pad
from prefixray.config import UserError
from prefixray.prompts import Prompt, extended

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """The settings of the beam search: the same for every arm, and recorded with the results."""

    num_beams: int = 5
    min_new_tokens: int = 0
    max_new_tokens: int = 100
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool = False
    batch_size: int = 32  # sources at once, at most


@dataclass(frozen=True)
class _Job:
    """One distinct pair of an insert and a source."""

    insert: Insert
    prompt: tuple[int, ...]  # with room for an infix
    infix_start: int
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
    _check_room(base, template, jobs, decoding)
    jobs.sort(key=lambda job: -len(job.prompt))  # stable: equal lengths stay in their order
    hypotheses = [""] * len(sources)
    with _as_given(base.model):
        for some in _even_batches(jobs, decoding.batch_size):
            batch = _together(some)
            for job, text in zip(batch, _decode(base, binder, template, batch, decoding), strict=True):
                for place in job.places:
                    hypotheses[place] = text
    return hypotheses


def _distinct(template: Template, sources: Sequence[str], inserts: Sequence[Insert]) -> list[_Job]:
    jobs: dict[tuple[int, str], _Job] = {}
    for place, (source, insert) in enumerate(zip(sources, inserts, strict=True)):
        job = jobs.get((id(insert), source))
        if job is None:
            ids = template.encode_source(source)
            start = len(ids) - template.num_after
            prompt = make_room(ids, start, insert.infix_length, template.pad_id)
            job = jobs[id(insert), source] = _Job(insert, prompt, start, [])
        job.places.append(place)
    return list(jobs.values())


def _check_room(base: Base, template: Template, jobs: Sequence[_Job], decoding: Decoding) -> None:
    limit = base.shape.max_positions
    if base.shape.is_encoder_decoder:
        _check_target_room(base, template, decoding)
        return
    longest = max((job.insert.num_positions() + len(job.prompt) for job in jobs), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise UserError(
            f"max_new_tokens: {decoding.max_new_tokens}: prefix and longest source take {longest} of the {limit} "
            f"positions of {base.name}; lower max_new_tokens or task.max_source_tokens"
        )


def _check_target_room(base: Base, template: Template, decoding: Decoding) -> None:
    limit, given = base.shape.max_positions, len(template.target_before)
    if limit is not None and given + decoding.max_new_tokens > limit:
        raise UserError(
            f"max_new_tokens: {decoding.max_new_tokens}: the decoder of {base.name} has {limit} positions, of which "
            f"{given} are given; lower max_new_tokens"
        )


def _even_batches(jobs: Sequence[_Job], batch_size: int) -> list[Sequence[_Job]]:
    """As few batches as it takes, of like size: 40 jobs at 32 are two batches of 20."""
    num_batches = math.ceil(len(jobs) / batch_size)
    cuts = [len(jobs) * i // num_batches for i in range(num_batches + 1)] if jobs else []
    return [jobs[start:end] for start, end in pairwise(cuts)]


def _together(jobs: Sequence[_Job]) -> list[_Job]:
    """The same jobs with those of one insert side by side."""
    order = {id(job.insert): None for job in jobs}
    return [job for insert in order for job in jobs if id(job.insert) == insert]


def _decode(base: Base, binder: Binder, template: Template, jobs: Sequence[_Job], decoding: Decoding) -> list[str]:
    """One batch: the hypotheses of its jobs."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=decoding.num_beams,
        do_sample=False,
        early_stopping=decoding.early_stopping,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size or None,
        min_new_tokens=decoding.min_new_tokens or None,
        max_new_tokens=decoding.max_new_tokens,
        length_penalty=decoding.length_penalty,
        eos_token_id=template.eos_id,
        pad_token_id=template.pad_id,
        decoder_start_token_id=template.target_before[0] if template.is_encoder_decoder else None,
    )
    if template.is_encoder_decoder:
        inputs, given = _encoder_decoder_inputs(template, jobs)
        inserts = [job.insert for job in jobs]
    else:
        last = torch.tensor([job.prompt[-1:] for job in jobs])  # (B, 1)
        inputs, given = {"input_ids": last, "attention_mask": torch.ones_like(last)}, 1
        distinct = {id(job.insert): job.insert for job in jobs}
        slots = {key: slot for slot, key in enumerate(distinct)}
        prompts = [Prompt(slots[id(job.insert)], job.prompt[:-1], job.infix_start) for job in jobs]
        inserts = extended(binder, list(distinct.values()), prompts, pad_id=template.pad_id, device=base.device)
    model: Any = base.model
    with binder.bind(inserts, range(len(jobs))):
        on_device = {name: tensor.to(base.device) for name, tensor in inputs.items()}
        output = model.generate(**on_device, past_key_values=_cache(template), generation_config=settings)
    return [_text(base, template, row) for row in output[:, given:].tolist()]


def _cache(template: Template) -> Cache | None:
    """One that grows: `generate` gives a T5 with more decoder than encoder layers a cache of too few."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache()) if template.is_encoder_decoder else None


def _encoder_decoder_inputs(template: Template, jobs: Sequence[_Job]) -> tuple[dict[str, Tensor], int]:
    """What `generate` is called with, and how many tokens of its output are given ones."""
    ids, mask = pad([job.prompt for job in jobs], template.pad_id)  # (B, S)
    given = torch.tensor([template.target_before] * len(jobs))
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}, given.shape[1]


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
