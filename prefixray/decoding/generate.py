"""Decoding: beam search under the inserts of trials.

Sources are decoded in batches of like length, and leave their batch when their hypothesis is found. The prompt of a
decoder-only model, all but its last token, runs once per source; the source's beams share its keys and values. An
encoder-decoder is decoded by transformers' `generate`. Rows of different trials may share a batch. In bf16 a hypothesis
can depend on its batch, so reproducible decoding runs one artifact at a time.

While a GPU works on a token, the host reads which sources were done before it, so neither waits for the other. A source
may so write one token more than it needs, which changes nothing.
"""

# N sources, B beams of each, S tokens of the longest prompt; of an encoder-decoder B sources

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prefixray.batching.batches import pad
from prefixray.batching.rows import make_room
from prefixray.batching.template import Template
from prefixray.config.schema import DecodingSettings
from prefixray.data.texts import up_to_line_break
from prefixray.decoding.beam_search import Step
from prefixray.decoding.sampling import SampledSettings, search_for
from prefixray.decoding.streaming import NOBODY, Watched
from prefixray.errors import UserError
from prefixray.model.backend import backend_for
from prefixray.model.base import Base
from prefixray.model.binding.beam_cache import BeamCache
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.downloads import Download
from prefixray.training.prefill import prompt_columns

logger = logging.getLogger(__name__)

_LONGEST_RUN = 8  # line breaks that may be one token

LEAVING = 8  # finished sources leave a batch when they are one in 8: before, running them on costs less


@dataclass(frozen=True)
class _Job:
    """One distinct pair of an insert and a source."""

    insert: Insert
    prompt: tuple[int, ...]  # with room for an infix
    infix_start: int
    source_indices: list[int]  # the sources that get its hypothesis


_OnIds = Callable[["_Job", list[int], bool], object]  # a job, the certain part of its new tokens, whether that is all


def generate(
    base: Base,
    template: Template,
    sources: Sequence[str],
    inserts: Sequence[Insert],
    decoding: DecodingSettings,
    *,
    watched: Watched = NOBODY,
) -> list[str]:
    """The best hypothesis for `sources[i]` under `inserts[i]`, as text without special tokens.

    The model of `base` may be a trial's own copy (`replace(base, model=own)`). Each distinct pair of an insert and a
    source is decoded once, unless tokens are drawn. Raises `UserError` where a source leaves no room for its
    hypothesis.
    """
    jobs = _distinct(template, sources, inserts, is_drawn=isinstance(decoding, SampledSettings))
    _check_room(base, template, jobs, decoding)
    jobs.sort(key=lambda job: -len(job.prompt))  # stable: equal lengths stay in their order
    hypotheses = [""] * len(sources)
    decode = _by_transformers if template.is_encoder_decoder else _by_beams

    def tell(job: _Job, ids: list[int], is_whole: bool) -> str:
        text = _text(base, template, ids)
        if watched.on_text is not None:
            watched.on_text(job.source_indices, text, is_whole)
        return text

    on_ids = None if watched.on_text is None else tell
    with _without_own_settings(base.model), torch.no_grad(), backend_for(base.device).decoding(base.model):
        for of_like_length in _even_batches(jobs, decoding.batch_size):
            batch = _by_insert(of_like_length)
            for job, new_ids in decode(base, template, batch, decoding, on_ids):
                text = tell(job, new_ids, True)
                for index in job.source_indices:
                    hypotheses[index] = text
                watched.on_done(len(job.source_indices))
    return hypotheses


def generation_config(decoding: DecodingSettings, template: Template) -> GenerationConfig:
    """The same settings for transformers' `generate`."""
    temperature = decoding.temperature if isinstance(decoding, SampledSettings) else None
    return GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=decoding.num_beams if temperature is None else 1,
        do_sample=temperature is not None,
        **({} if temperature is None else {"temperature": temperature, "top_k": 0}),
        early_stopping=decoding.early_stopping,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size or None,
        min_new_tokens=decoding.min_new_tokens or None,
        max_new_tokens=decoding.max_new_tokens,
        length_penalty=decoding.length_penalty,
        eos_token_id=template.eos_id,
        pad_token_id=template.pad_id,
        decoder_start_token_id=template.target_before[0] if template.is_encoder_decoder else None,
    )


