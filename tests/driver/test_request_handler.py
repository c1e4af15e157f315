"""What requests do to a search. Pool and reports are played here; `tests/test_sweep.py` has a real sweep."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.fake_pool import LENGTHS, Driver

from prefixray.config.schema import StopWhen
from prefixray.driver.stage import Stage
from prefixray.search.budget import ended_early
from prefixray.search.fixed_study import FixedStudy
from prefixray.search.requests import Add, Answer, Extend, Finish, Request, Stop
from prefixray.search.trial_source import Proposal, Record
from prefixray.trial import Report, TrialFolder, TrialSpec

FREE = {"preseqlen": 5, "learning_rate": 0.02}


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_a_full_disk_is_not_the_requests_fault_which_waits(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = driver.inbox.post(Extend(num_trials=2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(driver.coordinator, "_act", mock.Mock(side_effect=OSError(28, "No space left on device")))
        driver.coordinator.serve()
    again = Driver(driver.folder)
    again.coordinator.serve()
    answer = again.inbox.answer(request_id, seconds=0)
    assert answer is not None and answer.ok


def test_a_stopped_trial_is_told_with_its_last_value_and_its_slot_goes_on(driver: Driver) -> None:
    assert driver.start() == ["prefix/0", "prefix/1"]
    assert driver.report("prefix/0", 5, loss=2.25)
    assert driver.ask(Stop(trial="prefix/0")).text == "prefix/0 is stopped with a dev loss of 2.250 at step 5"
    assert driver.pool.stopped == ["prefix/0"]
    driver.coordinator.tick()  # it may not have reached its worker yet
    assert driver.pool.stopped == ["prefix/0", "prefix/0"]
    assert not driver.coordinator.on_report(Report("prefix/0", 7, "stopped"))
    record = driver.study.records()[0]
    assert (record.state, record.value, record.note) == ("stopped", 2.25, "by request")
    assert json.loads((driver.folder / "trials/prefix/0/result.json").read_text())["state"] == "stopped"
    row = next(row for row in driver.coordinator.view("", "search").rows if row.number == 0)
    assert row.state_text == "stopped by request" and row.step == 7
    assert driver.start() == ["prefix/2"]


def test_a_trial_that_reports_before_its_worker_stops_it_ends_there(driver: Driver) -> None:
    driver.start()
    driver.ask(Stop(trial="prefix/1"))
    assert not driver.report("prefix/1", 5, loss=2.5)
    assert driver.states() == ["running", "stopped"] and driver.study.records()[1].value == 2.5
    driver.ask(Stop(trial="prefix/0"))
    assert not driver.report("prefix/0", 40, loss=1.5)  # it had come to its end meanwhile
    assert driver.states() == ["done", "stopped"]


def test_only_a_running_trial_of_the_search_can_be_stopped(driver: Driver) -> None:
    driver.start()
    driver.report("prefix/0", 40)
    ended = driver.ask(Stop(trial="prefix/0"))
    assert (ended.ok, ended.text) == (False, "stop prefix/0: has ended already (done)")
    unknown = driver.ask(Stop(trial="prefix/9"))
    assert not unknown.ok and unknown.text.endswith("no such trial of a search (running are prefix/1)")
    request_id = driver.inbox.post(Stop(trial="final/prefix/0"))
    driver.final().serve()
    refused = driver.inbox.answer(request_id, seconds=0)
    assert refused is not None and not refused.ok and "needs all its runs" in refused.text


def test_a_final_run_beside_a_search_is_no_trial_to_stop_and_none_that_is_offered(driver: Driver) -> None:
    study = FixedStudy(driver.storage, "small", "final/flat", ["flat-1"])

    def spec(trial: Proposal | Record) -> TrialSpec:
        return replace(driver.stage.spec(trial), key="final/flat-1")

    driver.coordinator = driver.coordinate(driver.stage, Stage("final/flat", driver.arm, study, 1, spec))
    driver.pool.num_slots = 3
    assert driver.start() == ["prefix/0", "prefix/1", "final/flat-1"]
    refused = driver.ask(Stop(trial="final/flat-1"))
    assert "no such trial of a search (it is a run of the final stage, which needs all its runs)" in refused.text
    assert driver.ask(Stop(trial="prefix/9")).text.endswith("(running are prefix/0, prefix/1)")


def test_a_trial_to_be_stopped_when_its_driver_died_is_not_run_by_the_next(driver: Driver) -> None:
    driver.start()
    driver.report("prefix/0", 5, loss=2.25)
    driver.ask(Stop(trial="prefix/0"))
    driver.inbox.post(Stop(trial="prefix/1"))  # left without an answer
    checkpoint = driver.folder / "trials/prefix/1/step-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text('{"state": {"num_tokens": 90, "seconds": 4.5}}')
    again = Driver(driver.folder)
    again.coordinator.serve()
    result = TrialFolder(driver.folder / "trials/prefix/1").result()
    assert result is not None and result["metrics"] == {"train/tokens": 90, "train/seconds": 4.5}, "they were spent"
    assert again.states() == ["stopped", "stopped"] and again.pool.stopped == []
    assert again.study.records()[0].value == 2.25
    assert again.start() == ["prefix/2", "prefix/3"]


def test_an_added_configuration_is_the_next_and_one_trial_more(driver: Driver) -> None:
    driver.start()
    answer = driver.ask(Add(arm="prefix", values=FREE))
    assert answer == Answer(ok=True, text="prefix/2 is queued: 2 of 5 trials started")
    driver.report("prefix/0", 40)
    assert driver.start() == ["prefix/2"]
    assert driver.study.records()[2].values == FREE
    driver.run_all()
    assert driver.states() == ["done"] * 5
    assert Driver(driver.folder).coordinator.next() == "FINISHED"  # the fifth is known to the next driver


@pytest.mark.parametrize("relaunched", [False, True])
def test_a_queued_configuration_is_taken_back_with_its_place_in_the_budget(driver: Driver, relaunched: bool) -> None:
    driver.start()
    assert driver.ask(Add(arm="prefix", values=FREE)).text == "prefix/2 is queued: 2 of 5 trials started"
    if relaunched:
        driver = Driver(driver.folder)
        driver.start()
    stopped = driver.ask(Stop(trial="prefix/2"))
    assert (stopped.ok, stopped.text) == (True, "prefix/2 is taken back from the queue: 2 of 4 trials started")
    again = driver.ask(Stop(trial="prefix/2"))
    assert not again.ok and "no such trial" in again.text
    driver.run_all()
    assert driver.states() == ["done"] * 4
    assert FREE not in [record.values for record in driver.study.records()]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"preseqlen": 7, "learning_rate": 0.02}, "preseqlen: 7: must be one of 1, 5, 10, 20"),
        ({"preseqlen": 5}, "learning_rate: required, but missing"),
        ({**FREE, "mid_dim": 5}, "mid_dim: is not searched in this arm"),
    ],
)
def test_a_configuration_that_is_none_of_the_arms_is_refused(
    values: dict[str, Any], problem: str, driver: Driver
) -> None:
    answer = driver.ask(Add(arm="prefix", values=values))
    assert not answer.ok and problem in answer.text
    assert driver.study.num_wanted() == 4


def test_a_configuration_that_was_tried_or_is_queued_is_refused(driver: Driver) -> None:
    assert driver.ask(Add(arm="prefix", values=FREE)).ok
    queued = driver.ask(Add(arm="prefix", values=FREE))
    assert queued.text == "add: prefix/0 has these values already (queued); change one of them"
    driver.start()
    assert "prefix/0 has these values already (running)" in driver.ask(Add(arm="prefix", values=FREE)).text
    assert driver.study.num_wanted() == 5
    assert "(did you mean 'prefix'?)" in driver.ask(Add(arm="prefx", values=FREE)).text


def test_an_added_configuration_runs_whatever_waits_before_it(driver: Driver) -> None:
    driver.start()
    for key in ("prefix/0", "prefix/1"):
        driver.report(key, 5)
    driver.ask(Add(arm="prefix", values={**FREE, "preseqlen": 10}))
    assert driver.ask(Finish()).ok
    answer = driver.ask(Add(arm="prefix", values=FREE))
    assert "prefix/3 is queued" in answer.text and "of 4 trials" in answer.text
    for key in ("prefix/0", "prefix/1"):
        driver.report(key, 10)
    assert driver.start() == ["prefix/2", "prefix/3"]
    assert [record.values["preseqlen"] for record in driver.study.records()[2:]] == [10, 5]


def test_a_search_may_be_extended_until_its_last_trial_has_ended(driver: Driver) -> None:
    while len(driver.states()) < 4:
        driver.start()
        driver.report(next(iter(driver.pool.keys)), 40)
    assert driver.coordinator.next() is None  # nothing more to start, but one still runs
    assert driver.ask(Extend(num_trials=2)).text == "prefix is extended: 4 of 6 trials started"
    driver.run_all()
    assert driver.states() == ["done"] * 6
    late = driver.inbox.post(Extend(num_trials=2, arm="prefix"))
    assert driver.coordinator.serve() == driver.final().serve() == []  # kept for a search to come
    again = Driver(driver.folder)
    again.coordinator.serve()
    assert driver.inbox.answer(late, seconds=0) == Answer(ok=True, text="prefix is extended: 6 of 8 trials started")
    again.run_all()
    assert again.states() == ["done"] * 8


def test_what_requests_made_of_the_budget_outlives_the_driver_and_a_larger_file_wins(driver: Driver) -> None:
    driver.ask(Extend(num_trials=3))
    assert Driver(driver.folder).study.num_wanted() == 7
    assert Driver(driver.folder, num_trials=7).study.num_wanted() == 7
    assert Driver(driver.folder, num_trials=9).study.num_wanted() == 9


def test_a_finished_search_stops_what_runs_and_stays_finished_until_the_budget_grows(driver: Driver) -> None:
    driver.start()
    early = driver.ask(Finish())
    assert not early.ok and "prefix: has no dev loss yet" in early.text
    driver.report("prefix/0", 5)
    assert driver.ask(Finish()).ok
    assert driver.pool.stopped == ["prefix/0", "prefix/1"] and driver.start() == []
    for key in ("prefix/0", "prefix/1"):
        assert not driver.coordinator.on_report(Report(key, 6, "stopped"))
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["stopped", "stopped"]
    assert [record.number for record in driver.study.best(1)] == [0]
    assert Driver(driver.folder).coordinator.next() == "FINISHED"
    assert Driver(driver.folder, num_trials=5).start() == ["prefix/2", "prefix/3"]


def test_a_search_may_be_finished_with_the_trials_that_have_started(driver: Driver) -> None:
    early = driver.ask(Finish(let_run=True))
    assert not early.ok and "prefix: has no dev loss yet" in early.text, "no trial has begun"
    driver.start()
    text = driver.ask(Finish(let_run=True)).text
    assert text == "no trial starts any more, and those that have started go on; then comes the final stage"
    assert driver.pool.stopped == [] and driver.report("prefix/0", 10, 2.0, rung=10)
    assert not driver.report("prefix/1", 10, 3.0, rung=10), "the policy stops it"
    driver.report("prefix/0", 40, 1.5)
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["done", "stopped"]
    assert Driver(driver.folder).coordinator.next() == "FINISHED", "it stays finished"
    told = ended_early(driver.arm, driver.study, None, None)
    assert told == "prefix: a request ended the search after 2 of 4 trials"


def test_a_search_that_had_found_enough_is_not_one_that_a_request_has_finished(driver: Driver) -> None:
    driver.stage = replace(driver.stage, stop_when=StopWhen.model_validate({"dev/loss": 2.0}))
    driver.coordinator = driver.coordinate(driver.stage)
    driver.start()
    driver.report("prefix/0", 40, 1.9)
    assert driver.start() == [] and driver.ask(Finish()).ok and driver.pool.stopped == ["prefix/1"]
    told = ended_early(driver.arm, driver.study, driver.stage.stop_when, None)
    assert told is not None and "search.stop_when ended the search after 2 of 4 trials" in told
    assert (
        driver.coordinator.on_report(Report("prefix/1", 40, "done", {"dev/loss": 1.0, "dev/best_loss": 1.0})) is False
    )
    assert driver.coordinator.next() == "FINISHED", "whatever that trial has found"


def test_a_space_that_is_tried_whole_cannot_be_extended(tmp_path: Path) -> None:
    driver = Driver(tmp_path, space=LENGTHS)
    answer = driver.ask(Extend(num_trials=9))
    assert answer.text == "prefix is extended: 0 of 4 trials started, all that its space has"


@pytest.mark.parametrize("request_", [Add(arm="prefix", values=FREE), Extend(num_trials=2), Finish()])
@pytest.mark.parametrize("num_lines", range(1, 5))
def test_a_driver_may_die_after_any_line_of_the_journal_and_the_next_does_it_once(
    request_: Request, num_lines: int, driver: Driver
) -> None:
    driver.start()
    driver.report("prefix/0", 5)
    journal = driver.folder / "study.journal"
    num_before = len(journal.read_bytes().splitlines())
    request_id = driver.inbox.post(request_)
    content = (driver.folder / "control" / f"{request_id}.json").read_text()
    driver.coordinator.serve()
    whole = (driver.study.num_wanted(), len(driver.states()))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: num_before + num_lines]))
    (driver.folder / "control" / f"{request_id}.done").unlink()
    (driver.folder / "control" / f"{request_id}.json").write_text(content)
    again = Driver(driver.folder)
    again.coordinator.serve()
    assert (again.study.num_wanted(), len(again.states())) == whole
    again.run_all()
    assert len(again.states()) == again.study.num_wanted()
    assert sum(record.values == FREE for record in again.study.records()) == isinstance(request_, Add)
