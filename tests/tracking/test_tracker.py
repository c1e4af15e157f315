"""Where a sweep is logged, which server is refused, and what a call costs the driver."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.tracked_sweep import free_port, local, open_sweep, run_trials

from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError
from prefixray.tracking.tracker import check_server, open_tracker


def test_without_mlflow_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    tracker = open_sweep(folder, mlflow=None)
    assert tracker.uri is None
    run_trials(tracker, folder)
    tracker.summary([])
    tracker.close("finished")
    assert sorted(folder.rglob("*")) == before


def test_the_environments_server_is_used_unless_the_file_names_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = (f"sqlite:///{folder.parent / name}.db" for name in ("theirs", "ours"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    assert open_tracker(TrackingConfig(), folder, "sweep", {}).uri == theirs
    assert open_tracker(TrackingConfig(mlflow=ours), folder, "sweep", {}).uri == ours
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    check_server(TrackingConfig())
    assert str(open_tracker(TrackingConfig(), folder, "sweep", {}).uri).endswith(f"{folder.name}/mlflow.db")


def test_a_server_that_is_not_there_is_refused_with_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError) as refused:
        check_server(TrackingConfig(mlflow=f"http://me:secret@{address}/mlflow"))
    assert str(refused.value).startswith(f"tracking.mlflow: http://{address}/mlflow: no MLflow server answers there (")
    assert "--set tracking.mlflow=null" in str(refused.value) and "secret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    with pytest.raises(UserError, match=f"^MLFLOW_TRACKING_URI: http://{address}: "):
        check_server(TrackingConfig())
    for address in ("localhost:PORT", f"127.0.0.1:{free_port()}O"):
        with pytest.raises(UserError, match="no MLflow server answers there"):
            check_server(TrackingConfig(mlflow=f"http://{address}"))
    for needs_no_server in (None, "sqlite:///mlflow.db", "databricks"):
        check_server(TrackingConfig(mlflow=needs_no_server))


def test_a_server_that_answers_at_all_is_there() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it answers 501
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check_server(TrackingConfig(mlflow=f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()


@pytest.mark.parametrize("place", ["./mlruns", "file:///tmp/mlruns", "ftp://host/runs"])
def test_a_place_in_which_mlflow_keeps_no_runs_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MLflow keeps no runs there; take a server"):
        check_server(TrackingConfig(mlflow=place))
    check_server(TrackingConfig(mlflow="mysql+pymysql://host/runs"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_server(TrackingConfig(mlflow=place))


def test_a_call_costs_the_driver_less_than_two_milliseconds(folder: Path) -> None:
    tracker = open_sweep(folder)
    tracker.trial("prefix/0", {}, {})
    took = []
    for step in range(50):
        before = time.perf_counter()
        tracker.log("prefix/0", step, {"dev/loss": 1.0, "train/loss": 1.0})
        took.append(time.perf_counter() - before)
    tracker.close("finished")
    assert sorted(took)[25] < 0.002
    assert len(local(folder).curve("prefix/0")) == 50


def test_nothing_is_printed_and_nothing_waits_for_the_import(folder: Path) -> None:
    (folder / "mlflow.db").unlink()
    script = """
import sys
from pathlib import Path
from unittest import mock
from prefixray.config.schema import TrackingConfig
from prefixray.tracking.tracker import open_tracker

tracker = open_tracker(TrackingConfig(), Path(sys.argv[1]), "sweep", {})
tracker.start({}, {}, [])
assert "mlflow.store.tracking.sqlalchemy_store" not in sys.modules
tracker.trial("prefix/0", {}, {})
tracker.end("prefix/0", "done", None)
tracker.close("finished")
"""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert local(folder).statuses() == ["FINISHED"]
