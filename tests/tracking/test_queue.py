"""What is sent together, and what happens while the store is away or refuses an event. Real stores, no mocks."""

import logging
import sqlite3
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from support.tracked_sweep import free_port, local, open_sweep, run_trials

from prefixray.tracking import queue
from prefixray.tracking.events import TrialEnded


def test_points_that_wait_go_in_one_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    requests = mock.Mock(side_effect=MlflowClient.log_batch)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *arguments, **named: requests(*arguments, **named))
    tracker = open_sweep(folder)
    for key in ("prefix/0", "prefix/1"):
        tracker.trial(key, {}, {})
    for step in range(1, 601):
        for key in ("prefix/0", "prefix/1"):
            tracker.log(key, step, {"dev/loss": 1.0 / step, "train/loss": 1.0})
    tracker.end("prefix/0", "done", None)
    tracker.close("finished")
    sizes = [len(call.args[2]) for call in requests.call_args_list if len(call.args) > 2]
    assert sorted(sizes) == [200, 200, 1000, 1000]  # as many at once as the server takes
    for key in ("prefix/0", "prefix/1"):
        assert local(folder).curve(key) == [(step, 1.0 / step) for step in range(1, 601)]


def test_a_clock_that_is_set_back_holds_up_no_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_GATHERING", 0.2)
    tracker = open_sweep(folder)
    tracker.trial("prefix/0", {}, {})
    tracker.log("prefix/0", 10, {"dev/loss": 2.0})
    now = time.time_ns() // 1_000_000
    monkeypatch.setattr(queue, "_now", lambda: now - 60_000)
    deadline = time.monotonic() + 30
    while tracker._sender is not None and tracker._sender._num_waiting:
        assert time.monotonic() < deadline, "it waits until the clock has come back"
        time.sleep(0.05)
    tracker.close("finished")
    assert local(folder).curve("prefix/0") == [(10, 2.0)]


def test_the_first_event_lets_the_first_trials_begin_before_it_is_sent_unless_the_sweep_ends() -> None:
    sent, began = list[float](), time.monotonic()
    sender = queue.Sender(lambda *_: sent.append(time.monotonic() - began), "nowhere")
    sender.put(TrialEnded("prefix/0", "done", None))
    sender.put(TrialEnded("prefix/1", "done", None))
    while len(sent) < 2:
        time.sleep(0.01)
    assert queue._LEAD <= sent[0] <= sent[1]
    sender.drain()

    sent, began = [], time.monotonic()
    sender = queue.Sender(lambda *_: sent.append(time.monotonic() - began), "nowhere")
    sender.put(TrialEnded("prefix/0", "done", None))
    sender.drain()
    assert len(sent) == 1 and sent[0] < queue._LEAD


def test_what_the_store_refuses_is_said_once_and_the_rest_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_sweep(folder)
    tracker.trial("prefix/0", {"a/../b": 1}, {})
    tracker.trial("prefix/1", {"a/../b": 1}, {})
    tracker.log("prefix/0", 10, {"dev/loss": 2.0})
    tracker.close("finished")
    assert local(folder).curve("prefix/0") == [(10, 2.0)]
    messages = [record.getMessage() for record in caplog.records if record.name == queue.__name__]
    assert len(messages) == 2
    assert "refuses what is logged" in messages[0]
    assert "2 entries could not be logged" in messages[1]


def test_a_server_that_is_away_holds_nothing_up_and_the_loss_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_AWAY", 5.0)
    monkeypatch.setattr(queue, "_MOST_WAITING", 5)
    uri = f"http://127.0.0.1:{free_port()}"
    before = time.monotonic()
    tracker = open_sweep(folder, uri)
    run_trials(tracker, folder)  # 1 start, 4 trials, 3 ends; and 8 points, of which 3 still find room
    assert time.monotonic() - before < 4.0, "no call waits for the server"
    tracker.close("finished")
    messages = [record.getMessage() for record in caplog.records if record.name == queue.__name__]
    assert f"MLflow at {uri} is away; the sweep goes on" in messages[0]
    assert messages[1] == f"MLflow at {uri}: 17 entries could not be logged"


@pytest.mark.parametrize("is_released", [True, False])
def test_a_database_that_another_program_has_locked_is_waited_for_but_not_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_released: bool
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_AWAY", 20.0 if is_released else 0.5)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.2))  # else 5 s at each try
    with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker = open_sweep(folder)
        run_trials(tracker, folder)
        deadline = time.monotonic() + 30
        while "is away; the sweep goes on: database is locked" not in caplog.text:
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.05)
        if is_released:
            other.execute("ROLLBACK")
        tracker.close("finished")
    assert ("17 entries could not be logged" in caplog.text) != is_released
    if is_released:
        assert local(folder).statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]


def test_a_database_that_fails_in_the_middle_of_a_sweep_costs_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_AWAY", 20.0)
    tracker = open_sweep(folder)
    tracker.trial("prefix/0", {}, {})
    deadline = time.monotonic() + 30
    while tracker._sender is None or tracker._sender._num_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as other:
        other.execute("ALTER TABLE runs RENAME TO elsewhere")
        tracker.log("prefix/0", 10, {"dev/loss": 2.0})
        while "is away" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        other.execute("ALTER TABLE elsewhere RENAME TO runs")
    tracker.close("finished")
    (message,) = (record.getMessage() for record in caplog.records if record.name == queue.__name__)
    assert message.endswith("is away; the sweep goes on: no such table: runs")
    assert capfd.readouterr().err == "", "no traceback of MLflow's own"
    assert local(folder).curve("prefix/0") == [(10, 2.0)]


def test_a_server_that_comes_back_gets_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from werkzeug.serving import make_server

    port = free_port()
    monkeypatch.setattr(queue, "_LONGEST_PAUSE", 0.5)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(folder / "server_artifacts"))
    tracker = open_sweep(folder, f"http://127.0.0.1:{port}")
    run_trials(tracker, folder)
    from mlflow.server import app

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", port, app)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tracker.close("finished")
    finally:
        server.shutdown()
        server.server_close()
    stored = local(folder)
    assert stored.statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert stored.curve("prefix/2") == [(10, 2.5), (20, 2.0)]
    assert "could not be logged" not in caplog.text
