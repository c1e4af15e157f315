"""MLflow's store as a sweep leaves it. Real stores, no mocks."""

import base64
import json
import math
import subprocess
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from support.tracked_sweep import SWEEP, local, open_sweep, run_trials

from prefixray.system.records import Scalar
from prefixray.tracking import queue
from prefixray.tracking.events import SweepEnding
from prefixray.tracking.home import Home


def test_a_sweep_is_a_run_with_a_nested_run_per_trial(folder: Path) -> None:
    tracker = open_sweep(folder)
    assert tracker.uri == "sqlite:///runs/sweep/mlflow.db"
    run_trials(tracker, folder)
    tracker.summary([folder / "sweep.yaml"])
    tracker.score_untrained("untuned", {"test/bleu": 8.3, "test/nist": math.inf})
    tracker.close("finished")
    stored = local(folder)
    assert stored.parent.info.status == "FINISHED"
    assert stored.parent.data.params == {"base": "tiny", "search.num_trials": "8", "machine": "laptop"}
    assert stored.parent.data.metrics == {}, "each would be a chart of one bar"
    untuned = stored.children.pop("untuned")
    assert (untuned.data.metrics, untuned.info.status) == ({"test/bleu": 8.3}, "FINISHED")
    assert tracker.runs_page == f"#/experiments/{stored.parent.info.experiment_id}/runs?viewStateShareKey=best"
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


def test_a_relaunch_finds_the_runs_of_all_trials_with_one_search(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_sweep(folder)
    run_trials(first, folder)
    first.close("interrupted")
    searches: list[str] = []
    search = Home.search

    def note(home: Home, condition: str) -> list[Run]:
        searches.append(condition)
        return search(home, condition)

    monkeypatch.setattr(Home, "search", note)
    again = open_sweep(folder)
    run_trials(again, folder)
    again.close("finished")
    assert len([condition for condition in searches if "RUNNING" not in condition and "parentRunId" in condition]) == 1
    assert not any("prefixray.key" in condition for condition in searches)
    assert len(local(folder).children) == 4


def test_a_run_whose_making_was_answered_late_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = MlflowClient.create_run, list[str]()

    def late(client: MlflowClient, *given: object, run_name: str, **named: object) -> Run:
        run = create(client, *given, run_name=run_name, **named)  # type: ignore[arg-type]
        made.append(run_name)
        if made.count(run_name) == 1:
            raise ConnectionError("the server has made the run, and its answer is lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", late)
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.close("finished")
    assert sorted(made) == ["prefix/0", "prefix/1", "prefix/2", "prefix/3", "sweep"]
    assert local(folder).curve("prefix/0") == [(10, 2.5), (20, 2.0)]


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


def test_a_final_run_that_is_trained_again_has_a_run_of_its_own(folder: Path) -> None:
    for is_new, loss in ((True, 3.0), (True, 2.0), (False, 1.0)):
        tracker = open_sweep(folder)
        tracker.trial("final/lora-0-1", {"rank": 4}, {}, is_new=is_new)
        tracker.log("final/lora-0-1", 10, {"dev/loss": loss})
        tracker.end("final/lora-0-1", "done" if loss < 3 else "failed", None)
        tracker.close("finished")
    stored = local(folder)
    assert stored.statuses() == ["FINISHED"] and stored.curve("final/lora-0-1") == [(10, 2.0)]


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


def test_a_final_run_that_an_earlier_version_has_logged_is_found_under_its_name_of_today(folder: Path) -> None:
    first = open_sweep(folder)
    for key in ("final/my-arm/3@1", "candidates/my-arm/3@1000", "prefix/3"):
        first.trial(key, {}, {})
        first.end(key, "done", None)
    first.close("finished")
    again = open_sweep(folder)
    for key in ("final/my-arm-3-1", "final/my-arm-3-1000", "prefix/3"):
        again.trial(key, {}, {})
        again.score(key, {"test/bleu": 1.0})
    again.close("finished")
    runs = local(folder).children
    assert set(runs) == {"final/my-arm/3@1", "candidates/my-arm/3@1000", "prefix/3"}
    assert all(run.data.metrics == {"test/bleu": 1.0} for run in runs.values())


def test_every_run_says_where_it_comes_from_and_the_sweeps_says_what_came_of_it(folder: Path) -> None:
    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    for _ in range(2):  # as a relaunch does
        tracker.score("prefix/0", {"test/bleu": 58.3, "test/nist": math.nan})
    tracker.summary([], "| arm | BLEU |")
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
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`dev/best_loss`", True)
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


def test_a_paused_trial_is_scheduled_until_it_goes_on_and_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delete_tag = MlflowClient.delete_tag

    def delete_twice(client: MlflowClient, run_id: str, key: str) -> None:
        """As where the server's answer is lost, and the request is repeated."""
        for _ in range(2):
            delete_tag(client, run_id, key)

    monkeypatch.setattr(MlflowClient, "delete_tag", delete_twice)
    first = open_sweep(folder)
    for number in range(2):
        first.trial(f"prefix/{number}", {"preseqlen": 5}, {"arm": "prefix"})
        first.log(f"prefix/{number}", 10, {"dev/loss": 2.0})
        first.pause(f"prefix/{number}")
    first.trial("prefix/0", {"preseqlen": 5}, {"arm": "prefix"})
    first.close("interrupted")
    stored = local(folder)
    assert stored.statuses() == ["KILLED", "SCHEDULED"]
    states = [run.data.tags.get("prefixray.state") for _, run in sorted(stored.children.items())]
    assert states == [None, "paused"]
    again = open_sweep(folder)
    again.pause("prefix/1")
    again.log("prefix/1", 10, {"dev/loss": 2.0})
    again.trial("prefix/1", {"preseqlen": 5}, {"arm": "prefix"})
    again.log("prefix/1", 20, {"dev/loss": 1.0})
    again.end("prefix/1", "done", None)
    again.close("finished")
    stored = local(folder)
    assert stored.statuses()[1] == "FINISHED" and stored.curve("prefix/1") == [(10, 2.0), (20, 1.0)]
    assert stored.children["prefix/1"].data.tags["prefixray.state"] == "done"
    assert not caplog.records, "nothing was refused"
