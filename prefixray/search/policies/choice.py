"""What decides at the rungs of a search: the policy, the rungs and the share that a sweep file names, or `auto`.

What `auto` means was chosen by `tests/bench/policies.py`, whose row `auto` is made of the constants below.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import assert_never

from prefixray.config.schema import ArmConfig, NamedPolicy, PolicyName, SweepConfig
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.freeze_thaw import FreezeThaw
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.settling import Settling
from prefixray.trial import evaluated_shares

AUTO_POLICY: NamedPolicy = "promote"
AUTO_SHARES = (0.1, 0.2, 0.4)  # of the schedule: where the rungs lie
AUTO_KEEP = 0.35
KEEP = 0.5  # of any other policy
DEV_SAMPLE = 0.25  # the share of dev on which trials are compared at all rungs but the last


@dataclass(frozen=True)
class Rules:
    """What becomes of trials, at which steps: what a sweep file's `search` means by these keys."""

    policy: NamedPolicy
    rungs: tuple[int, ...]  # ascending
    keep: float
    dev_sample: float


def rules_of(config: SweepConfig, policy: PolicyName | None = None) -> Rules:
    """The rules of a sweep's search; with `policy`, those that it would have by another `search.policy`."""
    search, policy = config.search, policy or config.search.policy
    name, keep = (AUTO_POLICY, AUTO_KEEP) if policy == "auto" else (policy, KEEP)
    rungs = auto_rungs(config.arms) if search.rungs == "auto" else search.rungs
    keep = keep if search.keep is None else search.keep
    every = config.train.eval_every
    is_whole = name == "freeze_thaw" or bool(every and rungs and rungs[0] % every == 0)
    sample = 1.0 if is_whole else DEV_SAMPLE
    return Rules(name, rungs, keep, sample if search.dev_sample is None else search.dev_sample)


def evaluated(arm: ArmConfig, rules: Rules) -> dict[int, float]:
    """The steps after which a trial of an arm's search is evaluated, ascending, each with the share of dev."""
    return evaluated_shares(arm.train.eval_every, rules.rungs, arm.num_steps, rules.dev_sample)


def auto_rungs(arms: Sequence[ArmConfig]) -> tuple[int, ...]:
    """Steps at shares of the shortest schedule of the arms that are searched, from the end of the longest warm-up on.

    A schedule may be too short for any.
    """
    searched = [arm for arm in arms if arm.dimensions]
    num_steps = min((arm.num_steps for arm in searched), default=0)
    first = max([1, *(arm.largest("warmup_steps") for arm in searched)])
    steps = {round(share * num_steps) for share in AUTO_SHARES}
    return tuple(step for step in sorted(steps) if first <= step < num_steps)


def with_rules(config: SweepConfig, begun: SweepConfig | None) -> SweepConfig:
    """The configuration with rules instead of `auto` and null: those by which the sweep has begun, if it has.

    So a sweep goes on with the rules that it began with, also where an earlier version has begun it.
    """
    rules = asdict(rules_of(config))
    if begun is not None:
        before = asdict(rules_of(begun))
        rules |= {key: before[key] for key in before if getattr(config.search, key) in ("auto", None)}
    return config.model_copy(update={"search": config.search.model_copy(update=rules)})


def rules_for(arm: ArmConfig, rules: Rules) -> Rules:
    """The rules for one arm: trials with a model of their own are stopped, as pausing would keep gigabytes on disk."""
    return replace(rules, policy="stop") if arm.exclusive else rules


def make_policy(rules: Rules, arm: ArmConfig) -> Policy:
    """The policy of an arm's search, before its first trial."""
    return policy_by(rules_for(arm, rules), arm.num_steps)


def policy_by(rules: Rules, num_steps: int) -> Policy:
    """The policy by rules, for schedules of so many steps."""
    match rules.policy:
        case "stop":
            return Halving(rules.rungs, rules.keep)
        case "promote":
            return Promotion(rules.rungs, rules.keep)
        case "settle":
            return Settling(rules.rungs, rules.keep)
        case "freeze_thaw":
            return FreezeThaw(rules.rungs, num_steps)
        case _:
            assert_never(rules.policy)
