"""Who runs where: creates the workers, gives each trial a slot on one, takes it back.

The pool lives in the driver and is the one arbiter. Workers are actors that ask for a device each; Ray starts a dead
one again under the same name, so a trial finds its worker by name. One that gives no sign of life is killed, so that
Ray does. One that is over (`places.py`) is left, and its trials go on with others. On a cluster there are as many
workers as the trials need: one that waits for a device is what the autoscaler sees, and one without work gives its
device back. Nothing outlives the driver.
"""

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import draining
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import State, WorkerHandle, start_worker
from prefixray.config.schema import ArmConfig
from prefixray.errors import SweepFailed, UserError, first_line
from prefixray.planning.memory import BYTES_PER_TRAINED, largest_trial
from prefixray.planning.slots import num_slots
from prefixray.results.hypotheses import Split
from prefixray.training.facts import WorkerFacts
from prefixray.trial import TrialSpec, WorkerStatus

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers that decode the same, before the sweep gives up
RESCALE_SECONDS = 2.0  # between two looks at how many workers are needed
IDLE_SECONDS = 60.0  # without work after which a worker that is not needed gives its device back
HANG_SECONDS = 900.0  # without a forward, or without an answer, after which a worker hangs
WATCH_SECONDS = 5.0  # between two looks at the workers while they decode
WAIT_SECONDS = 0.2  # between two looks while the first ones load the base


DecodeJob = tuple[str | None, str, Split, Mapping[str, Any]]  # the arguments of `Worker.decode`


class NoWorkers(SweepFailed):
    """No device is left on which a worker could be ready."""


