"""The self-study of one document: chunks, questions, answers, and the teacher's predictions at the answers.

Questions and answers are written with one chunk in context, as in Eyuboglu et al. 2025, since a small base reads 500
tokens better than 3,000. The teacher sees the whole document where it fits into the base's positions, else the chunk.
What is left is whole or not there at all.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from prefixray.batching.template import Template, make_template
from prefixray.config.seeds import derive_seed
from prefixray.data import Example
from prefixray.data.documents import Document
from prefixray.data.documents.exchanges import TEACHERS, Exchange, StudySplit, write_exchanges
from prefixray.data.documents.made import MOST_QUESTION_TOKENS, STUDY, num_studied
from prefixray.data.task_config import TaskConfig
from prefixray.data.teacher import Teacher, write_teachers
from prefixray.decoding.in_context import Context, num_around, read_context
from prefixray.decoding.sampling import SampledSettings
from prefixray.errors import UserError
from prefixray.model.base import Base, choose_device, load_in
from prefixray.self_study.prompts import SeedPrompt, seed_prompts
from prefixray.self_study.questions import (
    BATCH_SIZE,
    PASSAGE_TOKENS,
    Asker,
    Chunk,
    OnDone,
    Question,
    of_requests,
    passages_of,
    sampled,
)
from prefixray.self_study.teacher import predict
from prefixray.system.atomic_files import whole_folder, write_whole

logger = logging.getLogger(__name__)

OnProgress = Callable[[str], None]
"""Called with how far it is, in words."""

_TEMPERATURE = 0.5  # of answers: they vary a little, and say what the chunk says
_NO_REPEAT = 5  # tokens: a small base that has begun to repeat itself does not stop
_SPARE = 1.1  # questions that are asked for, for each that is missing: some are old, and some get no answer
_MOST_ROUNDS = 5
_SPLITS: tuple[StudySplit, ...] = ("train", "dev", "test")
_Answered = Sequence[tuple[Question, str]]


def load_base_of(
    name: str,
    precision: str,
    *,
    device: str,
    num_threads: int,
    trust_remote_code: bool = False,
    commit: str | None = None,
) -> Base:
    """The base that studies, in a process of its own; `num_threads` is for a CPU. Raises `UserError` as `load_in`."""
    device = choose_device(device)
    if device == "cpu":
        torch.set_num_threads(num_threads)
    return load_in(name, precision, device, trust_remote_code=trust_remote_code, commit=commit)


def study(
    base: Base,
    task: TaskConfig,
    document: Document,
    folder: Path,
    *,
    made: Mapping[str, Any],
    seed: int,
    on_progress: OnProgress = lambda _: None,
) -> None:
    """Make the self-study of a document in `folder`; `made` says from what, for the record.

    Raises `UserError` where a chunk has no room in the base's positions, and where too few questions have an answer.
    """
    started = time.monotonic()
    told = _Told(document.name, on_progress)
    template, ids, counts = make_template(base, task), base.text_ids(document.text), num_studied(task)
    prompts = seed_prompts(task.prompts)
    _check_room(base, template, prompts, task)
    chunks = _chunks(base, template, ids, task.chunk_tokens)
    asker = Asker(base, chunks, prompts, seed=seed)
    answered, num_empty = _exchange_all(base, asker, sum(counts.values()), task.max_target_tokens, seed=seed, told=told)
    in_splits = _divided(answered, _fitting(counts, len(answered), num_empty, document.name), seed)
    exchanges = [_exchange(split, *pair) for split in _SPLITS for pair in in_splits.get(split, ())]
    asked = [question for split in _SPLITS for question, _ in in_splits.get(split, ())]
    on_done = told.begin("predictions", len(exchanges))
    teachers, sees = _teachers(base, template, ids, asked, exchanges, on_done)
    record = {
        "made_from": made,
        "num_tokens": len(ids),
        "num_chunks": len(chunks),
        "num_exchanges": len(exchanges),
        "num_empty_answers": num_empty,
        "teacher_sees": sees,
        "base_digest": base.digest,
        "seconds": round(time.monotonic() - started, 1),
    }
    with whole_folder(folder) as scratch:
        write_exchanges(scratch, exchanges)
        write_teachers(scratch / TEACHERS, teachers)
        write_whole(scratch / STUDY, json.dumps(record, indent=1) + "\n")
    values = document.name, len(exchanges), len(ids), len(chunks), sees, num_empty, record["seconds"]
    logger.info("%s: %d exchanges from %d tokens in %d chunks; teacher sees the %s; %d empty answers; %s s", *values)


class _Told:
    """Says how far the study is: `manual: 40 of 150 questions`."""

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        self._name, self._on_progress = name, on_progress

    def begin(self, what: str, total: int) -> OnDone:
        """The counter of one kind of text; more than `total` may be written."""
        num_done = 0

        def count(num_more: int) -> None:
            nonlocal num_done
            num_done += num_more
            self._on_progress(f"{self._name}: {num_done} of {max(total, num_done)} {what}")

        count(0)
        return count


def _check_room(base: Base, template: Template, prompts: Sequence[SeedPrompt], task: TaskConfig) -> None:
    limit = base.shape.max_positions
    if limit is None:
        return
    requests = of_requests(template).encode_sources([one.request for one in prompts])
    around = num_around(base, template) + max(map(len, requests))
    needed = task.chunk_tokens + around + PASSAGE_TOKENS + MOST_QUESTION_TOKENS + task.max_target_tokens
    if needed > limit:
        problem = f"a chunk, a question and its answer may take {needed} tokens of the {limit} positions of {base.name}"
        raise UserError(f"task.chunk_tokens: {task.chunk_tokens}: {problem}; lower it, or task.max_target_tokens")


def _chunks(base: Base, template: Template, ids: Sequence[int], chunk_tokens: int) -> list[Chunk]:
    """The document in as few chunks as possible, of about the same size."""
    count = math.ceil(len(ids) / chunk_tokens)
    cuts = [len(ids) * index // count for index in range(count + 1)]
    return [_chunk(base, template, ids, start, end) for start, end in pairwise(cuts)]


def _chunk(base: Base, template: Template, ids: Sequence[int], start: int, end: int) -> Chunk:
    text = str(base.tokenizer.decode(list(ids[start:end])))
    return Chunk(start, end, read_context(base, template, ids[start:end]), passages_of(text))


def _exchange_all(
    base: Base, asker: Asker, num_wanted: int, most_tokens: int, *, seed: int, told: _Told
) -> tuple[_Answered, int]:
    """So many questions with an answer, or as many as a few rounds give; and how many answers were empty."""
    answered: list[tuple[Question, str]] = []
    num_empty = 0
    for number in range(_MOST_ROUNDS):
        num_more = math.ceil(_SPARE * (num_wanted - len(answered)))
        questions = asker.ask(num_more, told.begin("questions", num_more))
        draws = derive_seed(seed, 0, f"answers/{number}")
        answers = _answer(base, questions, most_tokens, seed=draws, on_done=told.begin("answers", len(questions)))
        pairs = [(question, answer) for question, answer in zip(questions, answers, strict=True) if answer]
        answered += pairs
        num_empty += len(questions) - len(pairs)
        if len(answered) >= num_wanted:
            break
    return answered[:num_wanted], num_empty


def _answer(base: Base, questions: Sequence[Question], most_tokens: int, *, seed: int, on_done: OnDone) -> list[str]:
    """An answer to each question, written with the question's chunk in context; some may be empty."""
    if not questions:
        return []
    settings = SampledSettings(
        num_beams=1,
        temperature=_TEMPERATURE,
        max_new_tokens=most_tokens,
        batch_size=BATCH_SIZE,
        ban_line_breaks=True,
        no_repeat_ngram_size=_NO_REPEAT,
    )
    chunks, sources = [question.chunk for question in questions], [question.text for question in questions]
    return sampled(base, chunks[0].context.template, sources, chunks, settings, seed=seed, on_done=on_done)


