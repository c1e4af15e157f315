"""Trials that pause: who gets their seats, who is resumed, and what outlives a driver.

Pool and reports are played here, but for the last test; `tests/faults/test_kills.py` has a real sweep.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_pool import SPACE, Driver
from support.worker_calls import Call, wait_until

from prefixray.cluster.worker import Worker
from prefixray.config.schema import SearchConfig
from prefixray.config.space import Choice
from prefixray.search.budget import Budget
from prefixray.search.policies.freeze_thaw import FreezeThaw
from prefixray.search.policies.halving import Promotion
from prefixray.search.requests import Extend, Finish, Resume, Stop
from prefixray.tracking.tracker import Tracker
from prefixray.trial import Report, TrialSpec


class Waiting(Promotion):
    """Promotion that rounds down while trials are to come, and for which two trials are enough."""

    _fewest = 1

    def _best(self, rung: int, *, more_come: bool) -> list[str]:
        return super()._best(rung, more_come=more_come)[: len(self._scores[rung]) // 2 if more_come else None]


def promoting(folder: Path, budget: Budget | None = None, num_trials: int = 4) -> Driver:
    """A search in which the better half of the trials goes on from step 10."""
    return Driver(folder, num_trials, policy=Waiting((10,), keep=0.5), budget=budget)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return promoting(tmp_path)


def rows(driver: Driver) -> dict[str, str]:
    return {row.name: row.state_text for row in driver.coordinator.view("", "search").rows}


def pause_two(driver: Driver) -> None:
    """Have trials 0 and 1 pause, at losses of 2.0 and 3.0; trial 2 has the first one's seat."""
    driver.start()
    assert not driver.report("prefix/0", 10, loss=2.0, rung=10), "half of one is none"
    assert driver.start() == ["prefix/2"]
    assert not driver.report("prefix/1", 10, loss=3.0, rung=10)


