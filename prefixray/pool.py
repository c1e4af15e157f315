"""Who runs where: creates the workers, gives each trial a slot on one, takes it back.

The pool lives in the driver and is the one arbiter. Workers are actors that ask for a device each; Ray starts a dead
one again under the same name, so a trial finds its worker by name. One that gives no sign of life is killed, so that
Ray does. On a cluster there are as many workers as the trials need: one that waits for a device is what the autoscaler
sees, and one without work gives its device back. Nothing outlives the driver.
"""

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from prefixray.cluster import Cluster
from prefixray.config import ArmConfig, SweepFailed, UserError, first_line
from prefixray.hypotheses import Split
from prefixray.nodes import draining, node_of
from prefixray.sizes import BYTES_PER_TRAINED, MOST_SLOTS, largest_trial, num_slots
from prefixray.trial import TrialSpec, WorkerStatus
from prefixray.worker import Worker, WorkerSetup

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers that decode the same, before the sweep gives up
TEND_SECONDS = 2.0  # between two looks at how many workers are needed
MOVE_SECONDS = 15.0  # without a device after which a worker's trials go on with others
IDLE_SECONDS = 60.0  # without work after which a worker that is not needed gives its device back
HANG_SECONDS = 900.0  # without a forward, or without an answer, after which a worker hangs
WATCH_SECONDS = 5.0  # between two looks at the workers while they decode


DecodeJob = tuple[str | None, str, Split, Mapping[str, Any]]  # the arguments of `Worker.decode`


@dataclass
class _Place:
    """A worker and who is on it."""

    name: str
    handle: ActorHandle[Worker]
    loading: Any  # its answer to `ready`; None once that has come
    free_bytes: int = 0  # of its own device, beside the base
    num_slots: int = 0  # by that
    lost_at: float = math.inf  # since when it has had no process
    keys: dict[str, TrialSpec] = field(default_factory=dict)
    exclusive: bool = False
    decoding: Any = None  # what it has been given to decode, while it has no trials
    suspending: Any = None  # while its node is about to go
    status: WorkerStatus | None = None  # what it said last
    heard_at: float | None = None  # the `time.monotonic()` of that; None before the first time and after a death
    busy_at: float = field(default_factory=time.monotonic)  # when it had something to do last

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.keys and self.decoding is None

    @property
    def may_decode(self) -> bool:
        """Whether it can be given something to decode."""
        return self.is_idle and self.loading is None and self.suspending is None

    @property
    def is_stranded(self) -> bool:
        """Whether it has trials and no device, or not for long."""
        return self.suspending is not None or (bool(self.keys) and self.loading is not None)

    def lose(self) -> None:
        """It has no process any more; Ray starts it again as soon as there is a device."""
        self.loading, self.lost_at, self.suspending = self.handle.ready.remote(), time.monotonic(), None


