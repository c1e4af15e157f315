"""Where a sweep runs: this machine, or a Ray cluster. Connects, counts what is there, says what was found.

On one machine Ray is started for this sweep alone and ends with it; a cluster is joined only when it is named (an
address, or RAY_ADDRESS) or `ray up` made this machine its head, since a bare connection would attach to any Ray that
happens to run here.
"""

import logging
import os
import signal
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import AuthenticationError

from prefixray.cluster.nodes import AUTOSCALER_FILE, Devices, num_gpus, present, to_come
from prefixray.errors import SweepFailed, UserError, first_line
from prefixray.planning.slots import cpu_workers
from prefixray.system.machine import ALLOCATOR, num_cpus

logger = logging.getLogger(__name__)

NUM_TRIALS_AT_ONCE = 512  # processes of trials that one machine may hold
_OBJECT_STORE = 256 << 20  # nothing large goes through it


@dataclass(frozen=True)
class Cluster:
    """What was found."""

    address: str  # "local" or the cluster's
    namespace: str  # workers are found by name in it
    device: str  # "cuda" or "cpu": what workers compute on
    num_cpus: int
    num_gpus: int
    num_workers: int  # one per GPU; without any, two on one machine, one per node of a cluster
    most_workers: int  # with the machines that an autoscaler may start
    num_threads: int  # of each worker
    trial_resources: dict[str, float]  # what the thin process of a trial takes

    @property
    def is_elastic(self) -> bool:
        """Whether machines may come and go."""
        return self.address != "local"

    @property
    def worker_resources(self) -> dict[str, int]:
        """What a worker asks of Ray: its device; while there is none for it, the autoscaler sees that one is wanted."""
        return {"num_gpus": 1, "num_cpus": 1} if self.device == "cuda" else {"num_cpus": self.num_threads}

    @property
    def worker_environment(self) -> dict[str, str]:
        """What a worker's environment has beside its machine's; what is set where the driver runs goes first."""
        return {} if self.device == "cuda" else {key: os.environ.get(key, value) for key, value in ALLOCATOR.items()}

    def count_devices(self) -> int:
        """For how many workers there are devices now."""
        return sum(self.devices().values()) if self.is_elastic else self.num_workers

    def devices(self) -> dict[str, int]:
        """For how many workers there are devices now, by node id."""
        return {node: _num_workers([machine], self.device) for node, machine in present().items()}

    def __str__(self) -> str:
        where = f"the Ray cluster at {self.address}" if self.is_elastic else "this machine"
        more = f", up to {self.most_workers} workers" if self.most_workers > self.num_workers else ""
        return f"{where}: {self.num_gpus} GPUs, {self.num_cpus} CPUs{more}"


def chosen_address(given: str | None) -> str:
    """The address that `connected` joins: "local" where it starts Ray for this sweep."""
    is_head = AUTOSCALER_FILE.expanduser().is_file()
    return given or os.environ.get("RAY_ADDRESS") or ("auto" if is_head else "local")


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Start Ray here, or join the cluster at `address` ("auto": the one that runs here); leave it in the end.

    Without an address it is RAY_ADDRESS's cluster, or that whose head this machine is, where `ray up` made it one.
    Raises `UserError` when the cluster cannot be reached.
    """
    address = chosen_address(address)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address == "local" else "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    namespace = f"prefixray-{uuid.uuid4().hex}"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            _start_here(namespace)
        else:
            ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"--address: {address}: no Ray cluster answers there") from error
    except AuthenticationError as error:
        raise UserError(f"--address: {address}: does not let us in: {error}") from error
    if callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in its place
    try:
        cluster = _look_around(address, namespace)
        logger.info("%s", cluster)
        yield cluster
    finally:
        ray.shutdown()


def _look_around(address: str, namespace: str) -> Cluster:
    """Count what there is, and what may come."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    trial = {"trial": 1.0} if "trial" in found else {"CPU": 0.01}
    here = list(present().values())
    coming = [] if address == "local" else to_come()
    device = "cuda" if num_gpus(here) + num_gpus(coming) else "cpu"
    now, most = _num_workers(here, device), _num_workers(coming, device)
    if address == "local" and device == "cpu":
        now, num_threads = cpu_workers(here[0].num_cpus)
    elif now + most:
        num_threads = _threads([*here, *coming], device, num_spare=0 if "trial" in found else 1)
    else:
        raise UserError(f"--address: {address}: this Ray cluster has neither GPUs nor CPUs")
    count = sum(node.num_cpus for node in here)
    return Cluster(
        address, namespace, device, count, num_gpus(here), now, max(now, most), num_threads, trial_resources=trial
    )


def _num_workers(machines: Iterable[Devices], device: str) -> int:
    """One per GPU, or one per machine that has CPUs to give."""
    return num_gpus(machines) if device == "cuda" else sum(node.num_cpus > 0 for node in machines)


def _threads(machines: Sequence[Devices], device: str, *, num_spare: int) -> int:
    """Threads of each worker: as many as the smallest machine has; on CPUs, `num_spare` stay for trials' processes."""
    if device == "cuda":
        return max(1, min(node.num_cpus // node.num_gpus for node in machines if node.num_gpus))
    return max(1, min(node.num_cpus for node in machines if node.num_cpus) - num_spare)


def _start_here(namespace: str) -> None:
    """Start Ray on this machine; twice, since on a busy one it gives up after half a minute."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    for tries_left in (1, 0):
        try:
            ray.init(
                address="local",
                namespace=namespace,
                num_cpus=num_cpus(),
                resources={"trial": float(NUM_TRIALS_AT_ONCE)},
                object_store_memory=_OBJECT_STORE,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises that very class
            logger.info("Ray did not start here; %s", "once more" if tries_left else "given up", exc_info=True)
            ray.shutdown()
            if not tries_left:
                told = f"Ray did not start on this machine, tried twice: {first_line(error)}"
                raise SweepFailed(
                    f"{told}; end other work or make memory free, then run the same command again"
                ) from None
