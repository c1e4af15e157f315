"""Where a sweep runs: this machine, or a Ray cluster. Connects, counts what is there, says what was found.

On one machine Ray is started for this sweep alone and ends with it; a cluster is joined only when it is named (an
address, or RAY_ADDRESS), since a bare connection would attach to any Ray that happens to run here.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import ray

from prefixray.config import UserError
from prefixray.sizes import cpu_workers

NUM_TRIALS_AT_ONCE = 512  # processes of trials that one machine may hold
_OBJECT_STORE = 256 << 20  # nothing large goes through it


@dataclass(frozen=True)
class Cluster:
    """What was found."""

    address: str  # "local" or the cluster's
    namespace: str  # workers are found by name in it
    num_cpus: int
    num_gpus: int
    num_workers: int  # one per GPU; without any, two on one machine, one per node of a cluster
    num_threads: int  # of each worker
    trial_resources: dict[str, float]  # what the thin process of a trial takes

    @property
    def device(self) -> str:
        """What workers compute on."""
        return "cuda" if self.num_gpus else "cpu"

    def __str__(self) -> str:
        where = "this machine" if self.address == "local" else f"the Ray cluster at {self.address}"
        return f"{where}: {self.num_gpus} GPUs, {self.num_cpus} CPUs"


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Start Ray here, or join the cluster at `address` ("auto": the one that runs here); leave it in the end.

    Raises `UserError` when the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address == "local" else "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    namespace = f"prefixray-{os.getpid()}"
    try:
        if address == "local":
            _start_here(namespace)
        else:
            ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"--address: {address}: no Ray cluster answers there") from error
    try:
        yield _look_around(address, namespace)
    finally:
        ray.shutdown()


def _look_around(address: str, namespace: str) -> Cluster:
    """Count what there is."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpus, num_gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with_cpus = [count for count in nodes if count]
    if num_gpus:
        num_workers, num_threads = num_gpus, max(1, num_cpus // num_gpus)
    elif address == "local":
        num_workers, num_threads = cpu_workers(num_cpus)
    elif with_cpus:
        num_workers, num_threads = len(with_cpus), max(1, min(with_cpus) - 1)  # a core stays for the trials' processes
    else:
        raise UserError(f"--address: {address}: this Ray cluster has neither GPUs nor CPUs")
    trial = {"trial": 1.0} if "trial" in found else {"CPU": 0.01}
    return Cluster(address, namespace, num_cpus, num_gpus, num_workers, num_threads, trial)


def _start_here(namespace: str) -> None:
    ray.init(
        address="local",
        namespace=namespace,
        num_cpus=psutil.cpu_count() or 1,
        resources={"trial": float(NUM_TRIALS_AT_ONCE)},
        object_store_memory=_OBJECT_STORE,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
