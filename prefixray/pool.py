"""Who runs where: creates the workers, gives each trial a slot on one, takes it back.

The pool lives in the driver and is the one arbiter. Workers are actors that ask for a device each; Ray starts a dead
one again under the same name, so a trial finds its worker by name. One that gives no sign of life is killed, so that
Ray does. Nothing outlives the driver.
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from prefixray.cluster import Cluster
from prefixray.config import ArmConfig, UserError
from prefixray.hypotheses import Split
from prefixray.sizes import BYTES_PER_TRAINED, MOST_SLOTS, largest_trial, num_slots
from prefixray.trial import WorkerStatus
from prefixray.worker import Worker, WorkerSetup

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers during a decoding, before the sweep gives up
RETURN_SECONDS = 1800.0  # for a dead worker to be started again
HANG_SECONDS = 900.0  # without a forward, or without an answer, after which a worker hangs
WATCH_SECONDS = 5.0  # between two looks at the workers while they decode


DecodeJob = tuple[str | None, str, Split, Mapping[str, Any]]  # the arguments of `Worker.decode`


@dataclass
class _Place:
    """A worker and who is on it."""

    name: str
    handle: ActorHandle[Worker]
    keys: set[str] = field(default_factory=set)
    exclusive: bool = False
    decoding: Any = None  # what it has been given to decode, while it has no trials
    status: WorkerStatus | None = None  # what it said last
    heard_at: float | None = None  # the `time.monotonic()` of that; None before the first time and after a death


class Pool:
    """The workers of a sweep."""

    def __init__(self, cluster: Cluster, setup: WorkerSetup, records: Path) -> None:
        """Start the workers; what they die of is recorded in the folder `records`, which each driver begins anew."""
        self._cluster = cluster
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir(parents=True)
        self._places = []
        for index in range(cluster.num_workers):
            name = f"worker-{index}"
            own = replace(setup, record=str(records.absolute() / f"{name}.json"))
            self._places.append(_Place(name, _start(name, cluster, own)))
        self.num_slots = 1
        self.found: Mapping[str, Any] = {}
        self._news: list[str] = []
        self._early: list[DecodeJob] = []
        self._stops: dict[str, Any] = {}  # by trial: the last time that its worker was asked to end it

    def wait(self, arms: Sequence[ArmConfig]) -> None:
        """Wait until the workers have loaded the base, and choose the number of slots from the memory they found."""
        answers: list[dict[str, Any]] = [_answer(place.handle.ready.remote()) for place in self._places]
        self.found = answers[0]
        sharing = [arm for arm in arms if not arm.exclusive]
        trial_bytes = max((largest_trial(arm, self.found["shape"]) for arm in sharing), default=1)
        free = min(answer["free_bytes"] for answer in answers)
        if self.found["device"] == "cpu" and self._cluster.address == "local":
            free //= len(answers)  # they see the same memory
        check_exclusive(arms, self.found, free)
        self.num_slots = num_slots(free, trial_bytes)
        logger.info(
            "%d slots per worker: %.1f GiB free, %.2f GiB a trial", self.num_slots, free / 2**30, trial_bytes / 2**30
        )

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        return len(self._places)

    def has_room(self, *, exclusive: bool) -> bool:
        """Whether a trial could be placed now; an exclusive one needs an empty worker."""
        return self._choose(exclusive=exclusive) is not None

    def place(self, key: str, *, exclusive: bool) -> tuple[str, str]:
        """Take a slot for a trial: the worker's name and namespace."""
        place = self._choose(exclusive=exclusive)
        assert place is not None, "has_room comes first"
        place.keys.add(key)
        place.exclusive = exclusive
        return place.name, self._cluster.namespace

    def release(self, key: str) -> None:
        """Free a trial's slot, and let the worker know in case that the trial is still in its pack."""
        self._stops.pop(key, None)
        for place in self._places:
            if key in place.keys:
                place.keys.remove(key)
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
        for place in self._places:
            try:
                answer: Any = ray.get(place.handle.status.remote(), timeout=timeout)
            except GetTimeoutError:
                silent = 0.0 if place.heard_at is None else time.monotonic() - place.heard_at
            except RayError:
                silent, place.heard_at = 0.0, None
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
        ray.wait(
            [place.handle.suspend.remote() for place in self._places], num_returns=len(self._places), timeout=timeout
        )

    def decode_when_idle(self, job: DecodeJob) -> None:
        """Let a worker decode once it has no trials; `decode` finds what was done, and does what was not."""
        self._early.append(job)

    def use_idle(self) -> None:
        """Give workers without trials something to decode."""
        for place in self._places:
            if place.decoding is not None and ray.wait([place.decoding], timeout=0)[0]:
                place.decoding = None
            if self._early and not place.keys and place.decoding is None:
                place.decoding = place.handle.decode.remote(*self._early.pop(0))

    def decode(self, jobs: Sequence[DecodeJob]) -> None:
        """Decode all this, a job at a time on each worker; what is on disk already is not done again."""
        self._early.clear()
        begun = [place.decoding for place in self._places if place.decoding is not None]
        if begun:
            ray.wait(begun, num_returns=len(begun))
        waiting = list(jobs)
        running: dict[Any, tuple[ActorHandle[Worker], DecodeJob]] = {}
        free = [place.handle for place in self._places]
        num_deaths = 0
        while waiting or running:
            while waiting and free:
                handle, job = free.pop(), waiting.pop(0)
                running[handle.decode.remote(*job)] = handle, job
            while not (done := ray.wait(list(running), num_returns=1, timeout=WATCH_SECONDS)[0]):
                self.status(timeout=1.0)
            handle, job = running.pop(done[0])
            free.append(handle)
            try:
                _answer(done[0])
            except RayActorError:  # what it had decoded is on disk
                num_deaths += 1
                if num_deaths > MOST_DEATHS:
                    raise
                waiting.append(job)
                _await_return(handle)

    def _note_death(self, place: _Place, answer: WorkerStatus) -> None:
        known = 0 if place.status is None else place.status.num_deaths
        if answer.num_deaths > known:
            self._say(f"{place.name} died ({answer.last_death}) and was started again; its trials rejoin")

    def _say(self, line: str) -> None:
        logger.info(line)
        self._news.append(line)

    def _choose(self, *, exclusive: bool) -> _Place | None:
        if exclusive:
            return next((place for place in self._places if not place.keys), None)
        open_places = [p for p in self._places if not p.exclusive and len(p.keys) < self.num_slots]
        return min(open_places, key=lambda place: len(place.keys), default=None)


