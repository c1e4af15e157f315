"""The pool's tests play Ray."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fake_ray import FakeRay, FakeWorker

from prefixray.cluster import decode_queue, fleet, pool, worker_handle
from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import Phase, WorkerHandle, WorkerState


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Ray as far as the pool needs it; its workers are `FakeWorker`s."""
    ray = FakeRay()

    def start(name: str, cluster: Cluster, setup: WorkerSetup, record: Path, shunned: Sequence[str]) -> WorkerHandle:
        ray.shunned.append(list(shunned))
        ray.precisions.append(setup.train.precision)
        worker = ray.to_come.pop(0) if ray.to_come else FakeWorker()
        state = WorkerState(Phase.STARTING, ray.now)
        return WorkerHandle(name, record, worker, state, busy_at=ray.now)  # type: ignore[arg-type]

    def sleep(seconds: float) -> None:
        ray.now += seconds
        assert ray.now < 36_000, "it would wait for ever"

    monkeypatch.setattr(pool, "ray", ray)
    for module in (fleet, decode_queue, worker_handle):
        monkeypatch.setattr(module, "ray", ray)
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: ray.now))
    monkeypatch.setattr(worker_handle, "actor_state_of", lambda worker: worker.state)
    monkeypatch.setattr(fleet, "draining", lambda: set())
    monkeypatch.setattr(fleet, "start_worker", start)
    return ray
