"""The tracker that the driver calls. It turns each call into an event for `queue.py` and returns at once.

MLflow itself is imported (2.5 s) and called by the queue's thread alone, so no call holds up the sweep.
"""

import math
import os
import ssl
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from importlib.metadata import entry_points
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError, redacted
from prefixray.system.records import Scalar
from prefixray.tracking import events
from prefixray.tracking.mlflow_store import MlflowStore
from prefixray.tracking.queue import Sender
from prefixray.trial import Ended

LOGGED = frozenset({"train/loss", "train/grad_norm", "train/clipped_share", "train/learning_rate", "train/tokens"})
"""The metrics of a curve that are logged, besides all whose names begin with `dev/` or `test/`."""

# MLflow's own tracking URIs. It takes folders only where MLFLOW_ALLOW_FILE_STORE is set.
_SCHEMES = {"http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks"}
_ANSWER_SECONDS = 10.0  # for a server to answer at all


class Tracker:
    """Where a sweep is logged; without a sender it logs nothing. A key names a trial: "prefix/3".

    `uri` is the address for `mlflow ui --backend-store-uri`, without credentials; None when nothing is logged.
    """

    def __init__(
        self,
        uri: str | None = None,
        sender: Sender | None = None,
        store: MlflowStore | None = None,
        *,
        artifacts: bool = True,
    ) -> None:
        self.uri, self._sender, self._store, self._artifacts = uri, sender, store, artifacts

    @property
    def runs_page(self) -> str | None:
        """What follows a server's address where its page shows the sweep's runs, best first; None while not known."""
        experiment = None if self._store is None else self._store.experiment
        return None if experiment is None else f"#/experiments/{experiment}/runs?viewStateShareKey=best"

    def start(
        self, params: Mapping[str, Scalar], tags: Mapping[str, str], files: Sequence[Path], columns: Sequence[str] = ()
    ) -> None:
        """Begin or continue the sweep's run; `params` come on top of those given at opening.

        `columns` are what the page's saved views show of a trial, as `views.column` names them.
        """
        self._put(events.SweepStarted(params, tags, files, columns))

    def trial(self, key: str, params: Mapping[str, Scalar], tags: Mapping[str, str], *, is_new: bool = False) -> None:
        """Begin or continue a trial's run. Here and below, a run that has ended is left as it is.

        But where a trial `is_new`, such as a final run that is trained again, it gets another run in place of that.
        """
        self._put(events.TrialStarted(key, params, tags, is_new))

    def log(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to a trial's curves; metrics that are not listed in `LOGGED` or not finite are left out."""
        listed = {name: v for name, v in metrics.items() if name in LOGGED or name.startswith(("dev/", "test/"))}
        if self._sender is not None and (finite := _finite(listed)):
            self._sender.put_point(key, step, finite)

    def pause(self, key: str) -> None:
        """Show a trial's run as scheduled, and paused; `trial` continues it."""
        self._put(events.TrialPaused(key))

    def end(self, key: str, state: Ended, artifact: Path | None) -> None:
        """End a trial's run; a done trial's artifact goes with it where the configuration says so."""
        self._put(events.TrialEnded(key, state, artifact if self._artifacts and state == "done" else None))

    def score(self, key: str, metrics: Mapping[str, float]) -> None:
        """Add the scores of a trial's hypotheses to its run, also when the run has ended."""
        self._put(events.TrialScored(key, _finite(metrics)))

    def score_untrained(self, key: str, metrics: Mapping[str, float]) -> None:
        """Give an arm that nobody has trained a run of its own with its scores."""
        self.trial(key, {}, {"prefixray.arm": key, "prefixray.stage": "final"})
        self.end(key, "done", None)
        self.score(key, metrics)

    def summary(self, files: Sequence[Path], note: str = "") -> None:
        """Add files to the sweep's run; `note`, Markdown, becomes its description."""
        self._put(events.SweepSummarized(files, note))

    def close(self, state: events.SweepEnding) -> None:
        """End the sweep's run and those trials' that still run; wait until all is sent, warn of what could not be."""
        self._put(events.SweepEnded(state))
        if self._sender is not None:
            self._sender.drain()
        if self._store is not None:
            self._store.uploads.drain()

    def _put(self, event: events.Event) -> None:
        if self._sender is not None:
            self._sender.put(event)


def open_tracker(config: TrackingConfig, folder: Path, sweep: str, params: Mapping[str, Scalar]) -> Tracker:
    """A tracker as configured; `params` are the sweep's, and stand on every trial's run too, where the UI filters."""
    if config.mlflow is None:
        return Tracker()
    given, folder = _given_uri(config), folder.absolute()
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    uri = redacted(given or f"sqlite:///{shown / 'mlflow.db'}")
    store = MlflowStore(folder, sweep, params, given)
    return Tracker(uri, Sender(store.write, uri), store, artifacts=config.artifacts == "finished")


def check_server(config: TrackingConfig) -> None:
    """Refuse a place in which MLflow keeps no runs, and a server that does not answer.

    A server may be away later, but now its address is more likely wrong.
    """
    uri, setting = _given_uri(config), "MLFLOW_TRACKING_URI" if config.mlflow == "auto" else "tracking.mlflow"
    if uri is None:
        return
    if not _keeps_runs(urlsplit(uri).scheme.partition("+")[0] or uri):
        raise UserError(
            f"{setting}: {uri}: MLflow keeps no runs there; take a server (http://HOST:PORT) or a database "
            "(sqlite:///FILE)"
        )
    if not uri.startswith(("http://", "https://")):
        return
    parts = urlsplit(uri)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    try:
        urlopen(shown, timeout=_ANSWER_SECONDS).close()
    except HTTPError:
        return  # an error page is an answer too
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # MLflow has settings of its own for certificates
        raise UserError(
            f"{setting}: {shown}: no MLflow server answers there ({reason}); start it (mlflow server), or log nothing "
            "(--set tracking.mlflow=null), or into the sweep's folder (auto, and no MLFLOW_TRACKING_URI)"
        ) from error


def _keeps_runs(scheme: str) -> bool:
    """Whether MLflow, or a plugin of it that is installed here, keeps runs at a tracking URI of this scheme."""
    if scheme in _SCHEMES or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return True
    return any(plugin.name == scheme for plugin in entry_points(group="mlflow.tracking_store"))


def _given_uri(config: TrackingConfig) -> str | None:
    """The tracking URI that the file or the environment names; None for the database in the sweep's folder.

    An empty variable names none, as for MLflow.
    """
    return (os.environ.get("MLFLOW_TRACKING_URI") or None) if config.mlflow == "auto" else config.mlflow


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
