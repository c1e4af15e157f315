"""MLflow, spoken to by the driver alone: a run per sweep, and a nested one per trial with its curve and its artifact.

The driver only queues what is to be logged. One thread imports MLflow (2.5 s) and sends the entries in order, again and
again while the server is away, so that no call holds up the sweep. Points of a curve wait a moment for the next ones of
their trial and go in one request. An entry finds its run by tags and may be sent twice, so a relaunch continues the
same runs, and may say again what an earlier driver did not get to say.
"""

import logging
import math
import os
import ssl
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError, redacted
from prefixray.system.atomic_files import write_whole
from prefixray.system.records import Scalar
from prefixray.tracking.queue import Point, Sender
from prefixray.tracking.views import EXPERIMENT_TAGS, origin, saved_views
from prefixray.trial import Ended

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger(__name__)

LOGGED = frozenset({"train/loss", "train/grad_norm", "train/clipped_share", "train/learning_rate", "train/tokens"})
"""The metrics that are logged, besides all of the rooms dev and test."""
_ROOMS = ("dev/", "test/")

Closed = Literal["finished", "failed", "interrupted"]

_STATUS_OF_TRIAL: Mapping[Ended, str] = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_STATUS_OF_SWEEP: Mapping[Closed, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_ANSWER_SECONDS = 10.0  # for a server to answer at all
_AT_ONCE = 100  # parameters in one request: the server's limit
_METRICS_AT_ONCE = 1000  # and metrics


class Tracker(ABC):
    """Where a sweep is logged. A key names a trial: "prefix/3"."""

    uri: str | None  # for `mlflow ui --backend-store-uri`; None when nothing is logged

    @abstractmethod
    def start(
        self, params: Mapping[str, Scalar], tags: Mapping[str, str], files: Sequence[Path], columns: Sequence[str] = ()
    ) -> None:
        """Begin or continue the sweep's run; parameters come on top of those given at opening.

        `columns` are what the page's saved views show of a trial, as `runviews.column` names them.
        """

    @abstractmethod
    def trial(self, key: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:
        """Begin or continue a trial's run; of one that has ended nothing is changed, here and below."""

    @abstractmethod
    def log(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to a trial's curves; of metrics that are listed, and finite."""

    @abstractmethod
    def end(self, key: str, state: Ended, artifact: Path | None) -> None:
        """End a trial's run; a done trial's artifact goes with it where the configuration says so."""

    @abstractmethod
    def score(self, key: str, metrics: Mapping[str, float]) -> None:
        """Add to a run what its decoded hypotheses have scored, also when it has ended."""

    @abstractmethod
    def summary(self, metrics: Mapping[str, float], files: Sequence[Path], note: str = "") -> None:
        """Add results to the sweep's run; `note`, Markdown, becomes its description."""

    @abstractmethod
    def close(self, state: Closed) -> None:
        """End the sweep's run and whatever of it is still running, wait until all is sent, say what could not be."""


def open_tracker(config: TrackingConfig, folder: Path, sweep: str, params: Mapping[str, Scalar]) -> Tracker:
    """A tracker as configured; `params` are the sweep's, and stand on every trial's run too, where the UI filters."""
    if config.mlflow is None:
        return NoTracker()
    return MlflowTracker(folder, sweep, params, uri=_given_uri(config), artifacts=config.artifacts == "finished")


def check_server(config: TrackingConfig) -> None:
    """Refuse a tracking server that does not answer: it may be away later, but now its address is more likely wrong."""
    uri = _given_uri(config)
    if uri is None or not uri.startswith(("http://", "https://")):
        return
    parts = urlsplit(uri)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    try:
        urlopen(shown, timeout=_ANSWER_SECONDS).close()
    except HTTPError:
        return  # whatever it says, it is there
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # MLflow has settings of its own for certificates
        place = "MLFLOW_TRACKING_URI" if config.mlflow == "auto" else "tracking.mlflow"
        raise UserError(
            f"{place}: {shown}: no MLflow server answers there ({reason}); start it (mlflow server), or log nothing "
            "(--set tracking.mlflow=null), or into the sweep's folder (auto, and no MLFLOW_TRACKING_URI)"
        ) from error


def _given_uri(config: TrackingConfig) -> str | None:
    """The tracking URI that the file or the environment names; None where there is none."""
    return os.environ.get("MLFLOW_TRACKING_URI") if config.mlflow == "auto" else config.mlflow


class NoTracker(Tracker):
    """Logs nothing."""

    uri = None

    def start(  # noqa: D102
        self, params: Mapping[str, Scalar], tags: Mapping[str, str], files: Sequence[Path], columns: Sequence[str] = ()
    ) -> None:
        pass

    def trial(self, key: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:  # noqa: D102
        pass

    def log(self, key: str, step: int, metrics: Mapping[str, float]) -> None:  # noqa: D102
        pass

    def end(self, key: str, state: Ended, artifact: Path | None) -> None:  # noqa: D102
        pass

    def score(self, key: str, metrics: Mapping[str, float]) -> None:  # noqa: D102
        pass

    def summary(self, metrics: Mapping[str, float], files: Sequence[Path], note: str = "") -> None:  # noqa: D102
        pass

    def close(self, state: Closed) -> None:  # noqa: D102
        pass


class MlflowTracker(Tracker):
    """Queues entries for a thread that sends them; `uri` None is a database in the sweep's folder."""

    def __init__(
        self, folder: Path, sweep: str, params: Mapping[str, Scalar], *, uri: str | None = None, artifacts: bool = True
    ) -> None:
        folder = folder.absolute()
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        self.uri = redacted(uri or f"sqlite:///{shown / 'mlflow.db'}")
        self._artifacts = artifacts
        self._sender = Sender(_Store(folder, sweep, params, uri), self.uri)

    def start(  # noqa: D102
        self, params: Mapping[str, Scalar], tags: Mapping[str, str], files: Sequence[Path], columns: Sequence[str] = ()
    ) -> None:
        self._sender.put(lambda store, when: store.start(params, tags, files, columns, when))

    def trial(self, key: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:  # noqa: D102
        self._sender.put(lambda store, when: store.trial(key, params, tags, when), key=key)

    def log(self, key: str, step: int, metrics: Mapping[str, float]) -> None:  # noqa: D102
        kept = _finite({name: value for name, value in metrics.items() if name in LOGGED or name.startswith(_ROOMS)})
        if kept:
            self._sender.put_point(key, step, kept)

    def end(self, key: str, state: Ended, artifact: Path | None) -> None:  # noqa: D102
        kept = artifact if self._artifacts and state == "done" else None
        self._sender.put(lambda store, when: store.end(key, state, kept, when), key=key)

    def score(self, key: str, metrics: Mapping[str, float]) -> None:  # noqa: D102
        kept = _finite(metrics)
        self._sender.put(lambda store, when: store.score(key, kept, when))

    def summary(self, metrics: Mapping[str, float], files: Sequence[Path], note: str = "") -> None:  # noqa: D102
        kept = _finite(metrics)
        self._sender.put(lambda store, when: store.summary(kept, files, note, when))

    def close(self, state: Closed) -> None:  # noqa: D102
        self._sender.put(lambda store, when: store.close(state, when))
        self._sender.drain()


class _Store:
    """The calls to MLflow, each in full when it returns. Used by one thread."""

    def __init__(self, folder: Path, sweep: str, params: Mapping[str, Scalar], uri: str | None) -> None:
        self._folder = folder
        self._sweep = sweep
        self._params = params
        self._uri = uri
        self._runs: dict[str, str] = {}  # key of a trial -> id of its run
        self._logged: dict[str, set[tuple[str, int]]] = {}  # key -> (metric, step) that its run has
        self._ended: set[str] = set()

    def start(
        self,
        params: Mapping[str, Scalar],
        tags: Mapping[str, str],
        files: Sequence[Path],
        columns: Sequence[str],
        when: int,
    ) -> None:
        """Begin or continue the sweep's run."""
        parent = self._parent
        self._client.update_run(parent, status="RUNNING")
        self._describe(parent, {**self._params, **params}, tags)
        self._attach(parent, files)
        if columns:
            known = self._client.get_experiment(self._experiment).tags  # a view may have been changed on the page
            for name, view in saved_views(columns, when).items():
                if name not in known:
                    self._client.set_experiment_tag(self._experiment, name, view)

    def trial(self, key: str, params: Mapping[str, Scalar], tags: Mapping[str, str], when: int) -> None:
        """Begin or continue a trial's run."""
        run_id = self._child(key, when)
        if key not in self._ended:
            self._client.update_run(run_id, status="RUNNING")
            self._describe(run_id, {**self._params, **params}, tags)

    def log(self, key: str, points: "Sequence[Point]") -> None:
        """Add points to a trial's curves, unless they are there."""
        run_id = self._child(key, points[0].when)
        logged = self._logged.setdefault(key, set())
        new = [replace(point, metrics=_missing(point, logged)) for point in points]
        if key not in self._ended:
            self._log_metrics(run_id, new)
            logged.update((name, point.step) for point in new for name in point.metrics)

    def end(self, key: str, state: Ended, artifact: Path | None, when: int) -> None:
        """End a trial's run."""
        run_id = self._child(key, when)
        if key in self._ended:
            return
        if artifact is not None:
            self._client.log_artifacts(run_id, str(artifact), artifact_path=artifact.name)
        self._client.set_terminated(run_id, _STATUS_OF_TRIAL[state], end_time=when)
        self._client.set_tag(run_id, "prefixray.state", state)
        self._ended.add(key)
        self._logged.pop(key, None)

    def score(self, key: str, metrics: Mapping[str, float], when: int) -> None:
        """Add scores to a run, unless they are there."""
        run_id = self._child(key, when)
        known = self._client.get_run(run_id).data.metrics
        new = {name: value for name, value in metrics.items() if known.get(name) != value}
        if new:
            self._log_metrics(run_id, [Point(0, new, when)])

    def summary(self, metrics: Mapping[str, float], files: Sequence[Path], note: str, when: int) -> None:
        """Add results to the sweep's run."""
        self._log_metrics(self._parent, [Point(0, metrics, when)])
        if note:
            self._client.set_tag(self._parent, "mlflow.note.content", note)
        self._attach(self._parent, files)

    def close(self, state: Closed, when: int) -> None:
        """End every run of the sweep that is still running, then the sweep's own."""
        for run in self._search(f"tags.`mlflow.parentRunId` = '{self._parent}' and attributes.status = 'RUNNING'"):
            self._client.set_terminated(run.info.run_id, "KILLED", end_time=when)
        self._client.set_terminated(self._parent, _STATUS_OF_SWEEP[state], end_time=when)

    @cached_property
    def _client(self) -> "MlflowClient":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the sender has its own
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        if self._uri is not None:
            return MlflowClient(tracking_uri=self._uri)
        database = self._folder / "mlflow.db"
        if not database.exists():
            # in a place of its own first: MLflow takes a second for its tables, and can't open half of them again
            with TemporaryDirectory(prefix=".mlflow.", dir=self._folder) as place:
                made = Path(place) / database.name
                MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
                made.rename(database)
        return MlflowClient(tracking_uri=f"sqlite:///{database}")

    @cached_property
    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._sweep)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._uri else (self._folder / "mlartifacts").as_uri()
        created = self._client.create_experiment(self._sweep, artifact_location=location, tags=dict(EXPERIMENT_TAGS))
        return str(created)

    @cached_property
    def _parent(self) -> str:
        found = self._search(f"tags.`prefixray.id` = '{self._id}'")
        if not found and self._uri is None:  # the folder's own database may be older than ids
            found = self._search(f"tags.`prefixray.sweep` = '{self._sweep}'")
            for run in found:
                self._client.set_tag(run.info.run_id, "prefixray.id", self._id)
        if found:
            return str(found[0].info.run_id)
        own = {"prefixray.id": self._id, "prefixray.sweep": self._sweep, "prefixray.folder": str(self._folder)}
        tags = {**self._origin, **own}
        return str(self._client.create_run(self._experiment, tags=tags, run_name=self._sweep).info.run_id)

    @cached_property
    def _id(self) -> str:
        """What the sweep's run is found by: a server may know another sweep of this name from this very folder."""
        path = self._folder / "mlflow.id"
        if not path.is_file():
            write_whole(path, f"{uuid.uuid4().hex}\n")
        return path.read_text(encoding="utf-8").strip()

    @cached_property
    def _origin(self) -> dict[str, str]:
        return origin(self._folder / "sweep.yaml")

    def _child(self, key: str, when: int) -> str:
        """A trial's run, which is found or else created."""
        if key not in self._runs:
            tags = {"mlflow.parentRunId": self._parent, "prefixray.key": key}
            found = self._search(" and ".join(f'tags.`{name}` = "{value}"' for name, value in tags.items()))
            if found:
                self._recall(key, found[0])
            told = {**self._origin, **tags}
            run = found[0] if found else self._client.create_run(self._experiment, when, told, run_name=key)
            self._runs[key] = str(run.info.run_id)
        return self._runs[key]

    def _recall(self, key: str, run: "Run") -> None:
        """Note what an earlier driver has logged of a trial."""
        if "prefixray.state" in run.data.tags:
            self._ended.add(key)
            return
        names = list(run.data.metrics)
        histories = {name: self._client.get_metric_history(run.info.run_id, name) for name in names}
        self._logged[key] = {(name, point.step) for name, history in histories.items() for point in history}

    def _search(self, condition: str) -> "list[Run]":
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], condition, page_token=token)
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _describe(self, run_id: str, params: Mapping[str, Scalar], tags: Mapping[str, str]) -> None:
        """Log parameters and tags. MLflow's parameters are final, so one that has changed since goes into a tag."""
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(run_id).data.params
        texts = {name: _text(value) for name, value in params.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in known]
        for at in range(0, len(new), _AT_ONCE):
            self._client.log_batch(run_id, params=new[at : at + _AT_ONCE])
        changed = {f"changed.{name}": text for name, text in texts.items() if known.get(name, text) != text}
        self._client.log_batch(run_id, tags=[RunTag(name, text) for name, text in {**changed, **tags}.items()])

    def _log_metrics(self, run_id: str, points: "Sequence[Point]") -> None:
        from mlflow.entities import Metric

        every = [Metric(name, value, p.when, p.step) for p in points for name, value in p.metrics.items()]
        for at in range(0, len(every), _METRICS_AT_ONCE):
            self._client.log_batch(run_id, every[at : at + _METRICS_AT_ONCE])

    def _attach(self, run_id: str, files: Sequence[Path]) -> None:
        for file in files:
            text = file.read_text(encoding="utf-8", errors="replace") if file.suffix == ".yaml" else ""
            if redacted(text) == text:
                self._client.log_artifact(run_id, str(file))
            else:
                self._client.log_text(run_id, redacted(text), file.name)


def _missing(point: Point, logged: Set[tuple[str, int]]) -> dict[str, float]:
    return {name: value for name, value in point.metrics.items() if (name, point.step) not in logged}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _text(value: Scalar) -> str:
    """A value as it stands in a sweep file."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return redacted(str(value))
