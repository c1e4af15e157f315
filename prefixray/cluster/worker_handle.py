"""A worker's place: its actor, what state that is in, and the trials that are there.

The state follows Ray's table of actors, which knows of every process; a call that fails says only that something is
wrong. `seen` is the one function by which the table moves it. Ray starts a dead worker again under the same name,
unless it is dead for good.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import ActorState, actor_state_of
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.errors import SweepFailed, UserError, first_line
from prefixray.planning.slots import MOST_SLOTS
from prefixray.training.facts import WorkerFacts
from prefixray.trial import TrialSpec, WorkerStatus

MOST_LOADS = 3  # processes in a row that die while they load the base
LOADING_SECONDS = 3600.0  # a download of the base included
NODE_LABEL = "ray.io/node-id"  # that Ray gives each node
MOVE_SECONDS = 15.0  # without a process after which a worker's trials go on with others


class State(Enum):
    """Where a worker stands."""

    STARTING = auto()  # it has no process: it waits for a device
    LOADING = auto()  # its process loads the base
    READY = auto()
    SILENT = auto()  # it was ready, and a call to it has failed: it has died, or answers again
    LEAVING = auto()  # its machine is about to go, and its trials are being checkpointed
    LOST = auto()  # over: dead for good after it had been ready; another is started for it
    REFUSED = auto()  # over: it was never ready, and its device is left alone


_UP = (State.READY, State.SILENT, State.LEAVING)
_OVER = (State.LOST, State.REFUSED)


@dataclass(frozen=True)
class Life:
    """A worker's life so far."""

    state: State
    since: float  # `time.monotonic()`
    num_restarts: int = 0
    pid: int = 0  # of the newest process that was seen
    num_failed: int = 0  # processes in a row that have died while they loaded the base
    has_served: bool = False  # it was ready once
    cause: UserError | None = None  # why it is over

    def to(self, state: State, now: float) -> "Life":
        """The same life in another state from now on."""
        return replace(self, state=state, since=now)

    def end(self, cause: UserError, now: float) -> "Life":
        """The end of it."""
        return replace(self.to(State.LOST if self.has_served else State.REFUSED, now), cause=cause)


def seen(life: Life, sight: ActorState, now: float) -> Life:
    """A life after a look at Ray's table, which may be a moment behind."""
    num_died = sight.num_restarts - life.num_restarts
    if life.state in _OVER or num_died < 0:
        return life
    if sight.state == "DEAD":
        return life.end(SweepFailed("it is dead for good"), now)
    if num_died:
        num_failed = life.num_failed + num_died - (life.state in _UP)
        since = -math.inf if life.state is State.LEAVING else now  # its machine has gone, and its trials need not wait
        life = replace(life.to(State.STARTING, since), num_restarts=sight.num_restarts, num_failed=num_failed)
    if life.num_failed >= MOST_LOADS:
        return life.end(SweepFailed(f"it died {life.num_failed} times while it loaded the base"), now)
    if life.state is State.STARTING and (sight.state == "ALIVE" or sight.pid != life.pid):
        life = life.to(State.LOADING, now)
    if life.state in (State.LOADING, State.SILENT) and now > life.since + LOADING_SECONDS:
        return life.end(SweepFailed(f"it was not ready after {LOADING_SECONDS / 60:.0f} minutes"), now)
    return replace(life, pid=sight.pid)


