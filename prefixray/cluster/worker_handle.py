"""The driver's handle of a worker: its actor, the state of that actor, and the trials that are placed on it.

The state follows Ray's table of actors, which knows of every process; a call that fails says only that something is
wrong. `advance` is the one function by which the table moves the state. Ray starts a dead worker again under the same
name, unless it is dead for good.
"""

import math
import time
from collections import Counter
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
from prefixray.cluster.quarantine import num_loads
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.errors import SweepFailed, UserError, first_line
from prefixray.planning.slots import MOST_SLOTS
from prefixray.results.timeline.keeper import Does, Doing
from prefixray.training.facts import WorkerFacts
from prefixray.trial import TrialSpec, WorkerStatus

MOST_LOADS = 3  # processes in a row that die while they load the base
LOADING_SECONDS = 3600.0  # for loading the base, which may have to be downloaded
NODE_LABEL = "ray.io/node-id"  # the label that Ray gives each node
MOVE_SECONDS = 15.0  # that a worker may be without a process before its trials move to other workers


class Phase(Enum):
    """A phase in a worker's life."""

    STARTING = auto()  # it has no process: it waits for a device
    LOADING = auto()  # its process loads the base
    READY = auto()
    SILENT = auto()  # it was ready, and a call has failed: it has died, or will answer again
    RETIRING = auto()  # its machine is about to go, and it checkpoints its trials
    LOST = auto()  # over: dead for good after it had been ready; another worker is started in its place
    REFUSED = auto()  # over: it was never ready, and its device is left alone


_UP = (Phase.READY, Phase.SILENT, Phase.RETIRING)
_OVER = (Phase.LOST, Phase.REFUSED)


@dataclass(frozen=True)
class WorkerState:
    """A worker's phase, and what of its past decides the next phase."""

    phase: Phase
    since: float  # `time.monotonic()` at which the phase began
    num_restarts: int = 0
    pid: int = 0  # of the newest process
    num_loads: int = 0  # processes that had loaded the base when one died last, by the worker's own record
    num_failed: int = 0  # processes in a row that have died while they loaded the base
    has_served: bool = False  # it has been ready
    cause: UserError | None = None  # why it is over

    def to(self, phase: Phase, now: float) -> "WorkerState":
        """The same worker in another phase, from now on."""
        return replace(self, phase=phase, since=now)

    def end(self, cause: UserError, now: float) -> "WorkerState":
        """The same worker, over."""
        return replace(self.to(Phase.LOST if self.has_served else Phase.REFUSED, now), cause=cause)


def advance(state: WorkerState, actor: ActorState, now: float, num_loads: int = 0) -> WorkerState:
    """The state after a look at Ray's table, which may be a moment behind.

    `num_loads` tells, where a process has died that never answered, whether it had loaded the base: the trials do not
    wait for the driver's look, and may have killed it by then.
    """
    num_died = actor.num_restarts - state.num_restarts
    if state.phase in _OVER or num_died < 0:
        return state
    if actor.state == "DEAD":
        return state.end(SweepFailed("it is dead for good"), now)
    if num_died:
        had_loaded = state.phase in _UP or num_loads > state.num_loads
        num_failed = num_died - 1 if had_loaded else state.num_failed + num_died
        since = -math.inf if state.phase is Phase.RETIRING else now  # its machine has gone: its trials need not wait
        state = replace(state.to(Phase.STARTING, since), num_restarts=actor.num_restarts, num_failed=num_failed)
        state = replace(state, num_loads=max(num_loads, state.num_loads))
    if state.num_failed >= MOST_LOADS:
        return state.end(SweepFailed(f"it died {state.num_failed} times while it loaded the base"), now)
    if state.phase is Phase.STARTING and (actor.state == "ALIVE" or actor.pid != state.pid):
        state = state.to(Phase.LOADING, now)
    if state.phase in (Phase.LOADING, Phase.SILENT) and now > state.since + LOADING_SECONDS:
        return state.end(SweepFailed(f"it was not ready after {LOADING_SECONDS / 60:.0f} minutes"), now)
    return replace(state, pid=actor.pid)


