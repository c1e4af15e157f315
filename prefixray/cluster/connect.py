"""Where a sweep runs: on this machine, or on a Ray cluster. Connects, and counts the devices.

On one machine Ray is started for this sweep alone and ends with it. A cluster is joined only where it is named (by an
address, or by RAY_ADDRESS) or where `ray up` made this machine its head: a bare connection would attach to any Ray that
happens to run here.

Ray listens on all of a machine's addresses, and who may talk to it may run code. So the Ray of one sweep lets in only
who has its token, which the driver makes and its processes inherit. A cluster has a rule of its own, which the driver
asks for: it could join an open cluster with a token, but the cluster's processes could not answer it.
"""

import logging
import os
import secrets
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import utils, worker
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from prefixray.cluster.nodes import AUTOSCALER_FILE, Devices, num_gpus, num_gpus_here, present, to_come
from prefixray.errors import SweepFailed, UserError, first_line
from prefixray.planning.slots import cpu_workers
from prefixray.system.machine import ALLOCATOR, CUDA_ALLOCATOR, CUDA_ALLOCATOR_NAMES, WAITING, num_cpus
from prefixray.system.path_or_hub import find_base, is_converted
from prefixray.system.stand_ins import environment, standing_in

logger = logging.getLogger(__name__)

_OBJECT_STORE = 256 << 20  # bytes; nothing large goes through it
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_SERVICES = ("raylet", "gcs_server")  # Ray's names of the processes without which it cannot go on
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What of Ray's node starts the autoscaler, what brings prints to the driver, and what counts users.

Each takes 0.4 to 0.8 CPU seconds, and Ray waits for the last.
"""
_NO_DASHBOARD = ImportError("is not looked for")
"""In place of Ray's look whether its dashboard is installed; so its agent does without what only the dashboard asks."""
_NOBODY = "no Ray cluster answers there"
_ASK = """
import sys
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient
GcsClient(address=canonicalize_bootstrap_address_or_die(sys.argv[1]))
"""

_CONVERT = """
import gc
gc.disable()
import sys
from prefixray.model.base_files import find_weights
find_weights(sys.argv[1])
"""


@dataclass(frozen=True)
class Cluster:
    """The machine or the cluster that a sweep runs on."""

    address: str  # "local", or the cluster's
    namespace: str  # Ray's, in which workers are found by name
    device: str  # that workers compute on: "cuda" or "cpu"
    num_cpus: int
    num_gpus: int
    num_workers: int  # one per GPU; without GPUs two on one machine, or one per node of a cluster
    most_workers: int  # the same, with all machines that an autoscaler may start
    num_threads: int  # of each worker

    @property
    def is_elastic(self) -> bool:
        """Whether machines may come and go."""
        return self.address != "local"

    @property
    def worker_resources(self) -> dict[str, int]:
        """The resources that a worker asks of Ray: its device. The autoscaler sees a worker that waits for one."""
        return {"num_gpus": 1, "num_cpus": 1} if self.device == "cuda" else {"num_cpus": self.num_threads}

    @property
    def worker_environment(self) -> dict[str, str]:
        """Extra environment variables for workers; the driver's own values win."""
        return _worker_environment(self.device)

    @property
    def worker_options(self) -> dict[str, Any]:
        """Ray's options for a worker.

        The Ray of one machine was started with the workers' environment: so a worker gets a process that is there.
        """
        own = {"runtime_env": {"env_vars": self.worker_environment}} if self.is_elastic else {}
        return {**self.worker_resources, **own}

    def count_devices(self) -> int:
        """For how many workers there are devices now, in all."""
        return sum(self.devices().values()) if self.is_elastic else self.num_workers

    def devices(self) -> dict[str, int]:
        """For how many workers there are devices now, by node id."""
        return {node: _num_workers([machine], self.device) for node, machine in present().items()}

    def __str__(self) -> str:
        where = f"the Ray cluster at {self.address}" if self.is_elastic else "this machine"
        more = f", up to {self.most_workers} workers" if self.most_workers > self.num_workers else ""
        return f"{where}: {self.num_gpus} GPUs, {self.num_cpus} CPUs{more}"


def chosen_address(given: str | None) -> str:
    """The address that `connected` joins; "local" means that it starts Ray for this sweep."""
    is_head = AUTOSCALER_FILE.expanduser().is_file()
    return given or os.environ.get("RAY_ADDRESS") or ("auto" if is_head else "local")


@contextmanager
def connected(address: str | None, num_tries: int = 2, *, base: str | None = None) -> Iterator[Cluster]:
    """Start Ray here, or join the cluster at `address` ("auto": the one that runs here); leave it in the end.

    Ray is tried to be started so many times, since it gives up after half a minute on a busy machine.
    `base` is converted meanwhile where this machine has to do it (`_converting`).
    Without an address, the cluster is RAY_ADDRESS's, or the one of which `ray up` made this machine the head.
    Raises `UserError` where the cluster cannot be reached, and in a process that uses Ray already; `SweepFailed` where
    Ray does not start.
    """
    if ray.is_initialized():  # its end would be the end of the user's Ray
        remedy = "call ray.shutdown() first, or run the sweep in a process of its own"
        raise UserError(f"this process is connected to Ray already; {remedy}")
    address = chosen_address(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    namespace = f"prefixray-{uuid.uuid4().hex}"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _authentication(address), _converting(base if address == "local" else None):
        try:
            if address == "local":
                _start_here(namespace, num_tries)
            else:
                _join(address, namespace)
            if callable(on_sigterm):
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it by its own
            cluster = _count_devices(address, namespace)
            logger.info("%s", cluster)
            yield cluster
        finally:
            ray.shutdown()


@contextmanager
def _converting(base: str | None) -> Iterator[None]:
    """Convert a GGUF file that was never used here in a process of its own, beside the start of Ray and of the workers.

    The workers need it first. One that comes before it is done waits for it; where it fails, the worker converts the
    file itself, and says what is wrong.
    """
    file = None if base is None else find_base(base)
    if file is None or isinstance(file, str) or file.is_dir() or is_converted(file):
        yield
        return
    logger.info("converting %s to safetensors, once", file)
    command = [sys.executable, "-c", _CONVERT, str(file)]
    nowhere, environment = subprocess.DEVNULL, {**WAITING, **os.environ}
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment) as process:
        try:
            yield
        finally:
            process.kill()