class Pool:
    """The workers of a sweep."""

    def __init__(self, cluster: Cluster, setup: WorkerSetup, records: Path) -> None:
        """Start the workers; what they die of is recorded in the folder `records`, which each driver begins anew."""
        self._cluster, self._setup, self._records = cluster, setup, records.absolute()
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir(parents=True)
        self._places: list[WorkerHandle] = []
        self._spared: WorkerHandle | None = (
            None  # gets no more trials that share, so that an exclusive one finds it empty
        )
        self._num_started = 0
        self._rooms: list[int] = []  # on one machine: what workers had that others are to be started for
        self._refusals: list[tuple[str, UserError]] = []  # where workers were never ready, and why
        self.num_slots = 1
        self._facts: WorkerFacts | None = None
        self.device_seconds = 0.0
        """How long workers have held devices, all together."""
        self._arms: list[ArmConfig] = []
        self._looked_at = time.monotonic()
        self._news: list[str] = []
        self._early: list[DecodeJob] = []
        self._stops: dict[str, Any] = {}  # by trial: the last time that its worker was asked to end it
        for _ in range(max(1, cluster.num_workers)):
            self._start_worker()

    def wait(self, arms: Sequence[ArmConfig]) -> None:
        """Wait until a worker has loaded the base, on one machine all; choose the slots from the memory they found.

        On a cluster this may take as long as a machine takes to come; the others are used when they are there. Raises
        what has kept workers from it, on a cluster where it was all of them.
        """
        self._arms = list(arms)
        is_elastic, ready = self._cluster.is_elastic, list[WorkerHandle]()
        while not ready or (len(ready) < len(self._places) and not is_elastic):
            time.sleep(WAIT_SECONDS)
            self._look()
            ready = [place for place in self._places if place.is_ready]
            if self._refusals and not (is_elastic and self._places):
                raise self._refusals[0][1]
        _answer(ready[0].handle.check.remote(self._arms))
        check_exclusive(arms, self.facts, max(place.free_bytes for place in ready))
        self.num_slots = min(place.num_slots for place in ready)

    @property
    def facts(self) -> WorkerFacts:
        """The base, the data and the device, as the first worker that was ready found them."""
        assert self._facts is not None, "wait comes first"
        return self._facts

    @property
    def most_workers(self) -> int:
        """How many workers there may be: as many devices cannot be used as have refused."""
        return max(len(self._places), self._cluster.most_workers - self._num_refused())

    def rescale(self, num_sharing: int, num_exclusive: int) -> None:
        """Have as many workers as so many trials at once need, on one machine always the same number.

        One for each exclusive trial, one for each full pack of the others, more where devices are free anyway. Raises
        `NoWorkers` where there can be none any more.
        """
        now = time.monotonic()
        if now < self._looked_at + RESCALE_SECONDS:
            return
        self._look()
        for place in self._places:
            if not place.is_idle:
                place.busy_at = now
        if self._cluster.is_elastic:
            self._leave_machines()
        self._move_stranded()
        wanted = self._workers_wanted(num_sharing, num_exclusive)
        num_useful = sum(not place.is_over and place.life.state is not State.LEAVING for place in self._places)
        for _ in range(wanted - num_useful):
            self._start_worker()
        self._retire(num_useful - wanted)

    def reserve(self, wanted: bool) -> None:
        """Keep one worker, the emptiest, from new trials that share it, while an exclusive one waits for it."""
        if not wanted:
            self._spared = None
            return
        need = self._exclusive_need()
        fit = [p for p in self._places if p.is_ready and not p.exclusive and need <= p.free_bytes]
        if self._spared not in fit:
            self._spared = min(fit, key=lambda place: len(place.keys), default=None)

    def has_room(self, *, exclusive: bool) -> bool:
        """Whether a trial could be placed now; an exclusive one needs an empty worker."""
        return self._choose(exclusive=exclusive) is not None

    def place(self, spec: TrialSpec, *, exclusive: bool) -> str:
        """Take a slot for a trial, and write down on which worker; returns the workers' namespace."""
        place = self._choose(exclusive=exclusive)
        assert place is not None, "has_room comes first"
        place.keys[spec.key], place.exclusive = spec, exclusive
        _write_place(spec, place)
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
        for place in (place for place in self._places if place.is_ready):
            try:
                answer: Any = ray.get(place.handle.status.remote(), timeout=timeout)
            except GetTimeoutError:
                silent = 0.0 if place.heard_at is None else time.monotonic() - place.heard_at
            except RayError:  # it is dead, or started again
                silent = 0.0
                place.miss()
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
        asked: list[Any] = [place.handle.suspend.remote() for place in self._places if place.is_ready]
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
            if self._early and place.is_ready and place.is_idle:
                place.decoding = place.handle.decode.remote(*self._early.pop(0))

    def decode(self, jobs: Sequence[DecodeJob]) -> None:
        """Decode all this, a job at a time on each worker; what is on disk already is not done again."""
        self._finish_early()
        waiting = list(jobs)
        running: dict[str, DecodeJob] = {}  # by worker
        deaths: Counter[str] = Counter()  # by what was decoded
        while waiting or running:
            self.rescale(len(waiting) + len(running), 0)
            for place in self._places:
                if waiting and place.is_ready and place.is_idle:
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
                    place.miss()

    def _finish_early(self) -> None:
        """Wait for what was given to workers without trials, and forget what was not given yet."""
        self._early.clear()
        while any(place.decoding is not None for place in self._places):
            for place in self._decoded():
                answer, place.decoding = place.decoding, None
                try:
                    ray.get(answer)
                except RayActorError:
                    place.miss()
                except RayTaskError:
                    logger.info("%s could not decode; it is tried again", place.name)

    def _decoded(self) -> list[WorkerHandle]:
        """The workers that have ended their decoding; waits a while for one, and watches that none hangs."""
        busy = [place for place in self._places if place.decoding is not None]
        if not busy:  # all are awaited
            time.sleep(RESCALE_SECONDS)
            return []
        done, _ = ray.wait([place.decoding for place in busy], timeout=WATCH_SECONDS)
        if not done:
            self.status(timeout=1.0)
        return [place for place in busy if place.decoding in done]

    def _note_death(self, place: WorkerHandle, answer: WorkerStatus) -> None:
        known = 0 if place.status is None else place.status.num_deaths
        if answer.num_deaths > known:
            self._say(f"{place.name} died ({answer.last_death}) and was started again; its trials rejoin")

    def _say(self, line: str) -> None:
        logger.info(line)
        self._news.append(line)

    def _choose(self, *, exclusive: bool, spared_too: bool = False) -> WorkerHandle | None:
        places = [place for place in self._places if place.is_ready]
        if exclusive:
            need = self._exclusive_need()
            return next((place for place in places if not place.keys and need <= place.free_bytes), None)
        spared = None if spared_too else self._spared
        open_places = [p for p in places if not p.exclusive and len(p.keys) < p.num_slots and p is not spared]
        return min(open_places, key=lambda place: len(place.keys) / place.num_slots, default=None)

    def _exclusive_need(self) -> int:
        """Bytes that the largest exclusive trial takes beside the base."""
        return max(_exclusive_bytes(self._arms, self.facts).values(), default=0)

    def _start_worker(self) -> None:
        name = f"worker-{self._num_started}"
        place = start_worker(name, self._cluster, self._setup, self._records / f"{name}.json", self._shunned())
        place.free_bytes = self._rooms.pop() if self._rooms else 0
        self._places.append(place)
        self._num_started += 1

    def _look(self) -> None:
        """See how the workers are; those that are over are forgotten when the last trial has left them."""
        now = time.monotonic()
        self.device_seconds += (now - self._looked_at) * sum(place.has_device for place in self._places)
        self._looked_at = now
        for place in self._places:
            if place.is_over:
                continue
            facts = place.look()
            if facts is not None:
                self._welcome(place, facts)
            elif place.life.cause is not None:
                self._give_up(place, place.life.cause)
        self._places = [place for place in self._places if not (place.is_over and place.is_idle)]

    def _give_up(self, place: WorkerHandle, cause: UserError) -> None:
        ray.kill(place.handle)
        more = f"; the end of {self._setup.log} says more" if isinstance(cause, SweepFailed) and self._setup.log else ""
        if place.life.state is State.LOST:
            self._say(f"{place.name} is given up, and another is started in its place: {cause}{more}")
            self._rooms += [] if self._cluster.is_elastic else [place.free_bytes]
        else:
            self._say(f"{place.name} cannot be used, and its device is left alone: {cause}{more}")
            is_ours = isinstance(cause, SweepFailed)
            told = SweepFailed(f"{place.name} cannot be used: {cause}{more}") if is_ours else cause
            self._refusals.append((place.node, told))

    def _shunned(self) -> list[str]:
        """The machines of which every device has been refused: Ray shall start nothing of ours there."""
        if not (self._refusals and self._cluster.is_elastic):
            return []
        refused = self._refused()
        return [node for node, num_devices in self._cluster.devices().items() if refused[node] >= num_devices > 0]

    def _workers_wanted(self, num_sharing: int, num_exclusive: int) -> int:
        cluster, num_trials = self._cluster, num_sharing + num_exclusive
        self._forget_refusals()
        devices, num_refused = cluster.count_devices(), self._num_refused()
        most = max(devices, cluster.most_workers) - num_refused
        if most < 1 and all(place.is_over for place in self._places):
            raise NoWorkers("no worker is left", *(line for _, cause in self._refusals for line in cause.problems))
        if not cluster.is_elastic:
            return most
        num_full = num_exclusive + math.ceil(num_sharing / self.num_slots)
        return workers_wanted(num_trials, num_full, num_devices=devices - num_refused, most=most)

    def _num_refused(self) -> int:
        """How many devices cannot be used: of a machine not more than it has, which may have had workers in turn."""
        if not (self._refusals and self._cluster.is_elastic):
            return len(self._refusals)
        devices = self._cluster.devices()
        return sum(min(count, devices.get(node, count)) for node, count in self._refused().items())

    def _refused(self) -> Counter[str]:
        return Counter(node for node, _ in self._refusals)

    def _forget_refusals(self) -> None:
        """Those of machines that have gone, while there is a worker that goes on: one in their place may do."""
        if self._refusals and self._cluster.is_elastic and any(place.is_ready for place in self._places):
            here = self._cluster.devices()
            self._refusals = [(node, cause) for node, cause in self._refusals if node in here or not node]

    def _welcome(self, place: WorkerHandle, facts: WorkerFacts) -> None:
        """A worker is ready: it gets the slots that its memory has room for."""
        self._facts = self._facts or facts
        shared = facts.device == "cpu" and not self._cluster.is_elastic  # workers of one machine see the same memory
        sharing = [arm for arm in self._arms if not arm.exclusive]
        trial_bytes = max((largest_trial(arm, facts.shape) for arm in sharing), default=1)
        free_bytes = facts.free_bytes // (len(self._places) if shared else 1)
        # One that comes again to the same machine finds less, but only for what the other workers' trials have taken.
        place.free_bytes = free_bytes if self._cluster.is_elastic else max(free_bytes, place.free_bytes)
        place.num_slots = num_slots(place.free_bytes, trial_bytes)
        told = place.name, place.num_slots, facts.device, place.free_bytes / 2**30, trial_bytes / 2**30
        logger.info("%s: %d slots on %s: %.1f GiB free, %.2f GiB a trial", *told)

    def _retire(self, num_too_many: int) -> None:
        """Await fewer workers; then give the devices back of those that have been without work for a while."""
        coming = (State.STARTING, State.LOADING)
        awaited = [place for place in self._places if place.life.state in coming and not place.keys]
        is_all_well = all(place.is_ready for place in self._places if place.keys)  # else trials may need another place
        patience = time.monotonic() - IDLE_SECONDS if is_all_well else -math.inf
        idle = [place for place in self._places if place.is_ready and place.is_idle and place.busy_at < patience]
        for place in [*awaited, *idle][: max(0, num_too_many)]:
            logger.info("%s %s", place.name, "is idle: its device is free" if place in idle else "is not needed")
            ray.kill(place.handle)
            self._places.remove(place)

    def _leave_machines(self) -> None:
        """Where a machine is about to go, have its trials checkpointed, then go on elsewhere."""
        leaving = draining()
        for place in self._places:
            if place.is_ready and place.node in leaving:
                self._say(f"{place.name}: its machine is about to go; its trials are checkpointed and go on elsewhere")
                place.leave()

    def _move_stranded(self) -> None:
        """Let trials whose worker is over, or has had no device for a while, go on where there is room."""
        for place in (place for place in self._places if place.is_stranded):
            moved: dict[str, list[TrialSpec]] = {}
            for key, spec in list(place.keys.items()):
                other = self._choose(exclusive=place.exclusive, spared_too=True)
                if other is not None:
                    other.exclusive, place.exclusive = place.exclusive, False
                    other.keys[key] = place.keys.pop(key)
                    moved.setdefault(other.name, []).append(spec)
            for other in self._places:
                specs = moved.get(other.name, [])
                if specs:  # first what the worker that is gone knew of them, then they may come
                    other.handle.inherit.remote(str(place.record), [spec.key for spec in specs])
                for spec in specs:
                    _write_place(spec, other)
                    place.handle.leave.remote(spec.key)  # it may have come again just now, and let the trial in


