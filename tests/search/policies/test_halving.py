"""Successive halving, by stopping and by promotion: dev losses in, verdicts out."""

import pytest

from prefixray.search.policies.halving import Halving, Promotion


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


def test_by_promotion_a_trial_that_pauses_goes_on_once_it_is_among_the_best_of_three_or_more() -> None:
    promotion = Promotion((10, 20), keep=0.5)
    assert promotion.judge("a", 10, {"a": 2.0}) == "pause"
    assert promotion.judge("b", 10, {"b": 3.0}) == "pause"
    assert promotion.take_up(more_come=True) is None, "it waits for a third one"
    assert promotion.judge("c", 10, {"c": 4.0}) == "pause"
    assert [promotion.take_up(more_come=True) for _ in range(2)] == ["a", None], "0.3 of three is one as yet"
    assert promotion.judge("a", 10, {"a": 2.0}) == "continue", "it may come back there from its checkpoint"
    assert promotion.judge("d", 10, {"d": 1.5}) == "continue", "the best of four"
    assert promotion.take_up(more_come=True) is None
    assert promotion.judge("e", 10, {"e": 2.5}, more_come=False) == "continue", "half of five are three in the end"
    assert promotion.take_up(more_come=False) is None


def test_the_highest_rung_is_served_first_and_two_pass_at_least() -> None:
    promotion = Promotion((10, 20), keep=0.4)
    losses = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    verdicts = [promotion.judge(trial, 10, losses, more_come=False) for trial in "abcd"]
    assert verdicts == ["continue", "continue", "pause", "pause"]
    promotion.resume("c")
    for trial, loss in {"a": 0.9, "b": 1.9, "c": 2.5}.items():
        verdict = promotion.judge(trial, 20, {trial: loss}, more_come=False)
        assert verdict == ("pause" if trial == "c" else "continue"), "two at least pass"
    assert promotion.take_up(more_come=False) is None
    promotion.fail("a")
    assert [promotion.take_up(more_come=False) for _ in range(2)] == ["c", None]
    promotion.fail("b")
    assert [promotion.take_up(more_come=False) for _ in range(2)] == ["d", None], (
        "those that have failed leave their places"
    )


def test_a_paused_trial_goes_on_by_hand_and_one_that_has_failed_leaves_its_place_to_the_next() -> None:
    promotion = Promotion((10,), keep=0.5)
    losses = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    verdicts = [promotion.judge(trial, 10, losses, more_come=False) for trial in "abcd"]
    assert verdicts == ["continue", "continue", "pause", "pause"]
    promotion.resume("d")
    assert promotion.judge("d", 10, {"d": 4.0}) == "continue"
    promotion.fail("a")
    promotion.fail("b")
    assert promotion.take_up(more_come=True) is None, "two are left there"
    assert promotion.take_up(more_come=False) == "c"
    promotion.fail("nobody")
    promotion = Promotion((10,), keep=0.3)
    promotion.fail("a")
    both = {"a": 1.0, "b": 2.0}
    assert promotion.judge("b", 10, both, more_come=False) == "continue", "a was stopped before b's report came"


def test_what_an_earlier_driver_has_paused_pauses_and_what_it_took_up_goes_on() -> None:
    promotion = Promotion((10, 20), keep=0.5)
    promotion.remember("paused", {5: 3.0, 10: 2.0}, "pause")
    promotion.remember("taken up", {10: 3.0}, "continue")
    promotion.remember("further", {10: 2.5, 20: 2.0, 25: 1.9})
    promotion.remember("unknown", {10: 5.0})
    assert promotion.judge("taken up", 10, {"taken up": 3.0}) == "continue"
    assert promotion.judge("further", 20, {"further": 2.0}) == "continue"
    assert promotion.judge("unknown", 10, {"unknown": 5.0}) == "pause"
    assert promotion.take_up(more_come=True) == "paused"
    assert promotion.take_up(more_come=True) is None


def test_trials_of_one_kind_compete_at_all_rungs_but_the_last() -> None:
    promotion = Promotion((10, 20), keep=0.25)
    early = {"flat 1": 1.0, "flat 2": 1.1, "flat 3": 1.2, "network 1": 3.0, "network 2": 2.0, "network 3": 2.5}
    for trial in early:
        promotion.begin(trial, trial.split()[0])
    verdicts = {trial: promotion.judge(trial, 10, early) for trial in early}
    assert [trial for trial, verdict in verdicts.items() if verdict == "continue"] == ["flat 1", "network 2"]
    promotion.resume("network 3")
    late = {"flat 1": 0.9, "network 2": 0.8, "network 3": 1.0}
    verdicts = {trial: promotion.judge(trial, 20, late, more_come=False) for trial in late}
    assert list(verdicts.values()) == ["continue", "continue", "pause"], "the last rung is for all"


def test_above_the_first_rung_a_trial_waits_for_rivals_while_trials_are_to_come() -> None:
    promotion = Promotion((10, 20), keep=0.4)
    promotion.remember("a", {20: 2.0}, "pause")
    assert promotion.take_up(more_come=True) is None
    assert promotion.judge("b", 20, {"b": 1.9}) == "pause"
    assert promotion.judge("c", 20, {"c": 2.5}) == "pause" and promotion.take_up(more_come=True) == "b", "of three"
    assert [promotion.take_up(more_come=False) for _ in range(2)] == ["a", None], "two of them in the end"
    alone = Promotion((10, 20), keep=0.4)
    alone.remember("a", {20: 2.0}, "pause")
    assert alone.take_up(more_come=False) == "a", "nobody else comes"


def test_a_trial_that_comes_alone_goes_on_where_no_other_is_to_come() -> None:
    promotion = Promotion((10, 20), keep=0.4)
    promotion.remember("a", {10: 2.0}, "pause")
    assert promotion.take_up(more_come=True) is None
    assert promotion.take_up(more_come=False) == "a"
    assert promotion.judge("a", 20, {"a": 2.0}, more_come=False) == "continue"


def test_the_share_is_rounded_and_two_pass_at_least() -> None:
    for num_trials, num_kept in {1: 1, 2: 2, 4: 2, 8: 2, 9: 3, 11: 3, 12: 4}.items():
        promotion = Promotion((10,), keep=0.3)
        losses = {str(number): float(number) for number in range(num_trials)}
        verdicts = [promotion.judge(trial, 10, losses, more_come=False) for trial in losses]
        assert verdicts.count("continue") == num_kept