def _distinct(template: Template, sources: Sequence[str], inserts: Sequence[Insert], *, is_drawn: bool) -> list[_Job]:
    """A job for each distinct pair of an insert and a source; where tokens are drawn, for each pair."""
    jobs: dict[tuple[int, str, int], _Job] = {}
    for index, (source, insert) in enumerate(zip(sources, inserts, strict=True)):
        pair = id(insert), source, index if is_drawn else 0
        job = jobs.get(pair)
        if job is None:
            prompt = with_infix_room(template, insert, template.encode_source(source))
            job = jobs[pair] = _Job(insert, *prompt, [])
        job.source_indices.append(index)
    return list(jobs.values())


def with_infix_room(template: Template, insert: Insert, ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """A prompt with columns for the insert's infix, and the column where the infix starts."""
    start = len(ids) - template.num_after
    return make_room(ids, start, insert.infix_length, template.pad_id), start


def _check_room(base: Base, template: Template, jobs: Sequence[_Job], decoding: DecodingSettings) -> None:
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


def _check_target_room(base: Base, template: Template, decoding: DecodingSettings) -> None:
    limit, given = base.shape.max_positions, len(template.target_before)
    if limit is not None and given + decoding.max_new_tokens > limit:
        raise UserError(
            f"max_new_tokens: {decoding.max_new_tokens}: the decoder of {base.name} has {limit} positions, of which "
            f"{given} are given; lower max_new_tokens"
        )


def _even_batches(jobs: Sequence[_Job], batch_size: int) -> list[Sequence[_Job]]:
    """As few batches as possible, of about the same size: 40 jobs at 32 are two batches of 20."""
    num_batches = math.ceil(len(jobs) / batch_size)
    cuts = [len(jobs) * i // num_batches for i in range(num_batches + 1)] if jobs else []
    return [jobs[start:end] for start, end in pairwise(cuts)]


def _by_insert(jobs: Sequence[_Job]) -> list[_Job]:
    """The same jobs, those of one insert side by side."""
    order = {id(job.insert): None for job in jobs}
    return [job for insert in order for job in jobs if id(job.insert) == insert]


def _by_beams(
    base: Base, template: Template, jobs: Sequence[_Job], decoding: DecodingSettings, on_ids: _OnIds | None
) -> Iterator[tuple[_Job, list[int]]]:
    """The new tokens of each job of a decoder-only base, as they leave the batch."""
    # The prompts, all but their last tokens, run once; their keys and values go behind the prefixes.
    prompts = [(job.insert, job.prompt, job.infix_start) for job in jobs]
    cache = BeamCache(prompt_columns(base, template.pad_id, prompts))

    # Each source starts with one beam, its prompt's last token.
    tokens = torch.tensor([job.prompt[-1:] for job in jobs], device=base.device)  # (N, B)
    lengths = torch.tensor([len(job.prompt) - job.insert.infix_length for job in jobs], device=base.device)
    banned = line_breaks(template) if decoding.ban_line_breaks else ()
    search = search_for(tokens[:, 0], decoding, template.eos_id, lengths, banned)
    running = list(range(len(jobs)))  # indices of the jobs in the batch
    binder, model = Binder.of(base.model), cast(Any, base.model)
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=base.device)  # a mask, so that the model makes none
    # a stream reads the tokens of each step anyway; where tokens are drawn, a further step would change later draws
    is_late = backend_for(base.device).reads_late and on_ids is None and not isinstance(decoding, SampledSettings)
    while running:
        # All beams of the batch write a token a step, until enough sources are done.
        bare = [Insert(functions=jobs[index].insert.functions) for index in running]
        is_done, flags = [False], _Flags(is_late=is_late)
        with binder.bind(bare, range(len(running)), cache=cache):
            while sum(is_done) * LEAVING < len(running):
                positions = cache.begin_step()
                inputs = {"input_ids": tokens.view(-1, 1), "position_ids": positions, "attention_mask": unread}
                logits = model(**inputs, use_cache=False).logits[:, -1]
                step = search.advance(logits)
                cache.follow(step.parents)
                tokens, is_done = step.tokens, flags.after(step)
                if on_ids is not None:
                    for index, ids in zip(running, search.agreed(), strict=True):
                        on_ids(jobs[index], ids, False)

        # These leave, those of the last step among them; search, cache and last tokens keep the others.
        is_done = step.is_done.tolist()
        for index, done, ids in zip(running, is_done, search.best(), strict=True):
            if done:
                yield jobs[index], ids
        remaining = [row for row, done in enumerate(is_done) if not done]
        running = [running[row] for row in remaining]
        if running:
            rows = torch.tensor(remaining, device=base.device)
            search.keep(rows)
            cache.keep(rows)
            tokens = tokens[rows]


class _Flags:
    """Whether sources are done after a step; `is_late`: after the step before, while the device works on this one."""

    def __init__(self, *, is_late: bool) -> None:
        self._is_late = is_late
        self._before: Download | None = None

    def after(self, step: Step) -> list[bool]:
        """A flag for each source; a source whose flag is late writes one more token, which changes nothing."""
        if step.is_last:
            return [True] * len(step.is_done)
        before, self._before = self._before, Download(step.is_done)
        read = before if self._is_late else self._before
        flags: list[bool] = [False] * len(step.is_done) if read is None else read.read()
        return flags


def line_breaks(template: Template) -> list[int]:
    """The ids of the tokens that are line breaks and nothing else; GPT-2's are 198 and 628."""
    runs = template.tokenizer(["\n" * count for count in range(1, _LONGEST_RUN + 1)], add_special_tokens=False)
    return sorted({ids[0] for ids in runs.input_ids if len(ids) == 1})


def _by_transformers(
    base: Base, template: Template, jobs: Sequence[_Job], decoding: DecodingSettings, on_ids: _OnIds | None
) -> Iterator[tuple[_Job, list[int]]]:
    """The new tokens of each job of an encoder-decoder. With several beams they are known only at the end."""
    ids, mask = pad([job.prompt for job in jobs], template.pad_id)  # (B, S)
    given = torch.tensor([template.target_before] * len(jobs))
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}
    # `generate` itself would give a T5 with more decoder than encoder layers a cache of too few
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model: Any = base.model
    with Binder.of(base.model).bind([job.insert for job in jobs], range(len(jobs))):
        on_device = {name: tensor.to(base.device) for name, tensor in inputs.items()}
        settings = generation_config(decoding, template)
        told = None if on_ids is None or settings.num_beams > 1 else _Told(jobs, given.shape[1], on_ids)
        output = model.generate(
            **on_device,
            past_key_values=cache,
            generation_config=settings,
            stopping_criteria=None if told is None else StoppingCriteriaList([told]),
        )
    new_tokens: list[list[int]] = output[:, given.shape[1] :].tolist()
    yield from zip(jobs, new_tokens, strict=True)


class _Told(StoppingCriteria):
    """Stops nothing, and tells the new tokens of each job after each step."""

    def __init__(self, jobs: Sequence[_Job], num_given: int, on_ids: _OnIds) -> None:
        self._jobs, self._num_given, self._on_ids = jobs, num_given, on_ids

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Called by transformers with the decoder's ids, (B, S)."""
        for job, ids in zip(self._jobs, input_ids[:, self._num_given :].tolist(), strict=True):
            self._on_ids(job, ids, False)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _text(base: Base, template: Template, new_ids: list[int]) -> str:
    """New tokens as text: up to the end token and the first line break, without special tokens."""
    if template.eos_id in new_ids:
        new_ids = new_ids[: new_ids.index(template.eos_id)]
    text: Any = base.tokenizer.decode(new_ids, skip_special_tokens=True)
    return up_to_line_break(str(text).strip()).strip()


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Run the model in eval mode, and without the decoding settings of its generation_config."""
    was_training, own = model.training, model.generation_config
    model.train(False)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own
        model.train(was_training)
