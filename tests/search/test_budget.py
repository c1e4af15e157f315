"""What a search has spent goes on from driver to driver."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefixray.config.schema import SearchConfig, StopWhen
from prefixray.search import budget as budget_module
from prefixray.search.budget import Budget, found_enough
from prefixray.search.trial_source import Record, State


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, by hand; in hours."""
    clock = SimpleNamespace(hours=0.0)
    monkeypatch.setattr(budget_module, "time", SimpleNamespace(monotonic=lambda: 1e6 + 3600 * clock.hours))
    return clock


def _budget(folder: Path, **most: float) -> Budget:
    return Budget(folder, SearchConfig(num_trials=4, **most))  # type: ignore[arg-type]


def test_hours_of_earlier_drivers_count(tmp_path: Path, clock: SimpleNamespace) -> None:
    for number in range(3):
        budget = _budget(tmp_path, max_hours=2.5)
        assert budget.problem() is None, number
        clock.hours += 1  # before this driver's first look
        budget.note(0.0)
        if number < 2:
            clock.hours += 1 / 120  # lost: it is killed half a minute later
    told = "search.max_hours: 3 of 2.5 hours are spent: no trial is started any more, unless it is raised"
    assert budget.problem() == told == _budget(tmp_path, max_hours=2.5).problem()
    assert _budget(tmp_path, max_hours=4).problem() is None and _budget(tmp_path).problem() is None


def test_hours_of_devices_count_apart(tmp_path: Path, clock: SimpleNamespace) -> None:
    for device_hours in (3, 4):
        budget = _budget(tmp_path, max_hours=9, max_gpu_hours=6.5)
        for hours in range(device_hours):
            budget.note(3600.0 * hours)
        assert budget.problem() is None
        budget.note(3600.0 * device_hours, is_last=True)
    assert "search.max_gpu_hours: 7 of 6.5 hours" in (_budget(tmp_path, max_gpu_hours=6.5).problem() or "")


def test_what_the_final_stage_takes_is_not_the_searchs(tmp_path: Path, clock: SimpleNamespace) -> None:
    budget = _budget(tmp_path, max_hours=1, max_gpu_hours=1)
    clock.hours += 0.4
    budget.note(0.4 * 3600, is_last=True)
    clock.hours += 5
    budget.resume(5.4 * 3600)
    clock.hours += 0.4
    budget.note(5.8 * 3600, is_last=True)
    assert budget.problem() is None and _budget(tmp_path, max_hours=0.7).problem() is not None


def test_final_runs_that_outlast_the_searches_are_not_counted(tmp_path: Path, clock: SimpleNamespace) -> None:
    budget = _budget(tmp_path, max_hours=1.0)
    clock.hours += 0.4
    budget.note(0.4 * 3600)
    clock.hours += 3
    budget.note(3.4 * 3600, counts=False)
    assert budget.problem() is None
    clock.hours += 0.7
    budget.note(4.1 * 3600)  # a request has gone on with a search
    assert "1.1 of 1 hours are spent" in (budget.problem() or "")


@pytest.mark.parametrize("left", ["", "[]", '{"max_hours": "x"}', '{"max_hours": NaN, "max_gpu_hours": 1}'])
def test_a_file_that_its_disk_has_damaged_counts_as_nothing(tmp_path: Path, left: str) -> None:
    (tmp_path / "spent.json").write_text(left)
    assert _budget(tmp_path, max_hours=1).problem() is None


def _record(number: int, state: State, value: float | None, ended: float | None) -> Record:
    return Record(number, {}, state, value, {}, None, ended=ended)


def test_trials_without_a_new_best_count_from_the_best_ones_end() -> None:
    """The best trial may have begun long before others that have ended."""
    two = StopWhen(no_better=2)
    earlier = [_record(1, "done", 2.0, 10.0), _record(2, "done", 2.5, 11.0), _record(3, "stopped", 3.0, 12.0)]
    assert found_enough([_record(0, "running", None, None), *earlier], two) is not None
    late_best = [_record(0, "done", 1.5, 20.0), *earlier]
    assert found_enough(late_best, two) is None
    later = [*late_best, _record(4, "failed", None, 21.0), _record(5, "running", None, None)]
    assert found_enough(later, two) is None
    told = "2 trials in a row were no better than trial 0 with dev/loss 1.5"
    assert found_enough([*later, _record(6, "stopped", 1.4, 22.0)], two) == told  # a stopped trial's is no final loss
    paused = [replace(_record(number, "paused", None, None), began=began) for number, began in ((7, 19.0), (8, 20.5))]
    assert found_enough([*later, paused[0]], two) is None, "it has begun before the best one had ended"
    assert found_enough([*later, *paused], two) == told
    unresumed = replace(_record(7, "stopped", None, 22.0), began=19.0, pauses=({"step": 4, "resumed": None},))
    assert found_enough([*later, unresumed], two) is None, "it has ended in its pause"
    resumed = replace(unresumed, pauses=({"step": 4, "resumed": "by policy"},))
    assert found_enough([*later, resumed], two) == told
    assert found_enough([_record(0, "failed", None, 1.0), _record(1, "failed", None, 2.0)], two) is None