def _fitting(counts: Mapping[StudySplit, int], num_there: int, num_empty: int, name: str) -> dict[StudySplit, int]:
    """The sizes of the splits, smaller in proportion where there are too few exchanges. Raises `UserError` for none."""
    wanted = sum(counts.values())
    least = sum(count > 0 for count in counts.values())
    if num_there < least:
        problem = f"the base wrote {num_there} questions with an answer, and {num_empty} without one"
        remedy = "take a base that follows instructions, or other task.prompts"
        raise UserError(f"task: {name}: {problem}; at least {least} are needed: {remedy}")
    if num_there >= wanted:
        return dict(counts)
    logger.warning("task: %s: %d of %d questions are different and have an answer", name, num_there, wanted)
    others = {split: max(1, num_there * counts[split] // wanted) for split in _SPLITS[1:] if counts[split]}
    return {"train": num_there - sum(others.values()), **others}


def _divided(answered: _Answered, counts: Mapping[StudySplit, int], seed: int) -> dict[StudySplit, _Answered]:
    """The exchanges of each split. A draw by the question decides; no question is there twice."""
    order = sorted(answered, key=lambda pair: derive_seed(seed, 0, f"split/{pair[0].text}"))
    divided: dict[StudySplit, _Answered] = {}
    start = 0
    for split, count in counts.items():
        divided[split] = order[start : start + count]
        start += count
    return divided


def _exchange(split: StudySplit, question: Question, answer: str) -> Exchange:
    return Exchange(split, question.kind, question.chunk.start, question.chunk.end, question.text, answer)


def _teachers(
    base: Base,
    template: Template,
    ids: Sequence[int],
    asked: Sequence[Question],
    exchanges: Sequence[Exchange],
    on_done: OnDone,
) -> tuple[list[Teacher], str]:
    """The teacher's predictions at each answer, and whether it sees the document or the chunk."""
    examples = [Example(exchange.question, exchange.answer) for exchange in exchanges]
    limit = base.shape.max_positions
    longest = max(map(len, template.encode_sources([example.source for example in examples])))
    needed = len(ids) + num_around(base, template) + longest + template.max_target_tokens + 1
    if limit is None or needed <= limit:
        return predict(base, read_context(base, template, ids), examples, on_done=on_done), "document"
    problem = "%d tokens with a question and its answer are more than the %d positions of %s: the teacher sees chunks"
    logger.warning("task: the document: " + problem, needed, limit, base.name)
    by_chunk: dict[int, list[int]] = {}
    contexts: dict[int, Context] = {}
    for index, question in enumerate(asked):
        by_chunk.setdefault(question.chunk.start, []).append(index)
        contexts[question.chunk.start] = question.chunk.context
    found: dict[int, Teacher] = {}
    for start, indices in by_chunk.items():
        of_chunk = predict(base, contexts[start], [examples[index] for index in indices], on_done=on_done)
        found |= zip(indices, of_chunk, strict=True)
    return [found[index] for index in range(len(examples))], "chunk"
