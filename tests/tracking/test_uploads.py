"""A store that takes no files: metrics go on, what it did not take is named, and the next run sends it."""

import json
import threading
import time
from pathlib import Path

import pytest
from support.tracked_sweep import local, open_sweep, run_trials

from prefixray.tracking import uploads
from prefixray.tracking.uploads import LIST_FILE, Upload, Uploads


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PAUSE", 0.02)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == uploads.__name__]


def test_a_place_that_takes_no_files_holds_up_no_metric_and_gets_them_from_the_next_run(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = folder / "mlartifacts"
    place.write_text("in the way")
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.summary([folder / "sweep.yaml"])
    tracker.close("finished")
    stored = local(folder)
    assert stored.statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert stored.curve("prefix/2") == [(10, 2.5), (20, 2.0)]
    first, last = _warnings(caplog)
    assert "takes no files; it is tried again" in first
    assert "has not taken the sweep: sweep.yaml, prefix/0: artifact (" in last
    assert last.endswith("; the same command sends it again")
    assert json.loads((folder / LIST_FILE).read_text()) == [
        ["", "sweep.yaml"],
        ["prefix/0", "trials/prefix/0/artifact"],
    ]

    place.unlink()
    caplog.clear()
    open_sweep(folder).close("finished")
    stored = local(folder)
    assert stored.files(stored.parent.info.run_id) == ["sweep.yaml"]
    assert stored.files(stored.children["prefix/0"].info.run_id, "artifact") == ["artifact/prefix.safetensors"]
    assert not (folder / LIST_FILE).exists() and _warnings(caplog) == []


def test_a_store_that_hangs_on_a_file_holds_up_no_metric(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(uploads, "_PATIENCE", 0.5)
    monkeypatch.setattr(MlflowClient, "log_artifact", lambda *_: time.sleep(60))
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.close("finished")
    assert local(folder).statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    (message,) = _warnings(caplog)
    assert "has not taken the sweep: sweep.yaml, prefix/0: artifact (no answer)" in message


def test_what_an_earlier_driver_has_left_stays_noted_until_it_is_put_again(tmp_path: Path) -> None:
    noted = [["", "sweep.yaml"], ["prefix/0", "trials/prefix/0/artifact"]]
    (tmp_path / LIST_FILE).write_text(json.dumps(noted))
    release = threading.Event()
    lane = Uploads(tmp_path, lambda *_: release.wait(10), "a server")
    (tmp_path / "sweep.yaml").write_text("name: x")
    first, second = lane.left()
    lane.put(first, "a run")
    assert sorted(json.loads((tmp_path / LIST_FILE).read_text())) == noted and lane.left() == [second]
    release.set()
    lane.drain()
    assert json.loads((tmp_path / LIST_FILE).read_text()) == noted[1:], "the other waits for the next driver"


def test_a_file_that_changes_while_it_is_sent_is_sent_again(tmp_path: Path) -> None:
    file, sent, is_sending, release = tmp_path / "results.json", [], threading.Event(), threading.Event()

    def deliver(_: str, path: Path) -> None:
        sent.append(path.read_text())
        is_sending.set()
        release.wait(10)

    lane = Uploads(tmp_path, deliver, "a server")
    file.write_text("old")
    lane.put(Upload("", file), "a run")
    assert is_sending.wait(10)
    file.write_text("new")
    lane.put(Upload("", file), "a run")
    release.set()
    lane.drain()
    assert sent == ["old", "new"] and not (tmp_path / LIST_FILE).exists()


def test_closing_tries_no_more_than_three_files_of_a_store_that_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_PAUSE", 60.0)
    tried: list[Path] = []

    def refuse(_: str, path: Path) -> None:
        tried.append(path)
        raise OSError("no place")

    lane = Uploads(tmp_path, refuse, "a server")
    for number in range(100):
        (tmp_path / f"{number}").write_text("x")
        lane.put(Upload("", tmp_path / f"{number}"), "a run")
    lane.drain()
    assert len(tried) <= 5 and len(json.loads((tmp_path / LIST_FILE).read_text())) == 100
