"""Requests to a running sweep: their files, what they do to a study and to the driver's trials, and the command.

The driver's side runs here without Ray: a pool and a worker's reports are played. `tests/test_sweep.py` has the whole.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.fake_pool import LENGTHS, Driver

from prefixray.control import main
from prefixray.errors import UserError
from prefixray.search.requests import Add, Answer, Extend, Finish, Inbox, Request, Stop
from prefixray.trial import Report

FREE = {"preseqlen": 5, "learning_rate": 0.02}
NO_SWEEP = "is no results folder, no name under runs/ and no sweep file"
NO_TRIAL = "must be ARM/NUMBER, the arm one that is searched (prefix, lora)"
SWEEP = """
name: small
base: some/model
task: {name: e2e}
train: {num_steps: 40}
arms:
  prefix:
    preseqlen: {choice: [1, 5, 10]}
    mid_dim: null
    init_token: pub
    learning_rate: {log_uniform: [1e-3, 3e-2]}
  lora: {rank: {choice: [1, 2, 4, 8]}, learning_rate: 1e-3}
  finetune: {learning_rate: 1e-3}
search: {num_trials: 4}
"""


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_a_request_is_answered_once_and_its_files_say_so(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.is_empty() and inbox.serve(lambda _, request: "never") == []
    first, second = inbox.post(Stop(trial="prefix/3")), inbox.post(Finish())
    seen: list[tuple[str, Request]] = []

    def act(request_id: str, request: Request) -> str | None:
        seen.append((request_id, request))
        return "stopped" if isinstance(request, Stop) else None

    assert inbox.serve(act) == ["stopped"]
    assert seen == [(first, Stop(trial="prefix/3")), (second, Finish())]
    assert inbox.answer(first, seconds=0) == Answer(ok=True, text="stopped")
    assert inbox.answer(second, seconds=0) is None and not inbox.is_empty()
    assert inbox.serve(lambda _, request: "done") == ["done"]
    assert inbox.is_empty() and len(seen) == 2
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == [f"{first}.done", f"{second}.done"]


def test_a_request_that_was_answered_but_not_removed_is_not_executed_again(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    request_id = inbox.post(Finish())
    (tmp_path / "control" / f"{request_id}.done").write_text('{"ok": true, "text": "finished"}')
    assert inbox.serve(lambda _, request: "again") == []
    assert not (tmp_path / "control" / f"{request_id}.json").exists()


def test_what_cannot_be_read_is_no_request_and_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path)
    request_id = inbox.post(Finish())
    (tmp_path / "control" / "1.json").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
        (told,) = inbox.serve(lambda _, request: "never")
    assert told.endswith(f"{request_id}.json: cannot be read: Permission denied")
    assert inbox.is_empty()


@pytest.mark.parametrize("content", ["", "{", '{"verb": "dance"}', '{"verb": "extend", "num_trials": true}'])
def test_what_is_no_request_is_answered_as_such(content: str, tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "1.json").write_text(content)
    assert "is no request" in Inbox(tmp_path).serve(lambda _, request: "never")[0]
    answer = Inbox(tmp_path).answer("1", seconds=0)
    assert answer is not None and not answer.ok


def test_what_goes_wrong_with_a_request_is_its_answer_and_the_next_is_served(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    first, second, third = (inbox.post(Finish()) for _ in range(3))

    def act(request_id: str, request: Request) -> str:
        if request_id == first:
            raise UserError("finish: not now")
        if request_id == second:
            raise RuntimeError("a defect")
        return "finished"

    assert len(inbox.serve(act)) == 3
    assert inbox.answer(first, seconds=0) == Answer(ok=False, text="finish: not now")
    defect = inbox.answer(second, seconds=0)
    assert defect is not None and not defect.ok and "sweep.log" in defect.text
    assert inbox.answer(third, seconds=0) == Answer(ok=True, text="finished")


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
    assert driver.ask(Stop(trial="prefix/0")).text == "prefix/0 is stopped with dev/loss 2.250 of step 5"
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


def test_a_trial_to_be_stopped_when_its_driver_died_is_not_run_by_the_next(driver: Driver) -> None:
    driver.start()
    driver.report("prefix/0", 5, loss=2.25)
    driver.ask(Stop(trial="prefix/0"))
    driver.inbox.post(Stop(trial="prefix/1"))  # left without an answer
    again = Driver(driver.folder)
    again.coordinator.serve()
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
    assert not early.ok and "prefix: has no dev/loss yet" in early.text
    driver.report("prefix/0", 5)
    assert driver.ask(Finish()).ok
    assert driver.pool.stopped == ["prefix/0", "prefix/1"] and driver.start() == []
    for key in ("prefix/0", "prefix/1"):
        assert not driver.coordinator.on_report(Report(key, 6, "stopped"))
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["stopped", "stopped"]
    assert [record.number for record in driver.study.best(1)] == [0]
    assert Driver(driver.folder).coordinator.next() == "FINISHED"
    assert Driver(driver.folder, num_trials=5).start() == ["prefix/2", "prefix/3"]


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


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder as a driver leaves it, seen from its working directory."""
    from prefixray.config.identity import dump
    from prefixray.config.load import load_sweep

    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SWEEP)
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(dump(load_sweep("small.yaml"))))
    return folder


def posted(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "control").glob("*.json"))]


def test_the_command_leaves_its_request_and_says_where_it_is_kept(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ["--set", "preseqlen=5", "learning_rate=2e-3"]
    for arguments in (
        ["stop", "prefix/3"],
        ["add", "--arm", "prefix", *lengths],
        ["extend", "--trials", "20"],
        ["finish"],
    ):
        assert main(["small", "--wait", "0", *arguments]) == 0
        assert "no answer in 0 s: the request is kept in runs/small/control/" in capsys.readouterr().out
    assert posted(stored) == [
        {"verb": "stop", "trial": "prefix/3"},
        {"verb": "add", "arm": "prefix", "values": {"preseqlen": 5, "learning_rate": 2e-3}},
        {"verb": "extend", "num_trials": 20, "arm": None},
        {"verb": "finish"},
    ]


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["smal", "finish"], [f"smal: {NO_SWEEP} (did you mean 'small'?)"]),
        (["small", "stop", "prefix3"], [f"stop prefix3: {NO_TRIAL}"]),
        (["small", "stop", "finetune/0"], [f"stop finetune/0: {NO_TRIAL}"]),
        (["small", "extend", "--trials", "0"], ["--trials 0: must be a whole number above 0"]),
        (
            ["small", "extend", "--trials", "2", "--arm", "lroa"],
            ["--arm lroa: no such arm, or nothing is searched in it (did you mean 'lora'?)"],
        ),
        (["small", "add", "--set", "rank=2"], ["--arm: required, because several arms are searched: prefix, lora"]),
        (
            ["small", "add", "--arm", "prefix", "--set", "presqlen=5", "learning_rate=1", "mid_dim=3"],
            [
                "arms.prefix: preseqlen: required, but missing: an entry gives every searched key",
                "--set presqlen=5: is not searched in this arm (did you mean 'preseqlen'?)",
                "--set learning_rate=1: must be within [0.001, 0.03]",
                "--set mid_dim=3: is not searched in this arm (the keys are: preseqlen, learning_rate)",
            ],
        ),
    ],
)
def test_what_the_user_can_mend_is_said_before_anything_is_asked(
    arguments: list[str], problems: list[str], stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == problems
    assert posted(stored) == []
