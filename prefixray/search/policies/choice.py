"""The policy that a sweep file names."""

from typing import assert_never

from prefixray.config.schema import SearchConfig
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.halving import Halving


def make_policy(search: SearchConfig) -> Policy:
    """The policy of one arm's search, before its first trial."""
    match search.policy:
        case "stop":
            return Halving(search.rungs, search.keep)
        case _:
            assert_never(search.policy)
