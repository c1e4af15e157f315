"""MLflow's store as the sweep leaves it, and what happens while the store is away. Real stores, no mocks."""

import base64
import json
import logging
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest

from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError
from prefixray.system.records import Scalar
from prefixray.tracking import queue
from prefixray.tracking.events import SweepEnding
from prefixray.tracking.tracker import Tracker, check_server, open_tracker
from prefixray.trial import Ended

SWEEP: Mapping[str, Scalar] = {"base": "tiny", "search.num_trials": 8}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, since making them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder; its artifact lies in trials/prefix/0/artifact."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "sweep"
    artifact = folder / "trials" / "prefix" / "0" / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "prefix.safetensors").write_bytes(b"prefix")
    (folder / "sweep.yaml").write_text("name: sweep\n")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def open_sweep(
    folder: Path, mlflow: str | None = "auto", *, artifacts: str = "finished", params: Mapping[str, Scalar] = SWEEP
) -> Tracker:
    config = TrackingConfig.model_validate({"mlflow": mlflow, "artifacts": artifacts})
    tracker = open_tracker(config, folder, "sweep", params)
    tracker.start({"machine": "laptop"}, {"version": "1"}, [folder / "sweep.yaml"], ["params.`preseqlen`"])
    return tracker


def run_trials(tracker: Tracker, folder: Path) -> None:
    """One trial that is done, one stopped, one failed, one left running."""
    states: tuple[Ended | None, ...] = ("done", "stopped", "failed", None)
    for number, state in enumerate(states):
        key = f"prefix/{number}"
        tracker.trial(key, {"preseqlen": 5, "mid_dim": None, "flat": True}, {"arm": "prefix"})
        for step in (10, 20):
            tracker.log(key, step, {"dev/loss": 3.0 - step / 20, "train/loss": math.nan, "debug/rows": 3.0})
        if state is not None:
            tracker.end(key, state, folder / "trials" / "prefix" / "0" / "artifact")


