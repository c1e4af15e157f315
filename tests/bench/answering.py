"""The part `decode` of `documents.py`: what a page in front costs in decoding, and what a prefix in its place costs.

All arms answer the same questions in turn, greedily, each with `--steps` new tokens: the base as it is, the base with
the page in its context, prefixes of several lengths, and LoRA. None is trained, since speed does not depend on it.
Each round decodes once as far as the first token and once to the last. What the difference takes is decoding; the
first token's seconds are those of the question. The page is read once, in front of all of that. An eighth of the
questions comes one at a time, then all come in batches: with the page in the context of fewer rows, as in a sweep.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from studied import SEED, Page, config, load, studied
from table import timed

from prefixray.batching.template import Template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AnyTrial, LoraTrial
from prefixray.decoding.generate import generate
from prefixray.decoding.in_context import most_rows, read_context
from prefixray.methods import build_method
from prefixray.methods.contract import Untuned
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert

RANK = 8
ROUNDS = 2
HEAD = (
    f"{'':<12} {'read s':>7} {'KV MB':>7} {'first token s':>13} {'tokens/s, 1 row':>15} {'rows at once':>12} "
    f"{'tokens/s':>8} {'x in_context':>12}"
)


@dataclass
class Arm:
    """Something that answers, timed round by round."""

    name: str
    insert: Insert
    template: Template
    num_rows: int  # at once
    read: float | None = None  # seconds
    first: list[float] = field(default_factory=list)  # seconds to the first token of a question alone
    alone: list[float] = field(default_factory=list)  # tokens a second
    together: list[float] = field(default_factory=list)


def show(options: argparse.Namespace) -> None:
    """Print the table."""
    base = load(options, options.precision)
    page = studied(base, options.pages[0], options)
    questions = [example.source for example in page.examples["train"]]
    alone = questions[: max(1, len(questions) // 8)]
    arms = _arms(base, page, options)
    for arm in arms:  # warm
        _seconds(base, arm, questions, 2, arm.num_rows)
    for _ in range(ROUNDS):
        for arm in arms:
            first, speed = _times(base, arm, alone, options.steps, 1)
            arm.first.append(first / len(alone))
            arm.alone.append(speed)
            arm.together.append(_times(base, arm, questions, options.steps, arm.num_rows)[1])
    print(
        f"{page.document.name}, {len(page.ids)} tokens; {len(questions)} questions, {len(alone)} of them alone, "
        f"{options.steps} new tokens, greedy, {base.precision}, one CPU thread, mean of {ROUNDS} rounds\n{HEAD}"
    )
    ceiling = statistics.mean(arms[1].together)
    for arm in arms:
        numbers = sum(prefix.numel() for prefix in arm.insert.prefixes.values())
        first, one, many = map(statistics.mean, (arm.first, arm.alone, arm.together))
        front = f"{'-' if arm.read is None else f'{arm.read:.2f}':>7} {numbers * base.model.dtype.itemsize / 1e6:7.3f}"
        print(f"{arm.name:<12} {front} {first:13.3f} {one:15.1f} {arm.num_rows:12} {many:8.1f} {many / ceiling:12.2f}")


def _arms(base: Base, page: Page, options: argparse.Namespace) -> list[Arm]:
    """All ways of answering."""
    rows = options.batch_size

    def built(trial: AnyTrial) -> Insert:
        record = Binder.of(base.model).record
        return build_method(trial, base, record, init_seed=SEED, dropout_seed=SEED, document=page.document).insert(None)

    read_context(base, page.template, page.ids)  # warm
    read, context = timed(lambda: read_context(base, page.template, page.ids), base.device)
    seen = min(rows, most_rows(context.insert))
    prefix = config(options).method
    trials: dict[str, AnyTrial] = {
        f"prefix {length}": prefix.model_copy(update={"preseqlen": length}) for length in options.prefixes
    }
    trials[f"LoRA {RANK}"] = LoraTrial(rank=RANK)
    return [
        Arm("untuned", Untuned().insert(None), page.template, rows),
        Arm("in_context", context.insert, context.template, seen, read),
        *(Arm(name, built(trial), page.template, rows) for name, trial in trials.items()),
    ]


def _times(base: Base, arm: Arm, questions: Sequence[str], count: int, rows: int) -> tuple[float, float]:
    """Seconds until all have their first token, and tokens a second from there on."""
    first, whole = (_seconds(base, arm, questions, tokens, rows) for tokens in (1, count))
    return first, len(questions) * (count - 1) / (whole - first)


def _seconds(base: Base, arm: Arm, questions: Sequence[str], count: int, rows: int) -> float:
    """CPU seconds of so many new tokens for each question."""
    decoding = DecodingSettings(num_beams=1, min_new_tokens=count, max_new_tokens=count, batch_size=rows)
    inserts = [arm.insert] * len(questions)
    return timed(lambda: generate(base, arm.template, questions, inserts, decoding), base.device)[0]