class Pool:
    """The workers of a sweep."""

    def __init__(self, cluster: Cluster, setup: WorkerSetup, records: Path) -> None:
        """Start the workers; what they die of is recorded in the folder `records`, which each driver begins anew."""
        self._cluster, self._setup, self._records = cluster, setup, records.absolute()
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir(parents=True)
        self._places: list[_Place] = []
        self._num_started = 0
        self._num_refused = 0  # of those that came later: the devices that cannot be used
        self.num_slots = 1
        self.found: Mapping[str, Any] = {}
        self.device_seconds = 0.0
        """How long workers have held devices, all together."""
        self._arms: list[ArmConfig] = []
        self._tended_at = time.monotonic()
        self._news: list[str] = []
        self._early: list[DecodeJob] = []
        self._stops: dict[str, Any] = {}  # by trial: the last time that its worker was asked to end it
        for _ in range(max(1, cluster.num_workers)):
            self._start_worker()

    def wait(self, arms: Sequence[ArmConfig]) -> None:
        """Wait until a worker has loaded the base, on one machine all; choose the slots from the memory they found.

        On a cluster this may take as long as a machine takes to come; the others are used when they are there.
        """
        self._arms = list(arms)
        num_awaited = 1 if self._cluster.is_elastic else len(self._places)
        while all(place.loading is not None for place in self._places):
            ray.wait([place.loading for place in self._places], num_returns=num_awaited)
            self._hear(is_first=True)
            time.sleep(0.1)
        ready = [place for place in self._places if place.loading is None]
        _answer(ready[0].handle.check.remote(self._arms))
        check_exclusive(arms, self.found, max(place.free_bytes for place in ready))
        self.num_slots = min(place.num_slots for place in ready)

    @property
    def most_workers(self) -> int:
        """How many workers there may be."""
        return max(len(self._places), self._cluster.most_workers - self._num_refused)

    def tend(self, num_sharing: int, num_exclusive: int) -> None:
        """Have as many workers as so many trials at once need.

        One for each exclusive trial, one for each full pack of the others, more where devices are free anyway.
        """
        now = time.monotonic()
        if now < self._tended_at + TEND_SECONDS:
            return
        self._hear()
        ready = [place for place in self._places if place.loading is None]
        self.device_seconds += (now - self._tended_at) * len(ready)
        self._tended_at = now
        for place in self._places:
            if not place.is_idle:
                place.busy_at = now
        if not self._cluster.is_elastic:
            return
        self._leave_gone()
        self._move_stranded()
        devices = self._cluster.count_devices()
        num_full = num_exclusive + math.ceil(num_sharing / self.num_slots)
        most = max(devices, self._cluster.most_workers) - self._num_refused
        wanted = workers_wanted(num_sharing + num_exclusive, num_full, num_devices=devices, most=most)
        num_useful = sum(not place.is_stranded for place in self._places)
        for _ in range(wanted - num_useful):
            self._start_worker()
        self._retire(num_useful - wanted)

    def has_room(self, *, exclusive: bool) -> bool:
        """Whether a trial could be placed now; an exclusive one needs an empty worker."""
        return self._choose(exclusive=exclusive) is not None

    def place(self, spec: TrialSpec, *, exclusive: bool) -> str:
        """Take a slot for a trial, and write down on which worker; returns the workers' namespace."""
        place = self._choose(exclusive=exclusive)
        assert place is not None, "has_room comes first"
        self._assign(spec, place)
        place.exclusive = exclusive
        return self._cluster.namespace

    def release(self, key: str) -> None:
        """Free a trial's slot, and let the worker know in case that the trial is still in its pack."""
        self._stops.pop(key, None)
        for place in self._places:
            if key in place.keys:
                del place.keys[key]
                place.exclusive = False
                place.handle.leave.remote(key)

    def stop(self, key: str) -> None:
        """Ask a trial's worker to end it; its last report comes like any other, if it is in the pack by now.

        While the worker has not answered, in the middle of a step say, asking again does nothing.
        """
        if key in self._stops and not ray.wait([self._stops[key]], timeout=0)[0]:
            return
        for place in self._places:
            if key in place.keys:
                self._stops[key] = place.handle.stop.remote(key)

    def status(self, timeout: float) -> list[WorkerStatus]:
        """What the workers are doing; of one that does not answer in time, what it said last.

        One that hangs is killed, and started again by Ray.
        """
        for place in (place for place in self._places if place.loading is None):
            try:
                answer: Any = ray.get(place.handle.status.remote(), timeout=timeout)
            except GetTimeoutError:
                silent = 0.0 if place.heard_at is None else time.monotonic() - place.heard_at
            except RayError:  # it is dead, or started again
                silent, place.heard_at = 0.0, None
                place.lose()
            else:
                self._note_death(place, answer)
                silent, place.heard_at, place.status = answer.seconds_silent, time.monotonic(), answer
            if silent > HANG_SECONDS:
                self._say(f"{place.name} has given no sign of life for {silent:.0f} s: it is killed and started again")
                ray.kill(place.handle, no_restart=False)
                place.heard_at = None
        return [place.status for place in self._places if place.status is not None]

    def news(self) -> list[str]:
        """What has happened to workers since this was asked last."""
        news, self._news = self._news, []
        return news

    def suspend(self, timeout: float) -> None:
        """Have the workers checkpoint their trials; what is not done in time is left to older checkpoints."""
        asked: list[Any] = [place.handle.suspend.remote() for place in self._places if place.loading is None]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=timeout)

    def decode_when_idle(self, job: DecodeJob) -> None:
        """Let a worker decode once it has no trials; `decode` finds what was done, and does what was not."""
        self._early.append(job)

    def use_idle(self) -> None:
        """Give workers without trials something to decode."""
        for place in self._places:
            if place.decoding is not None and ray.wait([place.decoding], timeout=0)[0]:
                place.decoding = None
            if self._early and place.may_decode:
                place.decoding = place.handle.decode.remote(*self._early.pop(0))

    def decode(self, jobs: Sequence[DecodeJob]) -> None:
        """Decode all this, a job at a time on each worker; what is on disk already is not done again."""
        self._finish_early()
        waiting = list(jobs)
        running: dict[str, DecodeJob] = {}  # by worker
        deaths: Counter[str] = Counter()  # by what was decoded
        while waiting or running:
            self.tend(len(waiting) + len(running), 0)
            for place in (place for place in self._places if place.may_decode):
                if waiting:
                    running[place.name] = waiting.pop(0)
                    place.decoding = place.handle.decode.remote(*running[place.name])
            for place in self._decoded():
                answer, place.decoding, job = place.decoding, None, running.pop(place.name)
                try:
                    _answer(answer)
                except RayActorError as error:
                    deaths[job[1]] += 1
                    if deaths[job[1]] > MOST_DEATHS:
                        told = f"{job[1]}: {deaths[job[1]]} workers have died while they decoded it"
                        raise SweepFailed(f"{told}, the last one of: {first_line(error)}") from error
                    waiting.append(job)
                    place.lose()

    def _finish_early(self) -> None:
        """Wait for what was given to workers without trials, and forget what was not given yet."""
        self._early.clear()
        while any(place.decoding is not None for place in self._places):
            for place in self._decoded():
                answer, place.decoding = place.decoding, None
                try:
                    ray.get(answer)
                except RayActorError:
                    place.lose()
                except RayTaskError:
                    logger.info("%s could not decode; it is tried again", place.name)

    def _decoded(self) -> list[_Place]:
        """The workers that have ended their decoding; waits a while for one, and watches that none hangs."""
        busy = [place for place in self._places if place.decoding is not None]
        if not busy:  # all are awaited
            time.sleep(TEND_SECONDS)
            return []
        done, _ = ray.wait([place.decoding for place in busy], timeout=WATCH_SECONDS)
        if not done:
            self.status(timeout=1.0)
        return [place for place in busy if place.decoding in done]

    def _note_death(self, place: _Place, answer: WorkerStatus) -> None:
        known = 0 if place.status is None else place.status.num_deaths
        if answer.num_deaths > known:
            self._say(f"{place.name} died ({answer.last_death}) and was started again; its trials rejoin")

    def _say(self, line: str) -> None:
        logger.info(line)
        self._news.append(line)

    def _choose(self, *, exclusive: bool) -> _Place | None:
        places = [place for place in self._places if place.loading is None and place.suspending is None]
        if exclusive:
            need = max(_exclusive_bytes(self._arms, self.found).values(), default=0)
            return next((place for place in places if not place.keys and need <= place.free_bytes), None)
        open_places = [p for p in places if not p.exclusive and len(p.keys) < p.num_slots]
        return min(open_places, key=lambda place: len(place.keys) / place.num_slots, default=None)

    def _assign(self, spec: TrialSpec, place: _Place) -> None:
        place.keys[spec.key] = spec
        spec.place_on(place.name)
        logger.info("%s is placed on %s", spec.key, place.name)

    def _start_worker(self) -> None:
        name = f"worker-{self._num_started}"
        handle = _start(name, self._cluster, replace(self._setup, record=str(self._records / f"{name}.json")))
        self._places.append(_Place(name, handle, loading=handle.ready.remote()))
        self._num_started += 1

    def _hear(self, *, is_first: bool = False) -> None:
        """Take the answers of workers that have loaded the base meanwhile; raises what kept the first ones from it."""
        for place in list(self._places):
            if place.loading is None or not ray.wait([place.loading], timeout=0)[0]:
                continue
            try:
                found = _answer(place.loading)
            except RayActorError as error:
                comes_again = isinstance(error, ActorUnavailableError)  # as soon as there is a device
                if is_first and not (comes_again and self._cluster.is_elastic):
                    told = f"{place.name} died while it loaded the base: {first_line(error)}"
                    raise SweepFailed(f"{told}; the sweep's sweep.log may say more") from error
                if comes_again:
                    place.loading = place.handle.ready.remote()
                else:
                    self._give_up(place, error)
            except UserError as error:
                if is_first:
                    raise
                self._give_up(place, error)
            else:
                self._welcome(place, found)

    def _give_up(self, place: _Place, error: Exception) -> None:
        """A device that cannot be used is left alone; trials that had been there go elsewhere first."""
        if place.keys:
            place.loading = place.handle.ready.remote()
            return
        self._say(f"{place.name} cannot be used, and its device is left alone: {error}")
        self._num_refused += 1
        self._kill(place)

    def _welcome(self, place: _Place, found: Mapping[str, Any]) -> None:
        """A worker is ready: it gets the slots that its memory has room for."""
        self.found = self.found or found
        shared = found["device"] == "cpu" and not self._cluster.is_elastic  # workers of one machine see the same memory
        sharing = [arm for arm in self._arms if not arm.exclusive]
        trial_bytes = max((largest_trial(arm, found["shape"]) for arm in sharing), default=1)
        free_bytes = int(found["free_bytes"]) // (len(self._places) if shared else 1)
        # One that comes again to the same machine finds less, but only for what the other workers' trials have taken.
        place.free_bytes = free_bytes if self._cluster.is_elastic else max(free_bytes, place.free_bytes)
        place.num_slots = num_slots(place.free_bytes, trial_bytes)
        place.loading, place.heard_at = None, time.monotonic()
        told = place.name, place.num_slots, found["device"], place.free_bytes / 2**30, trial_bytes / 2**30
        logger.info("%s: %d slots on %s: %.1f GiB free, %.2f GiB a trial", *told)

    def _retire(self, num_too_many: int) -> None:
        """Await fewer workers; then give the devices back of those that have been without work for a while."""
        awaited = [place for place in self._places if place.loading is not None and not place.keys]
        patience = time.monotonic() - IDLE_SECONDS
        idle = [place for place in self._places if place.loading is None and place.is_idle and place.busy_at < patience]
        for place in [*awaited, *idle][: max(0, num_too_many)]:
            logger.info("%s %s", place.name, "is idle: its device is free" if place in idle else "is not needed")
            self._kill(place)

    def _kill(self, place: _Place) -> None:
        ray.kill(place.handle)
        self._places.remove(place)

    def _move_stranded(self) -> None:
        """Let trials whose worker has had no device for a while go on where there is room."""
        for place in self._places:
            if place.loading is None or time.monotonic() < place.lost_at + MOVE_SECONDS:
                continue
            for key, spec in list(place.keys.items()):
                other = self._choose(exclusive=place.exclusive)
                if other is not None:
                    del place.keys[key]
                    other.exclusive, place.exclusive = place.exclusive, False
                    self._assign(spec, other)
                    place.handle.leave.remote(key)  # it may have come again just now, and let the trial in

    def _leave_gone(self) -> None:
        """Note whose machine has gone; where one is about to go, have its trials checkpointed, then go on elsewhere."""
        leaving = draining()
        for place in (place for place in self._places if place.loading is None):
            node = node_of(place.handle)
            if node is None:
                place.lose()
            elif place.suspending is not None and ray.wait([place.suspending], timeout=0)[0]:
                ray.kill(place.handle, no_restart=False)
                place.lose()
            elif place.suspending is None and node in leaving:
                self._say(f"{place.name}: its machine is about to go; its trials are checkpointed and go on elsewhere")
                place.suspending = place.handle.suspend.remote()


