"""The work of each arm: by hand on a small file, and against the rule of the rungs."""

import itertools
import math
from pathlib import Path

import pytest

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.planning.work import arm_works, expected_passes


def test_the_counts_of_a_small_sweep_are_those_by_hand(config: SweepConfig) -> None:
    prefix, adapter, finetune = arm_works(config, num_slots=64, num_workers=1)
    assert (prefix.at_once, prefix.generations, prefix.together) == (2, 4, (8, 4, 2))
    # In pairs one of two passes; then one by one 1, 1/2, 2/3 and 2/4 of a trial.
    assert prefix.expected == pytest.approx((8, 4, 1 + 1 / 2 + 2 / 3 + 2 / 4))
    assert prefix.search_steps == pytest.approx(8 * 2 + 4 * 2 + (8 / 3) * 4)
    assert prefix.search_evaluations == pytest.approx(8 + 4 + 8 / 3)
    assert (prefix.candidates, prefix.finals, prefix.final_steps, prefix.rows_per_step) == (2, 3, 5 * 8, 6)
    assert (adapter.arm.num_trials, adapter.generations, adapter.together) == (3, 2, (3, 2, 1))
    assert (adapter.candidates, finetune.candidates) == (0, 0), "with one full run there is nothing to compare"
    assert (finetune.generations, finetune.search_steps, finetune.final_steps) == (0, 0, 3 * 8)


def test_an_arm_with_a_schedule_of_its_own_is_counted_by_it(file: Path) -> None:
    longer = load_sweep(file, ["arms.prefix.num_steps=20"])
    prefix, adapter, _ = arm_works(longer, num_slots=64, num_workers=1)
    assert prefix.search_steps == pytest.approx(8 * 2 + 4 * 2 + (8 / 3) * 16)
    assert (prefix.final_steps, adapter.final_steps) == (5 * 20, 3 * 8)
    assert longer.arm("prefix").trial({"preseqlen": 4, "mid_dim": None, "learning_rate": 1e-3}).num_steps == 20
    assert longer.arm("adapter").trial({"bottleneck": 4}).num_steps == 8


def test_full_fine_tuning_has_as_many_trials_at_once_as_workers(file: Path) -> None:
    config = load_sweep(file, ["arms.finetune.learning_rate={log_uniform: [1e-5, 1e-3]}", "search.concurrency=null"])
    finetune = arm_works(config, num_slots=64, num_workers=1)[-1]
    assert (finetune.at_once, finetune.generations) == (1, 8)
    assert arm_works(config, num_slots=64, num_workers=4)[-1].at_once == 2, "a quarter of the trials at most"


def test_each_policy_has_its_steps_and_the_one_of_the_file_is_counted(file: Path) -> None:
    counted = {
        name: arm_works(load_sweep(file, [f"search.policy={name}"]), num_slots=64, num_workers=1)
        for name in ("stop", "promote", "settle")
    }
    for name, (prefix, adapter, finetune) in counted.items():
        assert prefix.search_steps == prefix.steps_by_policy[name] and finetune.steps_by_policy == {}
        assert prefix.steps_by_policy == counted["stop"][0].steps_by_policy and adapter.steps_by_policy.keys() == {
            "auto",
            *counted,
        }
    promote, settle = counted["promote"][0], counted["settle"][0]
    assert promote.together == (8, 4, 2) and settle.together == (8, 4, 1), (
        "ranks have settled: the best one goes on alone"
    )
    assert promote.expected[0] == 8 and 4 <= promote.expected[1] < 6 and 2 <= promote.expected[2] <= promote.expected[1]
    assert settle.expected[1] <= promote.expected[1] + 1 and 1 <= settle.expected[2] < 2.5


@pytest.mark.parametrize(("num_trials", "at_once", "keep"), [(6, 1, 0.5), (6, 2, 0.33), (6, 3, 0.5), (5, 2, 0.7)])
def test_the_expected_passes_are_the_mean_over_all_orders(num_trials: int, at_once: int, keep: float) -> None:
    passes = 0
    for order in itertools.permutations(range(num_trials)):
        for start in range(0, num_trials, at_once):
            seen = sorted(order[: start + at_once])
            passes += sum(seen.index(one) < math.ceil(keep * len(seen)) for one in order[start : start + at_once])
    assert expected_passes(num_trials, at_once, keep) == pytest.approx(passes / math.factorial(num_trials))


def test_with_documents_a_trial_has_a_member_for_each_searched_one_and_all_are_trained_in_the_end(
    config: SweepConfig,
) -> None:
    alone, prefix = (arm_works(config, num_slots=64, num_workers=1, num_documents=count)[0] for count in (1, 6))
    assert (prefix.num_searched, prefix.search_steps) == (4, alone.search_steps)
    assert prefix.member_steps == 4 * alone.member_steps == 4 * alone.search_steps
    assert prefix.finals == 6 * alone.finals and prefix.candidates == 4 * alone.candidates
