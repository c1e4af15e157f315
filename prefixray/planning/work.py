"""The work of each arm: how many trials run, how far they come, and how many runs the final stage has.

How many trials pass a rung depends on the order in which scores come in, so the counts of the search are expected
values.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from prefixray.config.schema import ArmConfig, NamedPolicy, SweepConfig
from prefixray.planning.slots import num_at_once
from prefixray.planning.speeds import Kind
from prefixray.search.policies.choice import Rules, make_policy, rules_of
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.replay import Curve, Search
from prefixray.trial import report_steps

NUM_REPLAYS = 20


@dataclass(frozen=True)
class ArmWork:
    """The work of an arm; the counts of the search are expected values."""

    arm: ArmConfig
    num_searched: int  # documents that a trial of the search trains on, a member for each; 1 without documents
    at_once: int
    generations: int  # 0 where nothing is searched
    together: tuple[int, ...]  # trials that reach each rung and the end, if all are judged together
    expected: tuple[float, ...]  # the same, if trials are judged in any order as they come in
    search_steps: float
    steps_by_policy: Mapping[str, float]  # the same for each `search.policy`; empty without rungs
    search_evaluations: float
    candidates: int  # runs of the final stage that are compared on dev
    finals: int  # runs that see test
    rows_per_step: int

    @property
    def kind(self) -> Kind:
        """How its trials are trained."""
        return "alone" if self.arm.exclusive else "shared"

    @property
    def member_steps(self) -> float:
        """Steps of all members of its trials in the search."""
        return self.search_steps * self.num_searched

    @property
    def final_steps(self) -> int:
        """Steps of all its runs of the final stage."""
        return (self.candidates + self.finals) * self.arm.num_steps


def arm_works(config: SweepConfig, *, num_slots: int, num_workers: int, num_documents: int = 0) -> tuple[ArmWork, ...]:
    """The work of each arm on this many slots and workers, with so many documents of the task."""
    return tuple(_arm_work(config, arm, num_slots, num_workers, num_documents) for arm in config.arms)


def _arm_work(config: SweepConfig, arm: ArmConfig, slots: int, num_workers: int, num_documents: int) -> ArmWork:
    search, final, rules = config.search, config.final, rules_of(config)
    num_searched, finals = search.num_searched(num_documents), final.num_seeds * max(1, num_documents)
    at_once = num_at_once(arm, search.concurrency, num_slots=slots, num_workers=num_workers)
    rows = arm.largest("batch_size") * arm.largest("grad_accumulation")
    if not arm.dimensions:
        return ArmWork(arm, num_searched, at_once, 0, (), (), 0.0, {}, 0.0, 0, finals, rows)
    # How many trials reach each rung, and the end.
    ends = [*rules.rungs, arm.num_steps]
    together = _reached(make_policy(rules, arm), arm, arm.num_trials, order=0)
    expected = _expected(rules, arm, at_once, num_workers)
    # How many steps and evaluations that makes.
    evaluations = sum(
        next(count for count, end in zip(expected, ends, strict=True) if step <= end)
        for step in report_steps(config.train.eval_every, rules.rungs, arm.num_steps)
    )
    candidates = min(final.candidates, together[-1])
    return ArmWork(
        arm=arm,
        num_searched=num_searched,
        at_once=at_once,
        generations=math.ceil(arm.num_trials / at_once),
        together=tuple(together),
        expected=tuple(expected),
        search_steps=_num_steps(expected, ends),
        steps_by_policy={
            name: _num_steps(_expected(rules_of(config, name), arm, at_once, num_workers), ends)
            for name in ("auto", *get_args(NamedPolicy))
            if rules.rungs
        },
        search_evaluations=evaluations,
        candidates=candidates * num_searched if candidates > 1 else 0,
        finals=finals,
        rows_per_step=rows,
    )


def _expected(rules: Rules, arm: ArmConfig, at_once: int, num_workers: int) -> list[float]:
    """How many trials reach each rung and the end as their scores come in.

    Of trials that may pause, replayed searches say it, in which the same trials are the better ones at every rung.
    """
    if make_policy(rules, arm).may_pause:
        replays = [_reached(make_policy(rules, arm), arm, at_once, order) for order in range(NUM_REPLAYS)]
        return [statistics.mean(counts) for counts in zip(*replays, strict=True)]
    expected = [float(arm.num_trials)]
    group = math.ceil(at_once / num_workers)  # trials of a pack reach a rung in the same step
    for _ in rules.rungs:
        expected.append(expected_passes(expected[-1], group, rules.keep))
        group = max(1, round(group * expected[-1] / expected[-2]))
    return expected


def _reached(policy: Policy, arm: ArmConfig, num_seats: int, order: int) -> list[int]:
    """How many trials reach each rung and the end in a search in which no trial overtakes another."""
    ends = (*policy.rungs, arm.num_steps)
    losses = random.Random(order).sample(range(arm.num_trials), arm.num_trials)
    search = Search([Curve(dict.fromkeys(ends, float(loss))) for loss in losses], policy, evaluation=0.0)
    search.run(num_seats)
    return [sum(steps >= end for steps in search.steps) for end in ends]


def _num_steps(counts: Sequence[float], ends: Sequence[int]) -> float:
    """The steps of all trials, of which so many come to each of these steps."""
    return sum(count * (end - start) for count, start, end in zip(counts, (0, *ends), ends, strict=False))


def expected_passes(num_arrivals: float, at_once: int, keep: float) -> float:
    """The mean number of trials that pass a rung, if their scores come in any order, `at_once` at a time.

    A trial passes if it is among the best `keep` of those that have arrived so far, itself and its group included. So
    more trials pass than if all were judged in the end.
    """
    passed = seen = 0.0
    while num_arrivals - seen > 1e-9:
        group = min(float(at_once), num_arrivals - seen)
        seen += group
        passed += group * min(1.0, max(1, math.ceil(keep * seen)) / seen)
    return passed