def workers_wanted(num_trials: int, num_full: int, *, num_devices: int, most: int) -> int:
    """Workers for so many trials at once, which are `num_full` packs where each is filled before the next is begun.

    The devices that are there are all used, since they cost the same idle; further ones are asked for only where packs
    would overflow.
    """
    return max(1, min(most, num_trials, max(num_devices, num_full)))


def check_exclusive(arms: Sequence[ArmConfig], facts: WorkerFacts, free: int) -> None:
    """Refuse fine-tuning that cannot fit: master weights, and gradients and Adam's moments of what trains, in fp32."""
    needs = _exclusive_bytes(arms, facts)
    problems = [
        f"arms.{name}: fine-tuning needs {need / 2**30:.1f} GiB beside the base ({BYTES_PER_TRAINED} bytes for each "
        f"parameter that is trained, 4 for each other), and a worker on {facts.device} has {free / 2**30:.1f} GiB "
        "free; remove the arm, train fewer top_layers, or take a smaller base or a larger device"
        for name, need in needs.items()
        if need > free
    ]
    if problems:
        raise UserError(*problems)


def _exclusive_bytes(arms: Sequence[ArmConfig], facts: WorkerFacts) -> dict[str, int]:
    """What the largest trial of each arm that needs a worker to itself takes there."""
    return {arm.name: largest_trial(arm, facts.shape) for arm in arms if arm.exclusive}


def _answer(reference: Any) -> Any:  # noqa: ANN401
    """Wait for a worker's answer; what the user can mend comes as their `UserError`, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(*error.cause.problems) from None
        raise


def _write_place(spec: TrialSpec, place: WorkerHandle) -> None:
    spec.place_on(place.name)
    logger.info("%s is placed on %s", spec.key, place.name)