class Stored:
    """What stands in a store."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name("sweep")
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id])
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        self.parent = parents[0]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == self.parent.info.run_id]
        assert len(children) == len(runs) - 1
        self.children = {run.data.tags["prefixray.key"]: run for run in children}
        assert len(self.children) == len(children)

    def curve(self, key: str, metric: str = "dev/loss") -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.children[key].info.run_id, metric)
        return [(point.step, point.value) for point in history]

    def files(self, run_id: str, path: str | None = None) -> list[str]:
        return [file.path for file in self.client.list_artifacts(run_id, path)]

    def statuses(self) -> list[str]:
        return [str(self.children[key].info.status) for key in sorted(self.children)]


def local(folder: Path) -> Stored:
    return Stored(f"sqlite:///{folder / 'mlflow.db'}")


def test_a_sweep_is_a_run_with_a_nested_run_per_trial(folder: Path) -> None:
    tracker = open_sweep(folder)
    assert tracker.uri == "sqlite:///runs/sweep/mlflow.db"
    run_trials(tracker, folder)
    tracker.summary({"test/bleu": 58.3, "test/nist": math.inf}, [folder / "sweep.yaml"])
    tracker.close("finished")
    stored = local(folder)
    assert stored.parent.info.status == "FINISHED"
    assert stored.parent.data.params == {"base": "tiny", "search.num_trials": "8", "machine": "laptop"}
    assert stored.parent.data.metrics == {"test/bleu": 58.3}
    assert stored.files(stored.parent.info.run_id) == ["sweep.yaml"]
    assert stored.statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    states = [stored.children[f"prefix/{number}"].data.tags.get("prefixray.state") for number in range(4)]
    assert states == ["done", "stopped", "failed", None]
    done = stored.children["prefix/0"]
    assert done.info.run_name == "prefix/0"
    assert done.data.tags["arm"] == "prefix"
    trial = {"preseqlen": "5", "mid_dim": "null", "flat": "true"}
    assert done.data.params == {"base": "tiny", "search.num_trials": "8", **trial}
    assert not (folder.parents[1] / "mlruns").exists()


def test_curves_hold_listed_finite_metrics_and_artifacts_belong_to_done_trials(folder: Path) -> None:
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.close("finished")
    stored = local(folder)
    assert stored.curve("prefix/0") == [(10, 2.5), (20, 2.0)]
    assert set(stored.children["prefix/0"].data.metrics) == {"dev/loss"}
    run_ids = {key: run.info.run_id for key, run in stored.children.items()}
    assert stored.files(run_ids["prefix/0"], "artifact") == ["artifact/prefix.safetensors"]
    assert [stored.files(run_ids[f"prefix/{number}"]) for number in (1, 2, 3)] == [[], [], []]


def test_a_relaunch_continues_the_same_runs_and_ends_all(folder: Path) -> None:
    first = open_sweep(folder)
    run_trials(first, folder)
    first.trial("prefix/9", {}, {})
    first.close("interrupted")
    before = local(folder)
    assert before.parent.info.status == "KILLED"
    assert set(before.statuses()[3:]) == {"KILLED"}
    for key in ("prefix/3", "prefix/9"):
        before.client.update_run(before.children[key].info.run_id, status="RUNNING")  # as a kill -9 leaves them
    again = open_sweep(folder, params={**SWEEP, "search.num_trials": 12})
    run_trials(again, folder)
    again.log("prefix/3", 30, {"dev/loss": 1.5})
    again.end("prefix/3", "done", None)
    again.close("finished")
    after = local(folder)
    assert after.parent.info.run_id == before.parent.info.run_id
    assert {key: run.info.run_id for key, run in after.children.items()} == {
        key: run.info.run_id for key, run in before.children.items()
    }
    assert after.parent.info.status == "FINISHED"
    assert after.statuses() == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "KILLED"]
    assert after.curve("prefix/0") == before.curve("prefix/0")
    assert after.curve("prefix/3") == [(10, 2.5), (20, 2.0), (30, 1.5)]
    assert after.children["prefix/0"].info.end_time == before.children["prefix/0"].info.end_time
    assert after.parent.data.params["search.num_trials"] == "8"
    assert after.parent.data.tags["changed.search.num_trials"] == "12"


def test_a_driver_killed_while_mlflow_makes_its_tables_loses_nothing(folder: Path) -> None:
    database = folder / "mlflow.db"
    database.unlink()
    given = f"TrackingConfig(), Path({str(folder)!r}), 'sweep', {{}}"
    opening = f"from prefixray.tracking.tracker import *; open_tracker({given})"
    starting = ".start({}, {}, []); __import__('time').sleep(60)"
    driver = subprocess.Popen([sys.executable, "-c", opening + starting])
    begun = False
    while not begun:
        assert driver.poll() is None
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            begun = any(path.stat().st_size for path in folder.rglob("mlflow.db"))
    driver.kill()
    driver.wait()
    assert not database.exists()  # not half of it, which MLflow could not open
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.close("finished")
    assert local(folder).statuses() == ["FINISHED", "FINISHED", "FAILED", "KILLED"]


def test_a_sweep_that_begins_anew_in_a_folder_has_runs_of_its_own_on_a_server_that_knows_the_one_before(
    folder: Path,
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for rate in (0.001, 0.5):
        tracker = open_sweep(folder, uri)
        tracker.trial("prefix/0", {"learning_rate": rate}, {})
        tracker.log("prefix/0", 10, {"dev/loss": 10 * rate})
        tracker.end("prefix/0", "done", None)
        tracker.close("finished")
        for path in folder.iterdir():  # but the server's own
            if path.is_file() and path.suffix not in (".db", ".yaml"):
                path.unlink()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "prefixray.key" in run.data.tags]
    found = {run.data.params["learning_rate"]: run.data.metrics["dev/loss"] for run in runs}
    assert found == {"0.001": 0.01, "0.5": 5.0}
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 2


def test_every_run_says_where_it_comes_from_and_the_sweeps_says_what_came_of_it(folder: Path) -> None:
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    for _ in range(2):  # as a relaunch does
        tracker.score("prefix/0", {"test/bleu": 58.3, "test/nist": math.nan})
    tracker.summary({}, [], "| arm | BLEU |")
    tracker.close("finished")
    stored = local(folder)
    checkout = Path(queue.__file__).parents[1]
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    for run in (stored.parent, *stored.children.values()):
        tags = run.data.tags
        assert tags["mlflow.source.name"] == str(folder / "sweep.yaml")
        assert tags["mlflow.source.type"] == "LOCAL" and tags["mlflow.user"]
        assert tags["prefixray.version"] == metadata.version("prefixray")
        assert tags.get("mlflow.source.git.commit") == commit
    assert stored.parent.data.tags["mlflow.note.content"] == "| arm | BLEU |"
    done = stored.children["prefix/0"]
    assert done.data.metrics == {"dev/loss": 2.0, "test/bleu": 58.3} and done.info.status == "FINISHED"
    assert stored.curve("prefix/0", "test/bleu") == [(0, 58.3)]


def test_the_page_has_saved_views_which_a_relaunch_leaves_as_the_user_changed_them(folder: Path) -> None:
    open_sweep(folder).close("interrupted")
    client = local(folder).client
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None and experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    views = {name: json.loads(tag) for name, tag in experiment.tags.items() if "sharedViewState" in name}
    assert sorted(view["name"] for view in views.values()) == ["best first", "trials"]
    packed = views["mlflow.sharedViewState.best"]["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`dev/loss`", True)
    assert state["selectedColumns"] == ["params.`preseqlen`"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.sharedViewState.best", "theirs")
    open_sweep(folder).close("finished")
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.sharedViewState.best"] == "theirs"


@pytest.mark.parametrize(("state", "status"), [("finished", "FINISHED"), ("failed", "FAILED")])
def test_the_parent_ends_as_the_sweep_did(folder: Path, state: SweepEnding, status: str) -> None:
    tracker = open_sweep(folder, artifacts="none")
    run_trials(tracker, folder)
    tracker.close(state)
    stored = local(folder)
    assert stored.parent.info.status == status
    assert stored.files(stored.children["prefix/0"].info.run_id) == []


def test_more_parameters_than_one_request_takes_are_all_logged(folder: Path) -> None:
    params: Mapping[str, Scalar] = {f"key{number}": number for number in range(230)}
    tracker = open_sweep(folder, params=params)
    tracker.close("finished")
    assert len(local(folder).parent.data.params) == 231


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


def test_without_mlflow_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    tracker = open_sweep(folder, mlflow=None)
    assert tracker.uri is None
    run_trials(tracker, folder)
    tracker.summary({"test/bleu": 1.0}, [])
    tracker.close("finished")
    assert sorted(folder.rglob("*")) == before


def test_the_environments_server_is_used_unless_the_file_names_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = (f"sqlite:///{folder.parent / name}.db" for name in ("theirs", "ours"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    assert open_tracker(TrackingConfig(), folder, "sweep", {}).uri == theirs
    assert open_tracker(TrackingConfig(mlflow=ours), folder, "sweep", {}).uri == ours


def test_a_server_that_is_not_there_is_refused_with_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError) as refused:
        check_server(TrackingConfig(mlflow=f"http://me:secret@{address}/mlflow"))
    assert str(refused.value).startswith(f"tracking.mlflow: http://{address}/mlflow: no MLflow server answers there (")
    assert "--set tracking.mlflow=null" in str(refused.value) and "secret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    with pytest.raises(UserError, match=f"^MLFLOW_TRACKING_URI: http://{address}: "):
        check_server(TrackingConfig())
    for needs_no_server in (None, "sqlite:///mlflow.db", "mlruns"):
        check_server(TrackingConfig(mlflow=needs_no_server))


def test_a_server_that_answers_at_all_is_there() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it answers 501
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check_server(TrackingConfig(mlflow=f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


def test_credentials_reach_neither_parameters_nor_the_attached_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-environments-own")
    login = "https://me:s3cr3t-w0rd@example.org"
    (folder / "sweep.yaml").write_text(f"name: sweep\ntracking: {{mlflow: {login}}}\n")
    tracker = open_sweep(folder, params={"base": f"{login}/base", "token": "an-environments-own"})
    tracker.close("finished")
    stored = local(folder)
    parameters = stored.parent.data.params
    assert (parameters["base"], parameters["token"]) == ("https://***@example.org/base", "***")
    attached = stored.client.download_artifacts(stored.parent.info.run_id, "sweep.yaml")
    assert Path(attached).read_text() == "name: sweep\ntracking: {mlflow: https://***@example.org}\n"
    assert login in (folder / "sweep.yaml").read_text()
