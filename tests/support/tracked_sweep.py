"""A sweep of four trials that is logged to MLflow, and what stands in a store afterwards."""

import math
import socket
from collections.abc import Mapping
from pathlib import Path

from prefixray.config.schema import TrackingConfig
from prefixray.system.records import Scalar
from prefixray.tracking.tracker import Tracker, open_tracker
from prefixray.trial import Ended

SWEEP: Mapping[str, Scalar] = {"base": "tiny", "search.num_trials": 8}


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
