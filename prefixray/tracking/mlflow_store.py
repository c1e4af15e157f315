"""A sweep in MLflow: a run for the sweep, and a nested run per trial with its curve and its artifact.

Every event can be written twice without harm: a run is found by its tags, and what it holds already is not written
again. So a relaunch continues the same runs, and may repeat what an earlier driver could not send.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from prefixray.errors import redacted
from prefixray.system.records import Scalar
from prefixray.tracking import events
from prefixray.tracking.events import Point
from prefixray.tracking.home import Home
from prefixray.tracking.uploads import Upload, Uploads
from prefixray.tracking.views import saved_views
from prefixray.trial import Ended, final_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_STATUS_OF_TRIAL: Mapping[Ended, str] = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_STATE = "prefixray.state"  # a tag
_STATUS_OF_SWEEP: Mapping[events.SweepEnding, str] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_PARAMS_AT_ONCE = 100  # parameters in one request: the server's limit
_METRICS_AT_ONCE = 1000  # and metrics


class MlflowStore:
    """Writes events to MLflow, each in full when `write` returns, but for files. Used by one thread.

    `uri` None is a database in the sweep's folder; `params` are the sweep's, and stand on every run.
    """

    def __init__(self, folder: Path, sweep: str, params: Mapping[str, Scalar], uri: str | None) -> None:
        self._home, self._params = Home(folder, sweep, uri), params
        self._runs: dict[str, str] = {}  # key of a trial -> id of its run
        self._logged: dict[str, set[tuple[str, int]]] = {}  # key -> (metric, step) that its run has
        self._ended: set[str] = set()
        self._paused: set[str] = set()
        self.experiment: str | None = None
        """The id of the sweep's experiment, once the sweep's start is written."""
        self.uploads = Uploads(
            folder,
            lambda run_id, path: _upload(self._home.client, run_id, path),
            redacted(uri or str(folder / "mlflow.db")),
        )
        """Files, which have a thread of their own."""

    def write(self, event: events.Event, when: int) -> None:
        """Write an event that happened at `when`, in ms."""
        match event:
            case events.SweepStarted():
                self._start_sweep(event, when)
            case events.TrialStarted(key, params, tags, is_new):
                run_id = self._child(key, when)
                if is_new and key in self._ended:
                    self._home.client.delete_run(run_id)
                    self._ended.remove(key)
                    self._known.pop(key, None)
                    del self._runs[key]
                    run_id = self._child(key, when)
                if key not in self._ended:
                    self._home.client.update_run(run_id, status="RUNNING")
                    self._describe(run_id, {**self._params, **params}, tags)
                    if key in self._paused:
                        self._delete_state(run_id)
                        self._paused.remove(key)
            case events.TrialPaused(key):
                self._pause(key, when)
            case events.CurveGrew(key, points):
                self._extend_curve(key, points)
            case events.TrialEnded():
                self._end_trial(event, when)
            case events.TrialScored(key, metrics):
                run_id = self._child(key, when)
                known = self._home.client.get_run(run_id).data.metrics
                new = {name: value for name, value in metrics.items() if known.get(name) != value}
                if new:
                    self._log_metrics(run_id, [Point(0, new, when)])
            case events.SweepSummarized(files, note):
                if note:
                    self._home.client.set_tag(self._home.parent, "mlflow.note.content", note)
                self._attach(files)
            case events.SweepEnded(state):
                running = f"tags.`mlflow.parentRunId` = '{self._home.parent}' and attributes.status = 'RUNNING'"
                for run in self._home.search(running):
                    self._home.client.set_terminated(run.info.run_id, "KILLED", end_time=when)
                self._home.client.set_terminated(self._home.parent, _STATUS_OF_SWEEP[state], end_time=when)
            case _:
                assert_never(event)

    def _start_sweep(self, event: events.SweepStarted, when: int) -> None:
        self._home.client.update_run(self._home.parent, status="RUNNING")
        self.experiment = self._home.experiment
        self._describe(self._home.parent, {**self._params, **event.params}, event.tags)
        for upload in self.uploads.left():
            self.uploads.put(upload, self._child(upload.key, when) if upload.key else self._home.parent)
        self._attach(event.files)
        if event.columns:
            known = self._home.client.get_experiment(
                self._home.experiment
            ).tags  # a view may have been changed on the page
            for name, view in saved_views(event.columns, when).items():
                if name not in known:
                    self._home.client.set_experiment_tag(self._home.experiment, name, view)

    def _extend_curve(self, key: str, points: Sequence[Point]) -> None:
        """Add those points to a trial's curves that its run does not have."""
        run_id = self._child(key, points[0].when)
        logged = self._logged.setdefault(key, set())
        new = [replace(point, metrics=_missing(point, logged)) for point in points]
        if key not in self._ended:
            self._log_metrics(run_id, new)
            logged.update((name, point.step) for point in new for name in point.metrics)

    def _pause(self, key: str, when: int) -> None:
        run_id = self._child(key, when)
        if key not in self._ended:
            self._home.client.update_run(run_id, status="SCHEDULED")
            self._home.client.set_tag(run_id, _STATE, "paused")
            self._paused.add(key)

    def _delete_state(self, run_id: str) -> None:
        """Delete the tag, unless a request whose answer was lost has done so."""
        from mlflow.exceptions import MlflowException

        try:
            self._home.client.delete_tag(run_id, _STATE)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _end_trial(self, event: events.TrialEnded, when: int) -> None:
        run_id = self._child(event.key, when)
        if event.key in self._ended:
            return
        if event.artifact is not None:
            self.uploads.put(Upload(event.key, event.artifact.absolute()), run_id)
        self._home.client.set_terminated(run_id, _STATUS_OF_TRIAL[event.state], end_time=when)
        self._home.client.set_tag(run_id, _STATE, event.state)
        self._ended.add(event.key)
        self._logged.pop(event.key, None)

    def _child(self, key: str, when: int) -> str:
        """The id of a trial's run, which is found or else created."""
        if key not in self._runs:
            if (run := self._known.get(key)) is not None:
                self._recall(key, run)
            else:
                tags = {**self._home.origin, "mlflow.parentRunId": self._home.parent, "prefixray.key": key}
                try:
                    run = self._home.client.create_run(self._home.experiment, when, tags, run_name=key)
                except Exception:
                    del self._known  # to be read anew: the server may have made the run, and its answer was lost
                    raise
            self._runs[key] = str(run.info.run_id)
        return self._runs[key]

    @cached_property
    def _known(self) -> "dict[str, Run]":
        """The runs of trials that earlier drivers have left, by key, found by one search."""
        runs = self._home.search(f"tags.`mlflow.parentRunId` = '{self._home.parent}'")[::-1]
        return {_key_now(run.data.tags["prefixray.key"]): run for run in runs if "prefixray.key" in run.data.tags}

    def _recall(self, key: str, run: "Run") -> None:
        """Note what an earlier driver has logged of a trial."""
        state = run.data.tags.get(_STATE)
        if state in _STATUS_OF_TRIAL:
            self._ended.add(key)
            return
        if state == "paused":
            self._paused.add(key)
        names = list(run.data.metrics)
        histories = {name: self._home.client.get_metric_history(run.info.run_id, name) for name in names}
        self._logged[key] = {(name, point.step) for name, history in histories.items() for point in history}

    def _describe(self, run_id: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:
        """Log parameters and tags. MLflow's parameters are final, so one that has changed since goes into a tag."""
        from mlflow.entities import Param, RunTag

        known = self._home.client.get_run(run_id).data.params
        texts = {name: _text(value) for name, value in params.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for at in range(0, len(new), _PARAMS_AT_ONCE):
            self._home.client.log_batch(run_id, params=new[at : at + _PARAMS_AT_ONCE])
        changed = {f"changed.{name}": text for name, text in texts.items() if known.get(name, text) != text}
        self._home.client.log_batch(run_id, tags=[RunTag(name, text) for name, text in {**changed, **tags}.items()])

    def _log_metrics(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, p.when, p.step) for p in points for name, value in p.metrics.items()]
        for at in range(0, len(metrics), _METRICS_AT_ONCE):
            self._home.client.log_batch(run_id, metrics[at : at + _METRICS_AT_ONCE])

    def _attach(self, files: Sequence[Path]) -> None:
        """Have the sweep's run get these files."""
        for file in files:
            self.uploads.put(Upload("", file.absolute()), self._home.parent)


def _key_now(key: str) -> str:
    """The key of a run today: earlier versions called the run of the folder final/prefix-3-1 final/prefix/3@1."""
    old = re.fullmatch(r"(?:final|candidates)/(.+)/(\d+)@(\d+)", key)
    return key if old is None else final_name(old[1], int(old[2]), int(old[3]))


def _upload(client: "MlflowClient", run_id: str, path: Path) -> None:
    """Upload a folder or a file; a YAML file with credentials goes without them. Called by the uploads' thread."""
    if path.is_dir():
        client.log_artifacts(run_id, str(path), artifact_path=path.name)
        return
    text = path.read_text(encoding="utf-8", errors="replace") if path.suffix == ".yaml" else ""
    if redacted(text) == text:
        client.log_artifact(run_id, str(path))
    else:
        client.log_text(run_id, redacted(text), path.name)


def _missing(point: Point, logged: Set[tuple[str, int]]) -> dict[str, float]:
    return {name: value for name, value in point.metrics.items() if (name, point.step) not in logged}


def _text(value: Scalar) -> str:
    """A value as it stands in a sweep file."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return redacted(str(value))
