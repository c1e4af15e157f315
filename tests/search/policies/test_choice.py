"""The policy that a sweep file names."""

import pytest
from support.studies import SPACE, make_arm

from prefixray.config.schema import ArmConfig, SearchConfig
from prefixray.search.policies.choice import make_policy
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.settling import Settling


@pytest.mark.parametrize(("name", "kind"), [("stop", Halving), ("promote", Promotion), ("settle", Settling)])
def test_a_name_stands_for_a_policy_and_fine_tuning_is_stopped_by_all(name: str, kind: type[Policy]) -> None:
    search = SearchConfig.model_validate({"num_trials": 4, "policy": name, "rungs": [10], "keep": 0.5})
    arm = make_arm(SPACE, 4)
    policy = make_policy(search, arm)
    assert type(policy) is kind and policy.rungs == (10,) and policy.may_pause == (name != "stop")
    alone = ArmConfig.model_validate(
        {**arm.model_dump(exclude={"dimensions"}), "dimensions": SPACE, "method": "finetune"}
    )
    assert alone.exclusive and type(make_policy(search, alone)) is Halving
