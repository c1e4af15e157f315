"""The nodes of a Ray cluster: which are there, may be started, are about to go, or cannot be used.

This is the one module that asks Ray's control service directly. A node that is being drained counts as gone, since Ray
starts nothing there any more.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private import state
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.actor import ActorHandle
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError

from prefixray.errors import UserError

AUTOSCALER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves a cluster's file on its head."""

_DRAIN_SECONDS = 1.0  # between two tries to drain a node
_HEAD = "node:__internal_head__"  # a resource that Ray gives the head


@dataclass(frozen=True)
class ActorState:
    """An actor's row in Ray's table."""

    state: str  # ALIVE; DEAD: for good; any other: it has no process, or its process is in its constructor
    num_restarts: int
    pid: int  # of its newest process, dead or not; 0 before the first
    node: str  # the id of that process's node


@dataclass(frozen=True)
class Devices:
    """What a node offers to workers."""

    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class OwnNode:
    """The node of this process."""

    id: str
    resource: str  # that this node alone offers, 1.0 of it: what asks for a bit of it is started here


def own_node() -> OwnNode:
    """The node of this process."""
    own: str = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
    return OwnNode(own, next(name for name in resources if name.startswith("node:") and name != _HEAD))


def present() -> dict[str, Devices]:
    """The nodes that are there, by id."""
    leaving = draining()
    return {
        node["NodeID"]: _devices(node["Resources"])
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeID"] not in leaving
    }


def num_gpus_here() -> int:
    """The GPUs that sweeps on this machine may use: none with torch's build for CPUs.

    Ray counts those that the driver knows, and takes the id -1, which switches off what follows, for one.
    """
    if version("torch").endswith("+cpu"):
        return 0
    manager = get_accelerator_manager_for_resource("GPU")
    assert manager is not None, "Ray knows GPUs"
    visible = manager.get_current_process_visible_accelerator_ids()
    found: int = manager.get_current_node_num_accelerators()
    return found if visible is None else min(found, len([*takewhile(lambda name: name != "-1", visible)]))


def to_come(file: Path = AUTOSCALER_FILE) -> list[Devices]:
    """The nodes that the autoscaler may have running at most, without the head; none where there is no autoscaler.

    Where the types allow more than the cluster's `max_workers`, the nodes with the most devices count.
    """
    config, types = _autoscaler(file)
    machines = [
        _devices(node.get("resources") or {})
        for node in types
        for _ in range(node.get("max_workers", config.get("max_workers", 0)))
    ]
    machines.sort(key=lambda devices: (devices.num_gpus, devices.num_cpus), reverse=True)
    return machines[: config.get("max_workers", 0)]


def may_be_larger(file: Path = AUTOSCALER_FILE) -> bool | None:
    """Whether a machine that the autoscaler starts may be larger than another one; None where there is no autoscaler.

    It may not where the cloud has one name for all of them.
    """
    _, types = _autoscaler(file)
    kinds = [node.get("node_config") or {} for node in types]
    names = {str([kind.get(key) for key in ("InstanceType", "machineType", "guestAccelerators")]) for kind in kinds}
    is_named = all("InstanceType" in kind or "machineType" in kind for kind in kinds)
    return len(names) > 1 or not is_named if types else None


def draining() -> set[str]:
    """The ids of nodes that are about to go."""
    return set(state.state.get_draining_nodes())


def actor_state_of(actor: ActorHandle[Any]) -> ActorState:
    """An actor's state, as far as Ray's control service knows it by now."""
    row: dict[str, Any] = state.actors(actor._actor_id.hex())
    if not row:  # the actor is too new
        return ActorState("PENDING_CREATION", 0, 0, "")
    return ActorState(row["State"], row["NumRestarts"], row["Pid"], row["Address"]["NodeID"])


def drain_in_time(address: str, ip: str, *, node: str | None, reason: str, seconds: float) -> bool:
    """Drain a node that is taken back in so many seconds; returns whether Ray has taken note.

    Where no `node` is named, it is the living one at `ip`. While the control service does not answer or does not know
    the node, it is asked again, until the seconds are over.
    """
    deadline = time.monotonic() + seconds
    while True:
        with suppress(RayError):
            found = node or node_at(address, ip)
            if found is not None and drain(address, found, reason, max(0.0, deadline - time.monotonic())):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_DRAIN_SECONDS)


def node_at(address: str, ip: str) -> str | None:
    """The id of the living node with this address, asked of the cluster's control service at `address`."""
    nodes = _control(address).get_all_node_info(timeout=5)
    alive = [i.hex() for i, node in nodes.items() if node.node_manager_address == ip and node.state == node.ALIVE]
    return alive[-1] if alive else None


def drain(address: str, node_id: str, reason: str, seconds: float) -> bool:
    """Tell Ray that a node is taken back in so many seconds; returns whether Ray has taken note.

    Ray starts nothing there from now on, and the node's death costs no trial a retry.
    """
    deadline = time.time_ns() // 1_000_000 + int(1000 * seconds)
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    is_accepted: bool = _control(address).drain_node(node_id, preemption, reason, deadline)[0]
    return is_accepted


def _control(address: str) -> Any:  # noqa: ANN401
    return ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]


def num_gpus(machines: Iterable[Devices]) -> int:
    """The GPUs of these nodes, in all."""
    return sum(devices.num_gpus for devices in machines)


def _autoscaler(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The cluster's file, and the types of its machines without the head's; nothing where there is no autoscaler."""
    path = file.expanduser()
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    types = config.get("available_node_types") or {}
    return config, [node for name, node in types.items() if name != config.get("head_node_type")]


def _devices(resources: dict[str, Any]) -> Devices:
    return Devices(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


class Refusals:
    """The devices on which workers were never ready, and why not.

    `devices` counts a cluster's by node; it is None on one machine, which has no others.
    """

    def __init__(self, devices: Callable[[], Mapping[str, int]] | None) -> None:
        self._devices = devices
        self._causes: list[tuple[str, UserError]] = []  # each with its node

    def add(self, node: str, cause: UserError) -> None:
        """Leave a device of this node alone from now on."""
        self._causes.append((node, cause))

    def causes(self) -> list[UserError]:
        """Why, in the order in which they came."""
        return [cause for _, cause in self._causes]

    def count(self) -> int:
        """How many devices cannot be used; of a node no more than it has, since workers may have tried one in turn."""
        if not self._causes or self._devices is None:
            return len(self._causes)
        devices = self._devices()
        return sum(min(count, devices.get(node, count)) for node, count in self._by_node().items())

    def shunned_nodes(self) -> list[str]:
        """The nodes of which no device can be used: Ray must not start a worker there."""
        if not self._causes or self._devices is None:
            return []
        refused = self._by_node()
        return [node for node, num_devices in self._devices().items() if refused[node] >= num_devices > 0]

    def forget_gone_nodes(self) -> None:
        """Forget the nodes that have gone: the nodes that replace them may be able to load the base."""
        if self._causes and self._devices is not None:
            nodes = self._devices()
            self._causes = [(node, cause) for node, cause in self._causes if node in nodes or not node]

    def _by_node(self) -> Counter[str]:
        return Counter(node for node, _ in self._causes)