def check_exclusive(arms: Sequence[ArmConfig], found: Mapping[str, Any], free: int) -> None:
    """Refuse full fine-tuning that cannot fit: master weights, gradients and Adam's moments, all in fp32."""
    need = BYTES_PER_TRAINED * found["num_parameters"]
    if need <= free:
        return
    size = f"{need / 2**30:.1f} GiB ({found['num_parameters']:,} parameters x {BYTES_PER_TRAINED} bytes)"
    problems = [
        f"arms.{arm.name}: full fine-tuning needs {size} beside the base, and a worker on {found['device']} has "
        f"{free / 2**30:.1f} GiB free; remove the arm, or take a smaller base or a larger device"
        for arm in arms
        if arm.exclusive
    ]
    if problems:
        raise UserError(*problems)


def _answer(reference: Any) -> Any:  # noqa: ANN401
    """Wait for a worker's answer; what the user can mend comes as their `UserError`, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(*error.cause.problems) from None
        raise


def _await_return(handle: ActorHandle[Worker]) -> None:
    """Wait until Ray has started a dead worker again."""
    deadline = time.monotonic() + RETURN_SECONDS
    while True:
        try:
            ray.get(handle.ready.remote())
        except RayActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return


def _start(name: str, cluster: Cluster, setup: WorkerSetup) -> ActorHandle[Worker]:
    """A worker actor: it blocks one thread per waiting call, and dies with the driver."""
    options = {"num_gpus": 1, "num_cpus": 1} if cluster.device == "cuda" else {"num_cpus": setup.num_threads}
    actor = ray.remote(Worker).options(
        name=name, namespace=cluster.namespace, max_restarts=-1, max_concurrency=2 * MOST_SLOTS + 8, **options
    )
    handle: ActorHandle[Worker] = actor.remote(setup)  # type: ignore[assignment]
    return handle
