"""The rows of a search, and the time that it will take."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_pool import Driver

from prefixray.driver.books import status_board
from prefixray.search.policies.halving import Halving


def test_rows_say_what_an_earlier_driver_left_and_what_this_one_adopts(tmp_path: Path) -> None:
    earlier = Driver(tmp_path)
    done, left = earlier.start()
    earlier.report(left, 10, loss=2.5)
    earlier.report(done, 40, loss=1.5)
    driver = Driver(tmp_path)
    (row,) = driver.coordinator.view("", "search").rows
    assert (row.name, row.state, row.step, row.score) == (done, "done", 40, 1.5)
    assert driver.start() == [left, "prefix/2"]
    view = driver.coordinator.view("", "search")
    assert [(row.name, row.state, row.adopted) for row in view.rows[1:]] == [
        (left, "running", True),
        ("prefix/2", "running", False),
    ]
    assert view.budget == "prefix 3 of 4 trials, 2 at once"


def test_a_loss_over_a_sample_of_dev_is_marked_also_by_the_next_driver(tmp_path: Path) -> None:
    driver = Driver(tmp_path, 2, policy=Halving((10, 20), keep=0.5), dev_sample=0.25)
    best, other = driver.start()
    assert driver.report(best, 10, loss=2.0, rung=10) and not driver.report(other, 10, loss=3.0, rung=10)
    assert [row.score_text for row in driver.coordinator.view("", "search").rows] == ["~2.000", "~3.000"]
    driver.report(best, 40, loss=1.5)
    for picture in (driver, Driver(tmp_path, 2, policy=Halving((10, 20), keep=0.5), dev_sample=0.25)):
        rows = {row.name: row.score_text for row in picture.coordinator.view("", "search").rows}
        assert (rows[best], rows[other]) == ("1.500", "~3.000")
    assert driver.study.records()[1].reports == {10: 3.0}, "the search compares it as any loss"


def test_the_time_left_is_that_of_the_steps_to_come_at_this_drivers_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Driver(tmp_path)
    earlier.report(earlier.start()[0], 40)
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(status_board, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    driver = Driver(tmp_path)
    assert driver.coordinator.view("", "search").seconds_left is None, "no step was taken by this driver"
    driver.report(driver.start()[0], 10)
    num_expected = 4 * (10 + 0.5 * 30)  # half of the four trials is stopped at step 10
    assert driver.coordinator.view("", "search").seconds_left == (num_expected - 40 - 10) / (10 / 20.0)


def test_steps_before_a_checkpoint_are_not_at_this_drivers_pace(tmp_path: Path) -> None:
    earlier = Driver(tmp_path)
    assert earlier.start() == ["prefix/0", "prefix/1"]
    (tmp_path / "trials" / "prefix" / "1" / "step-20").mkdir(parents=True)
    driver = Driver(tmp_path)
    driver.start()
    view = driver.coordinator.view("", "search")
    assert [row.step for row in view.rows] == [0, 20] and view.seconds_left is None, "this driver has taken no step"
