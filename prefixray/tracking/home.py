"""Where a sweep stands in MLflow: the client, the sweep's experiment, and the run that all its trials' runs belong to.

Each is found, or else made, when it is first asked for. What raises is asked again the next time.
"""

import logging
import os
import uuid
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from prefixray.system.atomic_files import write_whole
from prefixray.tracking.moved import ARTIFACTS, ID_FILE, is_copy, relocate
from prefixray.tracking.views import EXPERIMENT_TAGS, origin

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_logger = logging.getLogger(__name__)


class Home:
    """A sweep's place in MLflow. `uri` None is a database in the sweep's folder. Used by one thread."""

    def __init__(self, folder: Path, sweep: str, uri: str | None) -> None:
        self._folder, self._sweep, self._uri = folder, sweep, uri

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow, which is imported when it is first asked for."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the sender tries again by itself
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints what it raises as well
        if self._uri is not None:
            return MlflowClient(tracking_uri=self._uri)
        database = self._folder / "mlflow.db"
        if not database.exists():
            # MLflow takes a second to make its tables and cannot open a database that has half of them: so it makes
            # them in a temporary folder, and the finished database is renamed.
            with TemporaryDirectory(prefix=".mlflow.", dir=self._folder) as temporary:
                made = Path(temporary) / database.name
                MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
                made.rename(database)
        relocate(database, self._sweep)
        return MlflowClient(tracking_uri=f"sqlite:///{database}")

    @cached_property
    def experiment(self) -> str:
        """The id of the sweep's experiment, which is found or else created."""
        known = self.client.get_experiment_by_name(self._sweep)
        if known is not None:
            return str(known.experiment_id)
        location = None if self._uri else (self._folder / ARTIFACTS).as_uri()
        created = self.client.create_experiment(self._sweep, artifact_location=location, tags=dict(EXPERIMENT_TAGS))
        return str(created)

    @cached_property
    def parent(self) -> str:
        """The id of the sweep's run, which is found or else created; a copy of a sweep has a run of its own."""
        runs = self.search(f"tags.`prefixray.id` = '{self._id}'")
        if runs and self._uri is not None and is_copy(self._folder, runs[0].data.tags):
            _logger.warning("%s: is a copy of a sweep that MLflow knows; it is logged by itself", self._folder)
            (self._folder / ID_FILE).unlink()
            del self._id
            runs = []
        if not runs and self._uri is None:  # the folder's own database may be older than ids
            runs = self.search(f"tags.`prefixray.sweep` = '{self._sweep}'")
            for run in runs:
                self.client.set_tag(run.info.run_id, "prefixray.id", self._id)
        if runs:
            self.client.set_tag(runs[0].info.run_id, "prefixray.folder", str(self._folder))
            return str(runs[0].info.run_id)
        identity = {"prefixray.id": self._id, "prefixray.sweep": self._sweep, "prefixray.folder": str(self._folder)}
        tags = {**self.origin, **identity}
        return str(self.client.create_run(self.experiment, tags=tags, run_name=self._sweep).info.run_id)

    @cached_property
    def _id(self) -> str:
        """What the sweep's run is found by: a server may know another sweep of this name from this very folder."""
        path = self._folder / ID_FILE
        if not path.is_file():
            write_whole(path, f"{uuid.uuid4().hex}\n")
        return path.read_text(encoding="utf-8").strip()

    @cached_property
    def origin(self) -> dict[str, str]:
        """The tags of every run that say where it comes from."""
        return origin(self._folder / "sweep.yaml")

    def search(self, condition: str) -> "list[Run]":
        """All runs of the experiment that meet a condition in MLflow's language."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], condition, page_token=token)
            runs.extend(page)
            if not (token := page.token):
                return runs