@dataclass
class WorkerHandle:
    """A worker and who is on it."""

    name: str
    record: Path  # where it writes down what it may die of
    handle: ActorHandle[Worker]
    life: Life
    node: str = ""  # where its newest process is, or was
    free_bytes: int = 0  # of its own device, beside the base
    num_slots: int = 0  # by that
    keys: dict[str, TrialSpec] = field(default_factory=dict)
    exclusive: bool = False
    decoding: Any = None  # what it has been given to decode, while it has no trials
    status: WorkerStatus | None = None  # what it said last
    heard_at: float | None = None  # the `time.monotonic()` of that; None before the first time and after a death
    busy_at: float = field(default_factory=time.monotonic)  # when it had something to do last
    _answer: Any = None  # to the question whether it is ready
    _retiring: Any = None  # its answer that it has checkpointed its trials

    @property
    def is_ready(self) -> bool:
        """Whether it takes trials."""
        return self.life.state is State.READY

    @property
    def is_over(self) -> bool:
        """Whether it will never be ready (again)."""
        return self.life.state in _OVER

    @property
    def has_device(self) -> bool:
        """Whether a process of it holds a device."""
        return self.life.state in (State.LOADING, *_UP)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.keys and self.decoding is None

    @property
    def is_stranded(self) -> bool:
        """Whether trials that are here had better go on elsewhere."""
        is_late = self.life.state is State.STARTING and time.monotonic() > self.life.since + MOVE_SECONDS
        return self.is_over or (is_late and bool(self.keys))

    def look(self) -> WorkerFacts | None:
        """See how it is; what it has found out about its base and device, where it has just become ready."""
        before = self.life
        sight = actor_state_of(self.handle)
        self.life, self.node = seen(before, sight, time.monotonic()), sight.node
        if self.life.num_restarts != before.num_restarts:
            self._answer = self._retiring = self.heard_at = None
        if self._retiring is not None and ray.wait([self._retiring], timeout=0)[0]:
            self._retiring = None
            ray.kill(self.handle, no_restart=False)
        is_asked = self.life.state in (State.LOADING, State.SILENT) and sight.state == "ALIVE"
        return self._ask() if is_asked else None

    def _ask(self) -> WorkerFacts | None:
        """Ask whether it is ready, and what it has found; the answer may come at a later look."""
        self._answer = self._answer or self.handle.ready.remote()
        if not ray.wait([self._answer], timeout=0)[0]:
            return None
        answer, self._answer, now = self._answer, None, time.monotonic()
        try:
            facts: WorkerFacts = ray.get(answer)
        except RayTaskError as error:
            is_told = isinstance(error.cause, UserError)
            cause = type(error.cause)(*error.cause.problems) if is_told else SweepFailed(first_line(error))
            self.life = self.life.end(cause, now)
        except RayError:  # it has died just now, as the table will say
            return None
        else:
            self.life = replace(self.life.to(State.READY, now), num_failed=0, has_served=True)
            self.heard_at = now
            return facts
        return None

    def miss(self) -> None:
        """A call to it has failed: it gets nothing more until it has answered again."""
        self.heard_at = None
        if self.is_ready:
            self.life = self.life.to(State.SILENT, time.monotonic())

    def leave(self) -> None:
        """Have its trials checkpointed, and its process ended then: its machine is about to go."""
        self.life = self.life.to(State.LEAVING, time.monotonic())
        self._retiring = self.handle.retire.remote()


def away_from(nodes: Collection[str]) -> dict[str, dict[str, str]]:
    """The option with which Ray starts an actor on none of these."""
    return {"label_selector": {NODE_LABEL: f"!in({','.join(sorted(nodes))})"}} if nodes else {}


def start_worker(
    name: str, cluster: Cluster, setup: WorkerSetup, record: Path, shunned: Collection[str] = ()
) -> WorkerHandle:
    """A worker actor, not on the nodes `shunned`: it blocks one thread per waiting call, and dies with the driver."""
    actor = ray.remote(Worker).options(
        name=name,
        namespace=cluster.namespace,
        max_restarts=-1,
        max_concurrency=2 * MOST_SLOTS + 8,
        runtime_env={"env_vars": cluster.worker_environment},
        **cluster.worker_resources,
        **away_from(shunned),
    )
    handle: ActorHandle[Worker] = actor.remote(replace(setup, record=str(record)))  # type: ignore[assignment]
    return WorkerHandle(name, record, handle, Life(State.STARTING, time.monotonic()))