def test_a_paused_trial_leaves_its_seat_and_goes_on_where_it_stood_once_it_is_among_the_best(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[str] = []
    monkeypatch.setattr(Tracker, "pause", lambda self, key: tracked.append(key))
    pause_two(driver)
    assert driver.states() == ["paused", "paused", "running"] and driver.pool.keys == {"prefix/2"}
    assert rows(driver) == {"prefix/0": "paused at rung 1", "prefix/1": "paused at rung 1", "prefix/2": "running"}
    assert tracked == ["prefix/0", "prefix/1"]
    suggested = driver.coordinator.next()
    assert isinstance(suggested, dict) and suggested["spec"].key == "prefix/0", "it is the better one of two"
    assert suggested["spec"].resumed_from == 10
    (row, *_) = driver.coordinator.view("", "search").rows
    assert (row.state, row.step, row.score, row.adopted, row.note) == ("running", 10, 2.0, True, None)
    assert driver.report("prefix/0", 10, loss=2.0, rung=10), "its worker has died, and it comes back there"
    assert driver.report("prefix/0", 40, loss=1.5) is False
    assert driver.start() == ["prefix/3"] and driver.states() == ["done", "paused", "running", "running"]


class Kinds(Promotion):
    """Promotion that shows which trials it knows to be of which kind."""

    def kinds(self) -> dict[str, str]:
        return dict(self._kinds)


def test_the_policy_knows_of_which_kind_a_trial_is_under_a_later_driver_too(tmp_path: Path) -> None:
    space = {**SPACE, "mid_dim": Choice(choice=(None, 32))}
    policy, later = Kinds((10, 20), keep=0.5), Kinds((10, 20), keep=0.5)
    driver = Driver(tmp_path, 6, space, policy=policy)
    for _ in range(3):
        for key in driver.start():
            driver.report(key, 40, loss=1.0)
    values = {f"prefix/{record.number}": record.values["mid_dim"] for record in driver.study.records()}
    assert set(values.values()) == {None, 32}
    kinds = {key: f"{'flat' if value is None else 'network'}, activation, cat" for key, value in values.items()}
    assert policy.kinds() == kinds
    Driver(tmp_path, 6, space, policy=later)
    assert later.kinds() == kinds


def test_when_nothing_runs_any_more_what_still_pauses_is_stopped_at_its_rung_with_what_it_took(driver: Driver) -> None:
    pause_two(driver)
    driver.start()
    driver.report("prefix/0", 40, loss=1.5)
    driver.start()
    assert driver.report("prefix/2", 10, loss=1.0, rung=10), "no trial comes any more: half of three is two"
    metrics = {"dev/loss": 5.0, "dev/best_loss": 5.0, "train/seconds": 7.0}
    assert not driver.coordinator.on_report(Report("prefix/3", 10, "running", metrics, 10, {"prefix/3": 5.0}))
    assert driver.coordinator.next() is None, "one runs still"
    driver.report("prefix/2", 40, loss=0.9)
    assert driver.coordinator.next() == "FINISHED"
    assert driver.states() == ["done", "stopped", "done", "stopped"]
    assert [record.value for record in driver.study.records()] == [1.5, 3.0, 0.9, 5.0]
    assert rows(driver)["prefix/3"] == "stopped at rung 1"
    result = json.loads((driver.folder / "trials/prefix/3/result.json").read_text())
    assert result["state"] == "stopped" and result["metrics"] == metrics and result["note"] == "at rung 1"


def test_the_next_driver_knows_who_pauses_and_who_was_taken_up(driver: Driver) -> None:
    pause_two(driver)
    assert driver.start() == ["prefix/0"]
    again = promoting(driver.folder)
    assert again.states() == ["running", "paused", "running"]
    assert rows(again) == {"prefix/1": "paused at rung 1"}
    assert again.start() == ["prefix/0", "prefix/2"], "those that ran; the other pauses still"
    assert again.report("prefix/0", 10, loss=2.0, rung=10), "it was resumed there"
    assert not again.report("prefix/2", 10, loss=4.0, rung=10)
    assert again.start() == ["prefix/3"]
    last = promoting(driver.folder)
    assert last.start() == ["prefix/0", "prefix/3"]
    last.report("prefix/0", 40, loss=1.0)
    last.report("prefix/3", 40, loss=1.5)
    while last.coordinator.next() != "FINISHED":
        last.report("prefix/1", 40, loss=1.2)
    assert last.states() == ["done", "done", "stopped", "done"]


def test_under_freeze_thaw_the_next_driver_foresees_what_the_last_one_did(tmp_path: Path) -> None:
    """A trial that disappoints is passed by one that paused; one that promises nothing is stopped at the end."""

    def thawing() -> Driver:
        return Driver(tmp_path, 3, policy=FreezeThaw((10, 20), 40))

    driver = thawing()
    driver.start()
    assert driver.report("prefix/0", 10, loss=2.0, rung=10) and not driver.report("prefix/1", 10, loss=2.6, rung=10)
    assert driver.start() == ["prefix/2"] and not driver.report("prefix/2", 10, loss=9.0, rung=10)
    again = thawing()
    assert again.states() == ["running", "paused", "paused"]
    assert again.start() == ["prefix/0"], "the others promise less"
    assert not again.report("prefix/0", 20, loss=3.5, rung=20)
    assert again.start() == ["prefix/1"] and again.report("prefix/1", 20, loss=1.9, rung=20)
    again.report("prefix/1", 40, loss=1.8)
    assert thawing().coordinator.next() == "FINISHED"
    assert again.study.records()[1].value == 1.8
    assert thawing().states() == ["stopped", "done", "stopped"]


def test_a_paused_trial_goes_on_by_hand(driver: Driver) -> None:
    pause_two(driver)
    assert driver.start() == ["prefix/0"]
    assert driver.ask(Resume(trial="prefix/1")).text == "prefix/1 goes on from step 10"
    driver.report("prefix/2", 40, loss=1.0)
    assert driver.start() == ["prefix/1"], "before any new one"
    refused = driver.ask(Resume(trial="prefix/1"))
    assert (refused.ok, refused.text) == (False, "resume prefix/1: does not pause (running)")
    assert "no such trial" in driver.ask(Resume(trial="prefix/9")).text
    again = promoting(driver.folder)
    assert again.start() == ["prefix/0", "prefix/1"]
    assert again.report("prefix/1", 10, loss=3.0, rung=10), "it goes on by hand"


def test_a_request_to_resume_that_was_not_answered_is_executed_once(driver: Driver) -> None:
    pause_two(driver)
    request_id = driver.inbox.post(Resume(trial="prefix/1"))
    driver.coordinator.resume(driver.stage, driver.stage.record(1), request_id)
    again = promoting(driver.folder)
    again.coordinator.serve()
    answer = again.inbox.answer(request_id, seconds=0)
    assert answer is not None and answer.ok and answer.text == "prefix/1 goes on from step 10"
    assert again.start() == ["prefix/1", "prefix/2"] and again.states() == ["paused", "running", "running"]


def test_a_paused_trial_is_stopped_by_hand_and_with_the_search(driver: Driver) -> None:
    pause_two(driver)
    assert driver.ask(Stop(trial="prefix/0")).text == "prefix/0 is stopped with a dev loss of 2.000 at step 10"
    assert driver.states() == ["stopped", "paused", "running"] and driver.pool.stopped == []
    assert driver.start() == ["prefix/3"], "the other is no half of one"
    text = driver.ask(Finish()).text
    assert "2 running trials are stopped, 1 paused ones end" in text
    for key in ("prefix/2", "prefix/3"):
        driver.coordinator.on_report(Report(key, 12, "stopped"))
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["stopped"] * 4


def test_a_spent_budget_takes_nobody_up_but_by_hand(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SearchConfig(num_trials=4, max_gpu_hours=10 / 3600))
    driver = promoting(tmp_path, budget)
    pause_two(driver)
    driver.pool.device_seconds = 11.0
    driver.coordinator.tick()
    assert driver.coordinator.next() is None
    driver.ask(Resume(trial="prefix/1"))
    assert driver.start() == ["prefix/1"]
    for key in ("prefix/1", "prefix/2"):
        driver.report(key, 40)
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["stopped", "done", "done"]


def test_paused_trials_wait_for_a_worker_and_for_the_next_driver_where_this_one_starts_no_more(driver: Driver) -> None:
    pause_two(driver)
    driver.ask(Extend(num_trials=1))
    driver.coordinator.on_report(Report("prefix/2", 0, "failed", note="no space left", lost=True))
    answer = driver.ask(Resume(trial="prefix/1"))
    assert answer.text == "prefix/1 goes on with the next run of the sweep, since this one starts no more trials"
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["paused", "running", "running"]
    again = promoting(driver.folder)
    assert again.start() == ["prefix/1", "prefix/2"]
    for key in ("prefix/1", "prefix/2"):
        again.report(key, 40)
    again.ask(Finish())
    assert again.coordinator.next() == "FINISHED"


def test_without_a_free_worker_a_paused_trial_is_neither_taken_up_nor_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_two(promoting(tmp_path))
    driver = promoting(tmp_path, num_trials=3)
    driver.coordinator.next()
    driver.report("prefix/2", 40)
    has_room = driver.pool.has_room
    monkeypatch.setattr(driver.pool, "has_room", lambda *, exclusive: False)
    assert driver.coordinator.next() is None
    driver.coordinator.tick()
    assert "rescale 2 0" in driver.pool.calls, "they want a worker"
    assert driver.states() == ["paused", "paused", "done"]
    monkeypatch.setattr(driver.pool, "has_room", has_room)
    assert driver.start() == ["prefix/0", "prefix/1"], "two at least pass"
    for key in ("prefix/0", "prefix/1"):
        driver.report(key, 40)
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["done", "done", "done"]


def test_in_a_real_pack_a_trial_goes_on_by_hand_and_all_have_the_numbers_of_trials_that_never_paused(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = promoting(tmp_path)
    make = driver.stage.spec
    driver.stage = replace(driver.stage, spec=lambda trial: replace(make(trial), may_pause=True))
    driver.coordinator = driver.coordinate(driver.stage)
    release = driver.pool.release
    monkeypatch.setattr(driver.pool, "release", lambda key, **how: (release(key, **how), worker.leave(key, **how)))
    specs, seats, resumed = dict[str, TrialSpec](), dict[str, Call](), ""
    while (suggested := driver.coordinator.next()) != "FINISHED":
        if suggested is not None:
            spec = specs[suggested["spec"].key] = suggested["spec"]
            token = f"{spec.key} from {spec.resumed_from}"
            assert worker.join(spec, token).state == "joined"
            seats[spec.key] = Call(worker, spec.key, token)
            continue
        wait_until(lambda: any(call.is_done() for call in seats.values()))
        key = next(key for key, call in seats.items() if call.is_done())
        report = seats.pop(key).report()
        assert report is not None
        if driver.coordinator.on_report(report):
            seats[key] = Call(worker, key, f"{key} from {specs[key].resumed_from}")
        elif report.step == 10 and not resumed:
            resumed = key
            assert driver.ask(Resume(trial=key)).ok
    records = driver.study.records()
    assert set(driver.states()) <= {"done", "stopped"} and len(records) == 4
    assert specs[resumed].resumed_from == 10 and set(records[int(resumed[-1])].reports) == {10, 40}
    for spec, record in zip((specs[f"prefix/{number}"] for number in range(4)), records, strict=True):
        through = replace(spec, rungs=(), eval_at=(10,), key=f"through {spec.key}", folder=str(tmp_path / spec.key))
        worker.join(through, "token")
        reports = [Call(worker, through.key).report() for _ in range(2)]
        losses = {report.step: report.metrics["dev/loss"] for report in reports if report is not None}
        assert dict(record.reports) == pytest.approx({step: losses[step] for step in record.reports}, abs=1e-4)
