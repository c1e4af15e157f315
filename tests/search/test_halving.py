"""Successive halving: dev losses in, verdicts out."""

import pytest

from prefixray.search.halving import Halving


def test_the_first_trial_at_a_rung_goes_on_and_a_worse_one_after_it_does_not() -> None:
    halving = Halving((10, 20), keep=0.5)
    assert halving.judge("a", 10, {"a": 2.0}) == "continue"
    assert halving.judge("b", 10, {"b": 2.1}) == "stop"
    assert halving.judge("c", 10, {"c": 1.9}) == "continue"
    assert halving.judge("c", 20, {"c": 3.0}) == "continue", "each rung is judged by its own losses"


def test_trials_that_reach_a_rung_together_all_count_before_any_is_judged() -> None:
    together = {"a": 2.0, "b": 1.0, "c": 1.5}
    halving = Halving((10,), keep=1 / 3)
    assert [halving.judge(trial, 10, together) for trial in together] == ["stop", "continue", "stop"]


@pytest.mark.parametrize(("keep", "num_kept"), [(0.01, 1), (0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4)])
def test_the_share_that_goes_on_is_rounded_up_and_never_nobody(keep: float, num_kept: int) -> None:
    together = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    halving = Halving((10,), keep)
    verdicts = [halving.judge(trial, 10, together) for trial in together]
    assert verdicts == ["continue"] * num_kept + ["stop"] * (4 - num_kept)


def test_equal_losses_are_judged_equally() -> None:
    halving = Halving((10,), keep=0.5)
    assert [halving.judge(trial, 10, {"a": 1.0, "b": 1.0}) for trial in "ab"] == ["continue", "continue"]


def test_a_trial_is_not_judged_again_at_a_rung_that_it_has_passed() -> None:
    halving = Halving((10,), keep=0.5)
    assert halving.judge("a", 10, {"a": 2.0}) == "continue"
    assert halving.judge("b", 10, {"b": 1.0}) == "continue"
    assert halving.judge("a", 10, {"a": 2.0}) == "continue", "it would be stopped now"
    assert halving.judge("c", 10, {"c": 1.5}) == "continue", "second of three"


def test_what_an_earlier_driver_saw_counts_and_what_it_let_pass_goes_on() -> None:
    halving = Halving((10, 20), keep=0.5)
    halving.remember("stopped", {10: 1.0})
    halving.remember("running", {10: 3.0, 15: 2.5})
    assert halving.judge("new", 10, {"new": 2.0}) == "continue", "second of three"
    assert halving.judge("worse", 10, {"worse": 4.0}) == "stop"
    assert halving.judge("running", 10, {"running": 3.0}) == "continue"
    assert halving.judge("stopped", 10, {"stopped": 5.0}) == "stop", "its rung is its last step: it waits there still"


def test_a_trial_is_expected_to_take_fewer_steps_than_its_schedule_where_rungs_stop_some() -> None:
    assert Halving().expected_steps(40) == 40
    assert Halving((10, 20), keep=0.5).expected_steps(40) == 10 + 0.5 * 10 + 0.25 * 20
    assert Halving((10, 20), keep=1.0).expected_steps(40) == 40
