"""Stopping when ranks have settled: how high trials climb, and who comes to the end."""

from collections.abc import Mapping, Sequence

import pytest

from prefixray.search.policies.halving import Promotion
from prefixray.search.policies.settling import Settling

RUNGS = (2, 4, 8, 16)


def climb(policy: Settling, curves: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Run trials by their losses at the rungs, one at a time; how many rungs each has passed, of 4 where it ended."""
    passed: dict[str, int] = {}
    waiting = list(curves)
    while True:
        trial = policy.take_up(more_come=bool(waiting))
        if trial is not None:
            passed[trial] += 1
        elif waiting:
            trial = waiting.pop(0)
            passed[trial] = 0
        else:
            return passed
        while passed[trial] < len(RUNGS):
            step, loss = RUNGS[passed[trial]], curves[trial][passed[trial]]
            if policy.judge(trial, step, {trial: loss}, more_come=bool(waiting)) != "continue":
                break
            passed[trial] += 1


def test_where_ranks_have_settled_trials_climb_to_the_second_rung_and_the_best_one_alone_to_the_end() -> None:
    ever_better = {name: (9.0 - n, 8.0 - n, 7.0 - n, 6.0 - n) for n, name in enumerate("abcdefgh")}
    assert climb(Settling(RUNGS, keep=0.5), ever_better) == {"a": 0, "b": 0, **dict.fromkeys("cdefg", 1), "h": 4}
    promoted = climb(Promotion(RUNGS, keep=0.5), ever_better)
    assert list(promoted.values()) == [0, 0, 1, 1, 2, 2, 4, 4], "promotion takes more of them higher"


def test_where_the_second_rung_orders_trials_anew_they_climb_to_the_third() -> None:
    curves = {name: (2 + n / 10, 1.5 + n / 10, 1 + n / 10, 0.5 + n / 10) for n, name in enumerate("abcdefgh")}
    assert climb(Settling(RUNGS, keep=0.5), curves)["c"] == 1
    curves["a"] = (2.0, 1.75, 1.5, 1.0)  # it falls behind b and c
    passed = climb(Settling(RUNGS, keep=0.5), curves)
    assert passed == {"a": 1, "b": 4, "c": 2, "d": 1, "e": 0, "f": 0, "g": 0, "h": 0}


@pytest.mark.parametrize(("apart", "verdict"), [(0.04, "pause"), (0.06, "continue")])
def test_trials_that_keep_overtaking_each_other_show_the_noise_within_which_any_order_will_do(
    apart: float, verdict: str
) -> None:
    policy = Settling(RUNGS, keep=1.0)
    policy.remember("a", {2: 2.0, 4: 1.5 - apart, 8: 1.05})
    policy.remember("b", {2: 1.9, 4: 1.5, 8: 1.0})
    policy.remember("far behind", {2: 9.0, 4: 9.0, 8: 9.0})
    assert policy.judge("b", 8, {"b": 1.0}) == verdict, "at step 8 they lie 0.05 apart"


def test_the_next_driver_lets_trials_climb_as_high_as_the_last_one_did() -> None:
    policy = Settling(RUNGS, keep=0.5)
    policy.remember("a", {2: 2.0, 4: 1.0, 8: 0.9}, "pause")
    policy.remember("b", {2: 2.1, 4: 1.1, 8: 1.0})
    policy.remember("c", {2: 2.2, 4: 0.8}, "pause")
    assert policy.take_up(more_come=True) == "c", "the top is the third rung: it may climb from the second"
    assert policy.take_up(more_come=True) is None
    assert policy.take_up(more_come=False) == "a", "the best at the top"
    assert policy.judge("a", 16, {"a": 0.7}, more_come=False) == "continue"
    assert policy.judge("c", 8, {"c": 0.8}, more_come=False) == "continue", "a better one comes later"


def test_a_failed_trial_leaves_the_last_climb_to_the_next_best() -> None:
    policy = Settling(RUNGS, keep=0.5)
    losses = {"a": 1.0, "b": 2.0}
    assert [policy.judge(trial, 2, losses, more_come=False) for trial in "ab"] == ["continue", "pause"]
    assert policy.judge("a", 4, {"a": 1.0}, more_come=False) == "continue", "the best at the top"
    policy.fail("a")
    assert policy.take_up(more_come=False) == "b"
    assert policy.judge("b", 4, {"b": 2.0}, more_come=False) == "continue"


def test_the_steps_that_are_expected_are_those_up_to_the_second_rung() -> None:
    assert Settling(RUNGS, keep=0.5).expected_steps(40) == 2 + 0.5 * 2
    assert Settling((10,), keep=0.5).expected_steps(40) == 10 + 0.5 * 30
    assert Settling().expected_steps(40) == 40
