"""Recorded curves, and searches that are replayed over them."""

import json
import math
from pathlib import Path

import pytest

from prefixray.planning.recorded import MOST_REPLAYED, curves_text, loss_at, read_curves, recorded, replayed
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.replay import Curve


def test_the_package_has_whole_curves() -> None:
    assert recorded() and all(curves_text().count(f" of {name}") == 1 for name in recorded())
    for curves in recorded().values():
        steps = sorted(curves[0].losses)
        assert len(curves) >= 64 and len(steps) > 8 and all(sorted(curve.losses) == steps for curve in curves)
        assert any(curve.last < curve.losses[steps[0]] for curve in curves)


def test_a_loss_between_two_recorded_steps_lies_on_the_line_and_a_diverged_one_is_infinite(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps([{"lr": 1.0, "curve": {"2": 3.0, "10": 2.0, "20": None, "40": 1.0}}]))
    (curve,) = read_curves(tmp_path / "set.json")
    read = [loss_at(curve, share) for share in (0.01, 0.05, 0.15, 0.25, 0.4, 0.5, 0.7, 1.0)]
    assert read == [3.0, 3.0, 2.5, 2.0, math.inf, math.inf, math.inf, 1.0]
    assert loss_at(Curve({1: 2.0, 3: 1.0}), 2 / 3) == pytest.approx(1.5)


def test_replays_are_the_same_again_and_a_policy_that_keeps_less_takes_less() -> None:
    def run(keep: float, num_trials: int = 16, num_seats: int = 4) -> tuple[float, float]:
        rungs = (100, 200)
        found = replayed(lambda: Promotion(rungs, keep), num_trials=num_trials, num_steps=1000, num_seats=num_seats)
        assert found.reached[0] == num_trials and found.regret >= 0
        return found.steps, found.reached[-1]

    assert run(0.25) == run(0.25)
    assert run(0.25)[0] < run(0.5)[0] < run(1.0)[0] <= 16 * 1000
    large, small = run(0.5, 4 * MOST_REPLAYED, 64), run(0.5, MOST_REPLAYED, 16)
    assert large == (4 * small[0], 4 * small[1])


def test_without_rungs_all_trials_come_to_the_end_and_nothing_is_lost() -> None:
    found = replayed(Halving, num_trials=8, num_steps=50, num_seats=2)
    assert (found.reached, found.steps, found.regret) == ((8,), 400, 0)