def dead_service() -> str | None:
    """What has died of the Ray that `connected` has started here, of all that Ray cannot do without: its name and pid.

    None also where a cluster was joined.
    """
    node = getattr(worker, "_global_node", None)  # where a version of Ray lacks these names, nothing is noticed
    dead: list[tuple[str, subprocess.Popen[bytes]]] = getattr(node, "dead_processes", list)()
    return next((f"{name}, process {process.pid}" for name, process in dead if name in _SERVICES), None)


def _join(address: str, namespace: str) -> None:
    try:
        ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        is_closed = os.environ[_MODE] == "token"
        problem = "does not let us in, or does not answer: is our token its own?" if is_closed else _NOBODY
        raise UserError(f"--address: {address}: {problem}") from error
    except AuthenticationError as error:
        raise UserError(f"--address: {address}: does not let us in: {error}") from error


@contextmanager
def _authentication(address: str) -> Iterator[None]:
    """Have the rule of the Ray at `address`: a new token where it is this sweep's own, the mode where it is a cluster.

    A mode that the user has set for a cluster is left.
    """
    if address == "local":
        rule: dict[str, str | None] = {_MODE: "token", _TOKEN: secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None}
    else:
        rule = {_MODE: os.environ.get(_MODE) or ("token" if requires_token(address) else "disabled")}
    with environment(rule, then=_read_anew):
        yield


def _read_anew() -> None:
    """Have Ray read its environment variables anew."""
    Config.initialize("")  # first, for Ray's threads may look for a token until they know that there is none
    AuthenticationTokenLoader.instance().reset_cache()


def requires_token(address: str) -> bool:
    """Whether the cluster at `address` ("auto": the one that runs here) lets in only who has its token.

    Raises `UserError` where no cluster answers.
    """
    command = [sys.executable, "-c", _ASK, address]
    environment = {**os.environ, _MODE: "disabled", "RAY_BACKEND_LOG_LEVEL": "warning"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as asking:
        assert asking.stderr is not None
        for line in asking.stderr:
            if "Unauthenticated" in line:  # and it would ask again for 20 seconds
                asking.kill()
                return True
    if asking.returncode:
        raise UserError(f"--address: {address}: {_NOBODY}")
    return False


def _count_devices(address: str, namespace: str) -> Cluster:
    """Count the devices that are there, and those that may come."""
    here = list(present().values())
    coming = [] if address == "local" else to_come()
    device = "cuda" if num_gpus(here) + num_gpus(coming) else "cpu"
    now, most = _num_workers(here, device), _num_workers(coming, device)
    if address == "local" and device == "cpu":
        now, num_threads = cpu_workers(here[0].num_cpus)
    elif now + most:
        num_threads = _threads([*here, *coming], device)
    else:
        raise UserError(f"--address: {address}: this Ray cluster has neither GPUs nor CPUs")
    count = sum(node.num_cpus for node in here)
    return Cluster(address, namespace, device, count, num_gpus(here), now, max(now, most), num_threads)


def _num_workers(machines: Iterable[Devices], device: str) -> int:
    """One per GPU, or one per machine that offers CPUs."""
    return num_gpus(machines) if device == "cuda" else sum(node.num_cpus > 0 for node in machines)


def _threads(machines: Sequence[Devices], device: str) -> int:
    """Threads of each worker: its share of the smallest machine."""
    if device == "cuda":
        return max(1, min(node.num_cpus // node.num_gpus for node in machines if node.num_gpus))
    return min(node.num_cpus for node in machines if node.num_cpus)


def _worker_environment(device: str) -> dict[str, str]:
    if device == "cuda":
        chosen = {name: os.environ[name] for name in CUDA_ALLOCATOR_NAMES if name in os.environ}
        return chosen or dict(CUDA_ALLOCATOR)
    return {key: os.environ.get(key, value) for key, value in {**ALLOCATOR, **WAITING}.items()}


def _start_here(namespace: str, num_tries: int) -> None:
    """Start Ray on this machine, whose processes have the environment of workers."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
    num_gpus = num_gpus_here()
    with (
        environment(_worker_environment("cuda" if num_gpus else "cpu")),
        standing_in(Node, **dict.fromkeys(_UNUSED, _start_none)),
        standing_in(utils, get_dashboard_dependency_error=lambda: _NO_DASHBOARD),
    ):
        _try_to_start(namespace, num_gpus, num_tries)


def _start_none(*_: object, **__: object) -> None:
    """In the place of what starts a service."""


def _try_to_start(namespace: str, num_gpus: int, num_tries: int) -> None:
    for tries_left in reversed(range(num_tries)):
        try:
            ray.init(
                address="local",
                namespace=namespace,
                num_cpus=num_cpus(),
                num_gpus=num_gpus,
                object_store_memory=_OBJECT_STORE,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises no narrower class
            logger.info("Ray did not start here; %s", "once more" if tries_left else "given up", exc_info=True)
            ray.shutdown()
            if not tries_left:
                problem = f"Ray did not start on this machine, tried {num_tries} times: {first_line(error)}"
                remedy = "end other work or make memory free, then run the same command again"
                raise SweepFailed(f"{problem}; {remedy}") from None
