"""What decides at the rungs of a search: by name, and by `auto`."""

from pathlib import Path

import pytest
from support.studies import SPACE, make_arm
from support.sweep_files import VALID, changed, load

from prefixray.config.schema import ArmConfig, NamedPolicy
from prefixray.search.policies.choice import (
    AUTO_KEEP,
    AUTO_POLICY,
    AUTO_SHARES,
    DEV_SAMPLE,
    Rules,
    auto_rungs,
    make_policy,
    policy_by,
    rules_of,
    with_rules,
)
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.freeze_thaw import FreezeThaw
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.settling import Settling


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("stop", Halving), ("promote", Promotion), ("settle", Settling), ("freeze_thaw", FreezeThaw)]
)
def test_a_name_stands_for_a_policy_and_fine_tuning_is_stopped_by_all(name: NamedPolicy, kind: type[Policy]) -> None:
    arm = make_arm(SPACE, 4)
    policy = make_policy(Rules(name, (10,), 0.5, 1.0), arm)
    assert type(policy) is kind and policy.rungs == (10,) and policy.may_pause == (name != "stop")
    alone = ArmConfig.model_validate(
        {**arm.model_dump(exclude={"dimensions"}), "dimensions": SPACE, "method": "finetune"}
    )
    assert alone.exclusive and type(make_policy(Rules(name, (10,), 0.5, 1.0), alone)) is Halving


def test_the_share_is_the_policys_own_where_the_file_has_none() -> None:
    auto = load()
    assert rules_of(auto) == Rules(AUTO_POLICY, (10, 20), AUTO_KEEP, DEV_SAMPLE)
    assert {rules_of(auto, name).keep for name in ("stop", "promote", "settle")} == {0.5}
    assert rules_of(load(VALID, "search.dev_sample=1.0")).dev_sample == 1
    assert rules_of(load(VALID, "train.eval_every=5")).dev_sample == 1, (
        "all of dev is evaluated at the first rung anyway"
    )
    assert rules_of(load(VALID, "train.eval_every=4")).dev_sample == DEV_SAMPLE
    assert rules_of(load(VALID, "search.keep=0.6")) == Rules(AUTO_POLICY, (10, 20), 0.6, DEV_SAMPLE)
    assert rules_of(load(VALID, "search.policy=settle", "search.rungs=[]")) == Rules("settle", (), 0.5, DEV_SAMPLE)
    assert type(policy_by(Rules(AUTO_POLICY, (), AUTO_KEEP, DEV_SAMPLE), 40)) is type(
        make_policy(rules_of(auto), auto.arms[0])
    )


def test_rungs_lie_at_shares_of_the_shortest_searched_schedule_after_the_longest_warm_up() -> None:
    text = changed(", rungs: [10, 20]", "")

    def rungs(*overrides: str) -> list[int]:
        found = rules_of(load(text, "train.num_steps=1000", "train.warmup_steps=0", *overrides)).rungs
        assert list(found) == sorted(set(found))
        return list(found)

    every = [round(share * 1000) for share in AUTO_SHARES]
    assert rungs() == every
    assert rungs("train.warmup_steps=100") == [step for step in every if step >= 100]
    assert rungs("arms.prefix.num_steps=500") == [step // 2 for step in every]
    assert rungs("arms.prefix.warmup_steps={choice: [0, 150]}") == [step for step in every if step >= 150]
    unsearched = "arms.finetune={learning_rate: 1e-5, num_steps: 30, warmup_steps: 20}"
    assert rungs(unsearched) == every
    assert rungs("train.num_steps=1") == [] and set(rungs("train.num_steps=3")) <= {1, 2}
    nothing_searched = "arms={lora: {rank: 4, learning_rate: 1e-3}}"
    assert rungs(nothing_searched, "final.reference=null") == []
    assert auto_rungs([]) == ()


def test_a_sweep_that_has_begun_keeps_what_auto_meant_then() -> None:
    text = changed(", rungs: [10, 20]", "")
    begun = with_rules(
        load(text, "search.policy=settle", "search.keep=0.7", "search.rungs=[12]", "search.dev_sample=0.5"), None
    )
    assert rules_of(with_rules(load(text), begun)) == Rules("settle", (12,), 0.7, 0.5)
    said = load(text, "search.policy=stop", "search.rungs=[]")
    assert rules_of(with_rules(said, begun)) == Rules("stop", (), 0.7, 0.5), (
        "what the file says is for the folder to refuse"
    )
    assert with_rules(load(text), None).search.rungs == auto_rungs(load(text).arms)
