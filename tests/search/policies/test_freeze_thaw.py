"""Freeze-thaw: what a curve promises, who pauses and comes back, and what the next driver decides."""

import random

import pytest

from prefixray.search.policies.freeze_thaw import FreezeThaw, predicted
from prefixray.search.policies.replay import Curve, Search

RUNGS = (5, 10, 20, 40, 70)
STEPS = (*RUNGS, 100)


def law(offset: float, slope: float, exponent: float) -> dict[int, float]:
    return {step: offset + slope * (step / 100) ** -exponent for step in STEPS}


def test_a_curve_that_follows_a_power_law_is_foretold_the_better_the_more_of_it_is_known() -> None:
    for curve in (law(1.5, 0.2, 0.6), law(1.8, 0.1, 1.0), law(1.4, 0.3, 0.3)):
        spreads = []
        for known in (2, 3, 5):
            mean, spread = predicted({step: curve[step] for step in RUNGS[:known]}, 100, lowest=curve[20])
            assert abs(mean - curve[100]) < max(2 * spread, 0.05)
            spreads.append(spread)
        assert spreads[0] > spreads[1] > spreads[2]


def test_a_trial_that_promises_little_pauses_and_comes_back_once_the_others_disappoint() -> None:
    policy = FreezeThaw(RUNGS, 100)
    steep = {5: 3.0, 10: 2.5}
    assert policy.judge("a", 5, {"a": 2.0}) == "continue", "the only one is the best one"
    assert policy.judge("b", 5, {"b": 3.0}) == "pause"
    assert policy.judge("c", 5, {"c": steep[5]}) == "pause"
    assert policy.take_up(more_come=True) is None, "a new trial promises more"
    for rung in RUNGS[1:3]:
        assert policy.judge("a", rung, {"a": 2.0}, more_come=False) == "continue"
    policy.fail("a")
    assert policy.take_up(more_come=False) == "b"
    assert policy.judge("b", 10, {"b": 2.9}, more_come=False) == "continue"
    assert policy.take_up(more_come=False) in ("c", None)


@pytest.mark.parametrize("seed", range(4))
def test_the_next_driver_decides_as_the_last_one_would_have(seed: int) -> None:
    rng = random.Random(seed)
    curves = {str(n): law(rng.uniform(1.4, 2.2), rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.8)) for n in range(8)}
    policy, verdicts, reports = FreezeThaw(RUNGS, 100), {}, {}
    for trial, curve in curves.items():
        for rung in RUNGS:
            reports.setdefault(trial, {})[rung] = curve[rung]
            verdicts[trial] = policy.judge(trial, rung, {trial: curve[rung]}, more_come=True)
            if verdicts[trial] == "pause":
                break
        else:
            reports[trial][100], verdicts[trial] = curve[100], None
    policy.fail("3")
    policy.end("3")
    again = FreezeThaw(RUNGS, 100)
    for trial, losses in reports.items():
        again.remember(trial, losses, verdicts[trial])
    again.fail("3")
    assert "pause" in verdicts.values()
    taken = [(policy.take_up(more_come=False), again.take_up(more_come=False)) for _ in range(9)]
    assert all(one == other for one, other in taken) and taken[-1] == (None, None)
    for trial in curves.keys() - {"3"}:
        for more_come in (False, True):
            last = max(step for step in reports[trial] if step in RUNGS)
            higher = [rung for rung in RUNGS if rung > last][:1]
            for rung in higher:
                losses = {trial: curves[trial][rung]}
                assert policy.judge(trial, rung, losses, more_come=more_come) == again.judge(
                    trial, rung, losses, more_come=more_come
                )


@pytest.mark.parametrize("num_seats", [1, 3, 8])
def test_a_search_ends_with_a_whole_trial_and_little_regret_at_less_than_all_work(num_seats: int) -> None:
    rng = random.Random(num_seats)
    curves = [Curve(law(rng.uniform(1.4, 2.2), rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.8))) for _ in range(24)] + [
        Curve(dict.fromkeys(STEPS, float("inf")))
    ]
    search = Search(curves, FreezeThaw(RUNGS, 100), evaluation=0.0)
    search.run(num_seats)
    assert search.num_ended() >= 1 and search.work < 0.6 * 100 * len(curves)
    assert search.final_regret() < 0.05 and len(search.steps) == len(curves)
