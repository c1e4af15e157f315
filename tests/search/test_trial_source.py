"""What a study is told of its trials, and what it remembers."""

import math
from pathlib import Path

import pytest
from support.studies import SPACE, ask, make_arm, open_study


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
    study = open_study(tmp_path, make_arm(SPACE, 5))
    numbers = [ask(study).number for _ in range(5)]
    for number, value in zip(numbers[:2], (1.0, 0.5), strict=True):
        study.report(number, 10, value)
        study.tell(number, "stopped", value)
    assert [record.number for record in study.best(5)] == [1, 0]
    for number, value in zip(numbers[2:], (3.0, 2.0, 2.0), strict=True):
        study.tell(number, "done", value)
    assert [record.number for record in study.best(2)] == [3, 4]