@dataclass
class WorkerHandle:
    """A worker as the driver knows it."""

    name: str
    record: Path  # the file in which it notes what it may die of
    actor: ActorHandle[Worker]
    state: WorkerState
    node: str = ""  # of its newest process
    free_bytes: int = 0  # of its own device, beside the base
    num_slots: int = 0  # for which that is enough
    trials: dict[str, TrialSpec] = field(default_factory=dict)  # by key
    exclusive: bool = False  # its trial wants no other beside it
    decoding: Any = None  # Ray's reference to the decoding that runs, while it has no trials
    status: WorkerStatus | None = None  # its last answer
    heard_at: float | None = None  # the `time.monotonic()` of that; None before the first time and after a death
    busy_at: float = field(default_factory=time.monotonic)  # when it last had something to do
    _ready: Any = None  # Ray's reference to its answer when it is ready
    _retired: Any = None  # Ray's reference to its answer when its trials are checkpointed

    @property
    def is_ready(self) -> bool:
        """Whether it has loaded the base, and answers."""
        return self.state.phase is Phase.READY

    @property
    def takes_trials(self) -> bool:
        """Whether a trial that is placed there begins at once: a decoding is not interrupted."""
        return self.is_ready and self.decoding is None

    @property
    def is_silent(self) -> bool:
        """Whether it was ready and had nothing to decode, and a call has failed since."""
        return self.state.phase is Phase.SILENT and self.decoding is None

    @property
    def is_over(self) -> bool:
        """Whether it will never be ready (again)."""
        return self.state.phase in _OVER

    @property
    def has_device(self) -> bool:
        """Whether a process of it holds a device."""
        return self.state.phase in (Phase.LOADING, *_UP)

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.trials and self.decoding is None

    @property
    def doing(self) -> Doing:
        """What it does now, for the sweep's timeline."""
        does: Does = "idle" if self.is_idle else "train" if self.decoding is None else "decode"
        if self.state.phase not in _UP:
            does = "load" if self.state.phase is Phase.LOADING else "wait"
        trials = Counter(spec.stage for spec in tuple(self.trials.values()))
        status = self.status
        if status is None:
            return Doing(does, trials)
        return Doing(does, trials, status.stepping, status.evaluating)

    @property
    def is_stranded(self) -> bool:
        """Whether its trials had better move to other workers."""
        is_late = self.state.phase is Phase.STARTING and time.monotonic() > self.state.since + MOVE_SECONDS
        return self.is_over or (is_late and bool(self.trials))

    def in_pack(self) -> dict[str, int]:
        """The trials that are in its pack, by its last answer, and how many steps each has done."""
        steps = {} if self.status is None else self.status.steps
        return {key: steps[key] for key in self.trials if key in steps}

    def furthest_from_end(self, besides: Collection[str]) -> TrialSpec | None:
        """The trial with the most steps left, of those in its pack that owe no report; none of `besides`."""
        left = {
            key: self.trials[key].config.num_steps - step
            for key, step in self.in_pack().items()
            if key not in besides and step not in self.trials[key].report_steps
        }
        return self.trials[max(left, key=left.__getitem__)] if left else None

    def refresh(self) -> WorkerFacts | None:
        """Bring the state up to date; returns the worker's facts when it has just become ready."""
        before, actor = self.state, actor_state_of(self.actor)
        loads = num_loads(self.record) if actor.num_restarts > before.num_restarts else 0
        self.state, self.node = advance(before, actor, time.monotonic(), loads), actor.node
        if self.state.num_restarts != before.num_restarts:
            self._ready = self._retired = self.heard_at = None
        if self._retired is not None and ray.wait([self._retired], timeout=0)[0]:
            self._retired = None
            ray.kill(self.actor, no_restart=False)
        is_asked = self.state.phase in (Phase.LOADING, Phase.SILENT) and actor.state == "ALIVE"
        return self._ask_ready() if is_asked else None

    def _ask_ready(self) -> WorkerFacts | None:
        """Ask whether it is ready; the answer may come at a later refresh."""
        self._ready = self._ready or self.actor.ready.remote()
        if not ray.wait([self._ready], timeout=0)[0]:
            return None
        answer, self._ready, now = self._ready, None, time.monotonic()
        try:
            facts: WorkerFacts = ray.get(answer)
        except RayTaskError as error:
            is_for_user = isinstance(error.cause, UserError)
            cause = type(error.cause)(*error.cause.problems) if is_for_user else SweepFailed(first_line(error))
            self.state = self.state.end(cause, now)
            return None
        except RayError:  # it has died just now, as the table will say
            return None
        self.state = replace(self.state.to(Phase.READY, now), num_failed=0, has_served=True)
        self.heard_at = now
        return facts

    def note_failed_call(self) -> None:
        """Give it nothing more until it has answered again: a call has failed."""
        self.heard_at = None
        if self.is_ready:
            self.state = self.state.to(Phase.SILENT, time.monotonic())

    def refuse(self, cause: UserError) -> None:
        """Use it no more, and start none in its place: another one would be as wrong."""
        self.state = replace(self.state.to(Phase.REFUSED, time.monotonic()), cause=cause)

    def retire(self) -> None:
        """Have its trials checkpointed, and its process ended after that: its machine is about to go."""
        self.state = self.state.to(Phase.RETIRING, time.monotonic())
        self._retired = self.actor.retire.remote()


def away_from(nodes: Collection[str]) -> dict[str, dict[str, str]]:
    """The option with which Ray starts an actor on none of these nodes."""
    return {"label_selector": {NODE_LABEL: f"!in({','.join(sorted(nodes))})"}} if nodes else {}


def start_worker(
    name: str, cluster: Cluster, setup: WorkerSetup, record: Path, shunned: Collection[str] = ()
) -> WorkerHandle:
    """Start a worker, on none of the nodes `shunned`. It blocks a thread per waiting call, and dies with the driver."""
    options = ray.remote(Worker).options(
        name=name,
        namespace=cluster.namespace,
        max_restarts=-1,
        max_concurrency=2 * MOST_SLOTS + 8,
        **cluster.worker_options,
        **away_from(shunned),
    )
    actor: ActorHandle[Worker] = options.remote(replace(setup, record=str(record)))  # type: ignore[assignment]
    return WorkerHandle(name, record, actor, WorkerState(Phase.STARTING, time.monotonic()))
