"""The fleet: how workers are started, watched and ended.

- Each worker is an actor that asks Ray for a device. Ray starts a dead worker again under the same name.
- A worker that hangs is killed, so that Ray starts it again.
- A worker that is over (`worker_handle.py`) is dropped. If it had been ready, another is started in its place; if not,
  its device is left alone.
- On a cluster there are as many workers as the trials need. The autoscaler sees the workers that wait for a device; a
  worker without work gives its device back.
- No worker outlives the driver.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from prefixray.cluster.comparable import as_begun, difference
from prefixray.cluster.connect import Cluster
from prefixray.cluster.nodes import Refusals, draining
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import MOST_LOADS, Phase, WorkerHandle, start_worker
from prefixray.config.schema import ArmConfig
from prefixray.errors import SweepFailed, UserError
from prefixray.planning.memory import largest_trial
from prefixray.planning.slots import num_slots
from prefixray.training.facts import WorkerFacts
from prefixray.trial import WorkerStatus

logger = logging.getLogger(__name__)

RESCALE_SECONDS = 2.0  # between two looks at how many workers are needed
IDLE_SECONDS = 60.0  # without work, after which a worker that is not needed gives its device back
HANG_SECONDS = 900.0  # without a forward, or without an answer, after which a worker counts as hanging
SAY_SECONDS = 60.0  # between two lines that say that no device has come yet
WAIT_SECONDS = 0.2  # between two looks while the first workers load the base
OTHERS_SECONDS = 600.0  # for the others to load it, where the first ones are too small


class NoWorkers(SweepFailed):
    """No device is left on which a worker could be ready."""


class DeviceWait:
    """The wait for a device while there is none that would do: a line a minute, and an end where one is set."""

    def __init__(self, cluster: Cluster, max_hours: float | None, that: str = "") -> None:
        """`that` says what the device must have, as behind its name."""
        self._device, self._max_hours = ("GPU" if cluster.device == "cuda" else "machine") + that, max_hours
        self._since = self._said_at = math.nan  # `time.monotonic()`; not a number while there is a device

    def look(self, num_there: int, num_wanted: int) -> None:
        """Note how many devices there are, of those wanted. Raises `NoWorkers` where it has taken too long."""
        now = time.monotonic()
        if num_there or not num_wanted:
            self._since = math.nan
        elif math.isnan(self._since):
            self._since = self._said_at = now
        elif self._max_hours is not None and now > self._since + 3600 * self._max_hours:
            raise NoWorkers(f"no {self._device} came in {self._max_hours:g} hours (search.max_wait_hours)")
        elif now >= self._said_at + SAY_SECONDS:
            self._said_at = now
            logger.warning("waiting for a %s: 0 of %d", self._device, num_wanted)


class Fleet:
    """The workers of a sweep, whatever runs on them."""

    def __init__(self, cluster: Cluster, setup: WorkerSetup, records: Path) -> None:
        """Start the workers. Their records of deaths lie in the folder `records`, which each driver begins anew."""
        self._cluster, self._setup, self._records = cluster, setup, records.absolute()
        shutil.rmtree(records, ignore_errors=True)
        records.mkdir(parents=True)
        self.workers: list[WorkerHandle] = []
        self.num_slots = 1
        """For how many trials each worker has room."""
        self._num_useless = 0  # workers that can run none of the trials that are left for them
        self._held_seconds = 0.0  # up to the last refresh
        self._arms: list[ArmConfig] = []
        self._facts: WorkerFacts | None = None
        self._refusals = Refusals(cluster.devices if cluster.is_elastic else None)
        self._wait = DeviceWait(cluster, setup.max_wait_hours)
        self._lost_bytes: list[int] = []  # on one machine: the free memory of the workers that others will replace
        self._num_started, self._refreshed_at = 0, time.monotonic()
        self._news: list[str] = []
        for _ in range(max(1, cluster.num_workers)):
            self._start_worker()

    def wait(self, arms: Sequence[ArmConfig]) -> None:
        """Wait until the workers have loaded the base, and choose the number of slots from their memory.

        On one machine all workers have to; on a cluster the first one is enough, for which a machine may have to come.
        Raises the `UserError` that keeps a worker (on a cluster: every worker) from loading the base, or with which an
        arm cannot be built.
        """
        self._arms = list(arms)
        ready, num_deaths = self._await_ready(), 0
        while not _check_arms(ready[0], self._arms):
            num_deaths += 1
            problem = f"{ready[0].name} died while it checked that the arms' trials can be built"
            if num_deaths == MOST_LOADS:
                raise SweepFailed(f"{problem}, {num_deaths} times; {_more(self._setup)}")
            logger.warning("%s; it is asked again", problem)
            ready = self._await_ready()
        self.num_slots = min(worker.num_slots for worker in ready)

    def _await_ready(self) -> list[WorkerHandle]:
        """Wait for the workers; those that are ready."""
        is_elastic, ready = self._cluster.is_elastic, list[WorkerHandle]()
        while not ready or (len(ready) < len(self.workers) and not is_elastic):
            time.sleep(WAIT_SECONDS)
            self._refresh()
            ready = [worker for worker in self.workers if worker.is_ready]
            causes = self._refusals.causes()
            if causes and not (is_elastic and self.workers):
                raise causes[0]
            if not self.workers:  # they died after they had been ready; one that never is becomes a cause
                self._start_worker()
        return ready

    @property
    def facts(self) -> WorkerFacts:
        """The facts of the first worker that was ready."""
        assert self._facts is not None, "wait comes first"
        return self._facts

    @property
    def device_seconds(self) -> float:
        """How long workers have held devices so far, all together."""
        since = time.monotonic() - self._refreshed_at
        return self._held_seconds + since * sum(worker.has_device for worker in self.workers)

    @property
    def most_workers(self) -> int:
        """How many workers there may be, the refused devices left out."""
        return max(len(self.workers), self._cluster.most_workers - self._refusals.count())

    def rescale(self, num_sharing: int, num_exclusive: int) -> None:
        """Have as many workers as so many trials at once need, on one machine always the same number.

        Each exclusive trial needs a worker, and so does each full pack of the others; further devices that are free
        are used, too. Raises `NoWorkers` where no worker can be ready any more.
        """
        now = time.monotonic()
        if now < self._refreshed_at + RESCALE_SECONDS:
            return
        self._refresh()
        for worker in self.workers:
            if not worker.is_idle:
                worker.busy_at = now
        if self._cluster.is_elastic:
            for worker in _retire_where_machines_go(self.workers):
                self._say(f"{worker.name}: its machine is about to go; its trials are checkpointed and go on elsewhere")
        wanted = self._workers_wanted(num_sharing, num_exclusive)
        num_useful = sum(not worker.is_over and worker.state.phase is not Phase.RETIRING for worker in self.workers)
        for _ in range(wanted - num_useful):
            self._start_worker()
        self._end_unneeded(num_useful - wanted)

    def status(self, timeout: float) -> list[WorkerStatus]:
        """The status of every worker; the last one known where it does not answer in time. Kills workers that hang."""
        for worker, asked in _asked_for_status(self.workers, timeout):
            try:
                answer: Any = ray.get(asked, timeout=0)
            except GetTimeoutError:
                silent = 0.0 if worker.heard_at is None else time.monotonic() - worker.heard_at
            except RayError:  # it is dead, or started again
                silent = 0.0
                worker.note_failed_call()
            else:
                self._note_death(worker, answer)
                silent, worker.heard_at, worker.status = answer.seconds_silent, time.monotonic(), answer
            if silent > HANG_SECONDS:
                self._say(f"{worker.name} has given no sign of life for {silent:.0f} s: it is killed and started again")
                ray.kill(worker.actor, no_restart=False)
                worker.heard_at = None
        return [worker.status for worker in self.workers if worker.status is not None]

    def news(self) -> list[str]:
        """What has happened to workers since the last call."""
        news, self._news = self._news, []
        return news

    def suspend(self, timeout: float) -> None:
        """Have the workers checkpoint their trials; a trial that is not done in time keeps its older checkpoint."""
        answers: list[Any] = [worker.actor.suspend.remote() for worker in self.workers if worker.is_ready]
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=timeout)

    def _note_death(self, worker: WorkerHandle, answer: WorkerStatus) -> None:
        num_known = 0 if worker.status is None else worker.status.num_deaths
        if answer.num_deaths > num_known:
            self._say(f"{worker.name} died ({answer.last_death}) and was started again; its trials rejoin")

    def _say(self, line: str) -> None:
        logger.info(line)
        self._news.append(line)

    def _start_worker(self) -> None:
        name, shunned = f"worker-{self._num_started}", self._refusals.shunned_nodes()
        worker = start_worker(name, self._cluster, self._setup, self._records / f"{name}.json", shunned)
        worker.free_bytes = self._lost_bytes.pop() if self._lost_bytes else 0
        self.workers.append(worker)
        self._num_started += 1

    def _refresh(self) -> None:
        """Bring all states up to date; drop the workers that are over and have no trial left."""
        self._held_seconds, self._refreshed_at = self.device_seconds, time.monotonic()
        for worker in (worker for worker in self.workers if not worker.is_over):
            if (facts := worker.refresh()) is not None:
                self._welcome(worker, facts)
            if worker.state.cause is not None:
                self._give_up(worker, worker.state.cause)
        self.workers = [worker for worker in self.workers if not (worker.is_over and worker.is_idle)]
        self._wait.look(sum(worker.has_device for worker in self.workers), len(self.workers))

    def _welcome(self, worker: WorkerHandle, facts: WorkerFacts) -> None:
        """Give a worker that is ready the slots for which it has memory; refuse one that is not as the first one is."""
        if self._facts is None:
            self._facts, self._setup = facts, as_begun(self._setup, facts.precision, facts.commit)
        if (cause := difference(self._setup, self._facts, facts)) is not None:
            worker.refuse(cause)
            return
        is_shared = facts.device == "cpu" and not self._cluster.is_elastic  # all workers see the one machine's memory
        trial_bytes = self._setup.num_searched * _member_bytes(self._arms, facts)
        free_bytes = facts.free_bytes // (len(self.workers) if is_shared else 1)
        # A worker that comes again on one machine finds less free, but only for the trials of the other workers.
        worker.free_bytes = free_bytes if self._cluster.is_elastic else max(free_bytes, worker.free_bytes)
        worker.num_slots = num_slots(worker.free_bytes, trial_bytes, facts.step_bytes)
        values = worker.name, worker.num_slots, facts.device, worker.free_bytes / 2**30, trial_bytes / 2**30
        logger.info("%s: %d slots on %s: %.1f GiB free, %.2f GiB a trial", *values)

    def _give_up(self, worker: WorkerHandle, cause: UserError) -> None:
        ray.kill(worker.actor)
        is_ours = isinstance(cause, SweepFailed)
        more = f"; {_more(self._setup)}" if is_ours and self._setup.log else ""
        if worker.state.phase is Phase.LOST:
            self._say(f"{worker.name} is given up, and another is started in its place: {cause}{more}")
            self._lost_bytes += [] if self._cluster.is_elastic else [worker.free_bytes]
        else:
            self._say(f"{worker.name} cannot be used, and its device is left alone: {cause}{more}")
            unusable = SweepFailed(f"{worker.name} cannot be used: {cause}{more}")
            self._refusals.add(worker.node, unusable if is_ours else cause)

    def _workers_wanted(self, num_sharing: int, num_exclusive: int) -> int:
        cluster = self._cluster
        if any(worker.is_ready for worker in self.workers):
            self._refusals.forget_gone_nodes()
        num_devices, num_refused = cluster.count_devices(), self._refusals.count()
        most = max(num_devices, cluster.most_workers) - num_refused
        if most < 1 and all(worker.is_over for worker in self.workers):
            raise NoWorkers(
                "no worker is left", *(line for cause in self._refusals.causes() for line in cause.problems)
            )
        if not cluster.is_elastic:
            return most
        num_full = num_exclusive + math.ceil(num_sharing / self.num_slots)
        num_trials = num_sharing + num_exclusive + self._num_useless  # as if each useless worker had one
        return workers_wanted(num_trials, num_full, num_devices=num_devices - num_refused, most=most)

    def _end_unneeded(self, num_too_many: int) -> None:
        for worker in _unneeded(self.workers)[: max(0, num_too_many)]:
            logger.info("%s %s", worker.name, "is idle: its device is free" if worker.is_ready else "is not needed")
            ray.kill(worker.actor)
            self.workers.remove(worker)


def _asked_for_status(workers: Sequence[WorkerHandle], timeout: float) -> list[tuple[WorkerHandle, Any]]:
    """The workers that are ready, all asked at once, each with its answer, which may not have come in time."""
    asked: list[tuple[WorkerHandle, Any]] = [(w, w.actor.status.remote()) for w in workers if w.is_ready]
    if asked:
        ray.wait([answer for _, answer in asked], num_returns=len(asked), timeout=timeout)
    return asked


def _unneeded(workers: Sequence[WorkerHandle]) -> list[WorkerHandle]:
    """Workers that may be ended: first those that are not ready yet, then those that have been idle for a while."""
    coming = (Phase.STARTING, Phase.LOADING)
    awaited = [worker for worker in workers if worker.state.phase in coming and worker.is_idle]
    is_all_well = all(worker.is_ready for worker in workers if worker.trials)  # else trials may have to move
    busy_before = time.monotonic() - IDLE_SECONDS if is_all_well else -math.inf
    return [*awaited, *(w for w in workers if w.is_ready and w.is_idle and w.busy_at < busy_before)]


def _retire_where_machines_go(workers: Sequence[WorkerHandle]) -> list[WorkerHandle]:
    """Have the trials of machines that are about to go checkpointed, to go on elsewhere; the workers there."""
    leaving = draining()
    there = [worker for worker in workers if worker.is_ready and worker.node in leaving]
    for worker in there:
        worker.retire()
    return there


def _member_bytes(arms: Sequence[ArmConfig], facts: WorkerFacts) -> int:
    """Bytes that the largest trial takes of those that share a worker."""
    on_gpu, sharing = facts.device != "cpu", [arm for arm in arms if not arm.exclusive]
    return max((largest_trial(arm, facts.shape, on_gpu=on_gpu) for arm in sharing), default=1)


def _check_arms(worker: WorkerHandle, arms: Sequence[ArmConfig]) -> bool:
    """Have a worker check that the arms' trials can be built; False where it dies meanwhile."""
    try:
        answer_of(worker.actor.check.remote(arms))
    except RayActorError:
        worker.note_failed_call()
        return False
    return True


def await_large(look: Callable[[], Sequence[WorkerHandle]], is_large: Callable[[WorkerHandle], bool]) -> bool:
    """Wait until a worker is large, or all have loaded the base; whether some have not. `look` gives the workers."""
    deadline = time.monotonic() + OTHERS_SECONDS
    while True:
        workers = look()
        are_coming = any(worker.state.phase in (Phase.STARTING, Phase.LOADING) for worker in workers)
        is_there = any(worker.is_ready and is_large(worker) for worker in workers)
        if is_there or not are_coming or time.monotonic() > deadline:
            return are_coming
        time.sleep(WAIT_SECONDS)


def _more(setup: WorkerSetup) -> str:
    return f"the end of {setup.log} says more"


def workers_wanted(num_trials: int, num_full: int, *, num_devices: int, most: int) -> int:
    """How many workers so many trials at once need; they make `num_full` packs where each is filled before the next.

    All devices that are there are used, since idle devices cost the same; more devices are asked for only where the
    packs on these are full.
    """
    return max(1, min(most, num_trials, max(num_devices, num_full)))


def answer_of(reference: Any) -> Any:  # noqa: ANN401
    """Wait for a worker's answer; its `UserError` is raised as it is, without Ray's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(*error.cause.problems) from None
        raise
