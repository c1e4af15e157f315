"""The work of each arm: by hand on a small file, and against the rule of the rungs."""

from pathlib import Path
from typing import get_args

import pytest

from prefixray.config.load import load_sweep
from prefixray.config.schema import PolicyName, SweepConfig
from prefixray.planning.work import arm_works
from prefixray.search.policies.choice import AUTO_POLICY, DEV_SAMPLE


def test_the_counts_of_a_small_sweep_are_those_by_hand(file: Path) -> None:
    whole = load_sweep(file, ["search.rungs=[]"])
    prefix, adapter, finetune = arm_works(whole, num_slots=64, num_workers=1)
    assert (prefix.at_once, prefix.search.reached) == (2, (8,))
    assert (prefix.search.steps, prefix.search.evaluations) == (8 * 8, 8)
    assert (prefix.candidates, prefix.finals, prefix.final_steps, prefix.rows_per_step) == (2, 3, 5 * 8, 6)
    assert (adapter.arm.num_trials, adapter.search.reached) == (3, (3,))
    assert (finetune.search.steps, finetune.final_steps) == (0, 3 * 8) and not finetune.by_policy
    (found,) = prefix.by_policy.values()
    assert found.regret == 0, "where all trials end the best one is found"


def test_the_steps_are_those_of_the_trials_that_come_to_each_rung(config: SweepConfig) -> None:
    prefix, adapter, _ = arm_works(config, num_slots=64, num_workers=1)
    for arm, num_trials in ((prefix, 8), (adapter, 3)):
        first, second, end = arm.search.reached
        assert num_trials == first > second >= end > 0
        assert arm.search.steps == pytest.approx(first * 2 + second * 2 + end * 4)
        assert arm.search.evaluations == pytest.approx(DEV_SAMPLE * first + second + end)


def test_an_arm_with_a_schedule_of_its_own_is_counted_by_it(file: Path) -> None:
    longer = load_sweep(file, ["arms.prefix.num_steps=20"])
    prefix, adapter, _ = arm_works(longer, num_slots=64, num_workers=1)
    first, second, end = prefix.search.reached
    assert prefix.search.steps == pytest.approx(first * 2 + second * 2 + end * 16)
    assert (prefix.final_steps, adapter.final_steps) == ((prefix.candidates + 3) * 20, (adapter.candidates + 3) * 8)
    assert longer.arm("prefix").trial({"preseqlen": 4, "mid_dim": None, "learning_rate": 1e-3}).num_steps == 20
    assert longer.arm("adapter").trial({"bottleneck": 4}).num_steps == 8


def test_full_fine_tuning_has_as_many_trials_at_once_as_workers(file: Path) -> None:
    config = load_sweep(file, ["arms.finetune.learning_rate={log_uniform: [1e-5, 1e-3]}", "search.concurrency=null"])
    finetune = arm_works(config, num_slots=64, num_workers=1)[-1]
    assert finetune.at_once == 1
    assert arm_works(config, num_slots=64, num_workers=4)[-1].at_once == 4


def test_a_quarter_of_the_trials_runs_at_once_and_eight_at_least(file: Path) -> None:
    def at_once(num_trials: int, num_slots: int = 64) -> int:
        config = load_sweep(file, ["search.concurrency=null", f"search.num_trials={num_trials}"])
        return arm_works(config, num_slots=num_slots, num_workers=1)[0].at_once

    assert [at_once(num_trials) for num_trials in (4, 8, 32, 33, 64)] == [4, 8, 8, 9, 16]
    assert at_once(64, num_slots=2) == 2


def test_each_policy_is_counted_and_the_one_of_the_file_is_used(file: Path) -> None:
    names = get_args(PolicyName)
    counted = {
        name: arm_works(load_sweep(file, [f"search.policy={name}"]), num_slots=64, num_workers=1) for name in names
    }
    for name, (prefix, _, finetune) in counted.items():
        assert prefix.search == prefix.by_policy[name] and finetune.by_policy == {}
        assert prefix.by_policy == counted["stop"][0].by_policy and tuple(prefix.by_policy) == names
    steps = {counted[name][0].search.steps for name in ("stop", "promote", "settle", "freeze_thaw")}
    assert len(steps) == 4, "each is replayed by itself"
    named = counted["auto"][0].by_policy
    *sampled, last, end = named["stop"].reached
    assert sampled and named["stop"].evaluations == pytest.approx(DEV_SAMPLE * sum(sampled) + last + end), (
        "all policies but freeze_thaw take a sample at all rungs but the last"
    )
    assert named["freeze_thaw"].evaluations == pytest.approx(sum(named["freeze_thaw"].reached))
    assert named["auto"] == named[AUTO_POLICY], "the file has a share of its own"


def test_with_documents_a_trial_has_a_member_for_each_searched_one_and_all_are_trained_in_the_end(
    config: SweepConfig,
) -> None:
    alone, prefix = (arm_works(config, num_slots=64, num_workers=1, num_documents=count)[0] for count in (1, 6))
    assert (prefix.num_searched, prefix.search.steps) == (4, alone.search.steps)
    assert prefix.member_steps == 4 * alone.member_steps == 4 * alone.search.steps
    assert prefix.finals == 6 * alone.finals and prefix.candidates == 4 * alone.candidates
