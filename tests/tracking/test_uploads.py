"""A store that takes no files: metrics go on, what it did not take is named, and the next run sends it."""

import json
import time
from pathlib import Path

import pytest
from support.tracked_sweep import local, open_sweep, run_trials

from prefixray.tracking import uploads
from prefixray.tracking.uploads import LIST_FILE


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
    tracker.summary({"test/bleu": 58.3}, [folder / "sweep.yaml"])
    tracker.close("finished")
    stored = local(folder)
    assert stored.statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert stored.curve("prefix/2") == [(10, 2.5), (20, 2.0)] and stored.parent.data.metrics == {"test/bleu": 58.3}
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
