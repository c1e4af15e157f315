"""The policy that a sweep file names."""

from typing import assert_never

from prefixray.config.schema import ArmConfig, SearchConfig
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.settling import Settling


def make_policy(search: SearchConfig, arm: ArmConfig) -> Policy:
    """The policy of an arm's search, before its first trial.

    Trials with a model of their own are stopped in any case: a paused one would keep gigabytes on disk.
    """
    match search.policy:
        case "promote" if not arm.exclusive:
            return Promotion(search.rungs, search.keep)
        case "settle" if not arm.exclusive:
            return Settling(search.rungs, search.keep)
        case "stop" | "promote" | "settle":
            return Halving(search.rungs, search.keep)
        case _:
            assert_never(search.policy)
