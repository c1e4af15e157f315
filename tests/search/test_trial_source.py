"""What a study is told of its trials, and what it remembers."""

import math
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.studies import SPACE, ask, make_arm, open_study

from prefixray.search.trial_source import Proposal


def test_there_are_exactly_num_trials_whatever_became_of_them(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_arm(SPACE, 4))
    numbers = [ask(study).number for _ in range(4)]
    assert study.ask() is None
    study.tell(numbers[0], "done", 1.5)
    study.tell(numbers[1], "stopped", None)
    study.tell(numbers[2], "failed", None, "out of memory")
    assert study.ask() is None
    assert [record.state for record in study.records()] == ["done", "stopped", "failed", "running"]
    assert study.records()[2].note == "out of memory"


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_not_finite_is_told_as_failed(tmp_path: Path, value: float | None) -> None:
    study = open_study(tmp_path, make_arm(SPACE, 2))
    number = ask(study).number
    study.report(number, 10, math.nan)
    study.tell(number, "done", value)
    record = open_study(tmp_path, make_arm(SPACE, 2)).records()[0]
    assert (record.state, record.value, dict(record.reports)) == ("failed", None, {})
    assert str(value) in (record.note or "")


def test_telling_and_reporting_again_are_harmless(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_arm(SPACE, 2))
    number = ask(study).number
    study.report(number, 10, 2.5)
    study.report(number, 10, 2.4)
    study.tell(number, "stopped", None)
    study.tell(number, "done", 1.0)
    study.report(number, 20, 1.0)
    record = study.records()[0]
    assert (record.state, record.value, dict(record.reports)) == ("stopped", 2.5, {10: 2.5})


def test_the_best_are_the_lowest_done_and_stopped_ones_only_without_any(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_arm(SPACE, 6))
    numbers = [ask(study).number for _ in range(6)]
    for number, step, value in zip(numbers[:3], (10, 10, 20), (1.0, 0.5, 0.7), strict=True):
        study.report(number, step, value)
        study.tell(number, "stopped", value)
    assert [record.number for record in study.best(6)] == [2, 1, 0], "the one that has come further comes first"
    for number, value in zip(numbers[3:], (3.0, 2.0, 2.0), strict=True):
        study.tell(number, "done", value)
    assert [record.number for record in study.best(2)] == [4, 5]


def test_a_paused_trial_runs_to_optuna_and_is_asked_for_again_only_once_it_is_resumed(tmp_path: Path) -> None:
    study = open_study(tmp_path, make_arm(SPACE, 3))
    first, second = ask(study), ask(study)
    study.report(first.number, 10, 2.0)
    study.pause(first.number, 10, {"dev/loss": 2.0, "train/seconds": 3.0})
    again = open_study(tmp_path, make_arm(SPACE, 3))
    assert [trial.state for trial in again._study.trials] == [TrialState.RUNNING] * 2
    record = again.records()[0]
    assert (record.state, record.last_step, record.resumed_from) == ("paused", 10, None)
    assert record.paused_with == {"dev/loss": 2.0, "train/seconds": 3.0} and record.is_open
    assert ask(again).number == second.number, "that ran"
    again.resume(first.number, "a request")
    assert (again.records()[0].state, again.records()[0].resumed_by) == ("running", "a request")
    assert ask(again) == Proposal(first.number, first.values, adopted=True, resumed_from=10)
    again.report(first.number, 20, 1.5)
    again.pause(first.number, 20, {})
    last = open_study(tmp_path, make_arm(SPACE, 3))
    assert last.records()[0].state == "paused", "at another step"
    assert last.records()[0].pauses == ({"step": 10, "resumed": "by hand"}, {"step": 20, "resumed": None})
    last.resume(first.number)
    last.pause(first.number, 30, {})
    assert [pause["resumed"] for pause in last.records()[0].pauses] == ["by hand", "by policy", None]
    last.tell(first.number, "stopped", None, "at rung 2")
    assert (last.records()[0].state, last.records()[0].value) == ("stopped", 1.5)