def workers_wanted(num_trials: int, num_full: int, *, num_devices: int, most: int) -> int:
    """Workers for so many trials at once, which are `num_full` packs where each is filled before the next is begun.

    The devices that are there are all used, since they cost the same idle; further ones are asked for only where packs
    would overflow.
    """
    return max(1, min(most, num_trials, max(num_devices, num_full)))


def check_exclusive(arms: Sequence[ArmConfig], found: Mapping[str, Any], free: int) -> None:
    """Refuse fine-tuning that cannot fit: master weights, and gradients and Adam's moments of what trains, in fp32."""
    needs = _exclusive_bytes(arms, found)
    problems = [
        f"arms.{name}: fine-tuning needs {need / 2**30:.1f} GiB beside the base ({BYTES_PER_TRAINED} bytes for each "
        f"parameter that is trained, 4 for each other), and a worker on {found['device']} has {free / 2**30:.1f} GiB "
        "free; remove the arm, train fewer top_layers, or take a smaller base or a larger device"
        for name, need in needs.items()
        if need > free
    ]
    if problems:
        raise UserError(*problems)


def _exclusive_bytes(arms: Sequence[ArmConfig], found: Mapping[str, Any]) -> dict[str, int]:
    """What the largest trial of each arm that needs a worker to itself takes there."""
    return {arm.name: largest_trial(arm, found["shape"]) for arm in arms if arm.exclusive}


def _answer(reference: Any) -> Any:  # noqa: ANN401
    """Wait for a worker's answer; what the user can mend comes as their `UserError`, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(*error.cause.problems) from None
        raise


def _start(name: str, cluster: Cluster, setup: WorkerSetup) -> ActorHandle[Worker]:
    """A worker actor: it blocks one thread per waiting call, and dies with the driver."""
    actor = ray.remote(Worker).options(
        name=name,
        namespace=cluster.namespace,
        max_restarts=-1,
        max_concurrency=2 * MOST_SLOTS + 8,
        **cluster.worker_resources,
    )
    handle: ActorHandle[Worker] = actor.remote(setup)  # type: ignore[assignment]
    return handle
