"""The work of each arm: how many trials run, how far they come, and how many runs the final stage has.

How many trials pass a rung depends on their losses and on the order in which these come in, so the counts of the search
are expected values, from searches that are replayed over recorded curves.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from prefixray.config.schema import ArmConfig, PolicyName, SweepConfig
from prefixray.planning.recorded import Replayed, replayed
from prefixray.planning.slots import num_at_once
from prefixray.planning.speeds import Kind
from prefixray.search.policies.choice import Rules, evaluated, policy_by, rules_for, rules_of


@dataclass(frozen=True)
class PolicyWork(Replayed):
    """What an arm's search takes by a policy; expected values."""

    evaluations: float  # on all of dev; one on a sample counts as its share


@dataclass(frozen=True)
class ArmWork:
    """The work of an arm; the counts of the search are expected values."""

    arm: ArmConfig
    num_searched: int  # documents that a trial of the search trains on, a member for each; 1 without documents
    at_once: int
    by_policy: Mapping[PolicyName, PolicyWork]  # by `search.policy`; where there are no rungs, by the sweep's alone
    policy: PolicyName  # the sweep's
    candidates: int  # runs of the final stage that are compared on dev
    finals: int  # runs that see test
    rows_per_step: int

    @property
    def kind(self) -> Kind:
        """How its trials are trained."""
        return "alone" if self.arm.exclusive else "shared"

    @property
    def search(self) -> PolicyWork:
        """What its search takes by the sweep's policy; nothing where there is nothing to search."""
        return self.by_policy.get(self.policy, PolicyWork((), 0.0, 0.0, 0.0))

    @property
    def member_steps(self) -> float:
        """Steps of all members of its trials in the search."""
        return self.search.steps * self.num_searched

    @property
    def final_steps(self) -> int:
        """Steps of all its runs of the final stage."""
        return (self.candidates + self.finals) * self.arm.num_steps


def arm_works(config: SweepConfig, *, num_slots: int, num_workers: int, num_documents: int = 0) -> tuple[ArmWork, ...]:
    """The work of each arm on this many slots and workers, with so many documents of the task."""
    return tuple(_arm_work(config, arm, num_slots, num_workers, num_documents) for arm in config.arms)


def _arm_work(config: SweepConfig, arm: ArmConfig, slots: int, num_workers: int, num_documents: int) -> ArmWork:
    search, final = config.search, config.final
    num_searched, finals = search.num_searched(num_documents), final.num_seeds * max(1, num_documents)
    at_once = num_at_once(arm, search.concurrency, num_slots=slots, num_workers=num_workers)
    rows = arm.largest("batch_size") * arm.largest("grad_accumulation")
    compared = _compared(config) if arm.dimensions else ()
    by_policy = {name: _policy_work(arm, rules_of(config, name), at_once) for name in compared}
    candidates = min(final.candidates, round(by_policy[search.policy].reached[-1])) if by_policy else 0
    return ArmWork(
        arm=arm,
        num_searched=num_searched,
        at_once=at_once,
        by_policy=by_policy,
        policy=search.policy,
        candidates=candidates * num_searched if candidates > 1 else 0,
        finals=finals,
        rows_per_step=rows,
    )


def _policy_work(arm: ArmConfig, rules: Rules, at_once: int) -> PolicyWork:
    rules = rules_for(arm, rules)
    found = _replayed(rules, arm.num_trials, arm.num_steps, at_once)
    ends = [*rules.rungs, arm.num_steps]
    evaluations = sum(
        share * next(count for count, end in zip(found.reached, ends, strict=True) if step <= end)
        for step, share in evaluated(arm, rules).items()
    )
    return PolicyWork(**vars(found), evaluations=evaluations)


def _compared(config: SweepConfig) -> Sequence[PolicyName]:
    """The policies whose work is counted: without rungs they all do the same."""
    return get_args(PolicyName) if rules_of(config).rungs else (config.search.policy,)


@functools.cache  # devices with as many slots, and arms with as many trials, need no replay of their own
def _replayed(rules: Rules, num_trials: int, num_steps: int, num_seats: int) -> Replayed:
    make = functools.partial(policy_by, rules, num_steps)
    return replayed(make, num_trials=num_trials, num_steps=num_steps, num_seats=num_seats)
