"""The pool: which trial runs on which worker.

It lives in the driver and is the one arbiter. A trial takes a slot of a worker until it is released, and an exclusive
trial takes a whole worker. The worker's name is written into the trial's folder, where the trial's seat finds it.
The trials of a worker that is over, or without a process for a while, move to other workers. So does a trial of the
fullest worker, where nothing is left to start on an emptier one.
"""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from prefixray.cluster.connect import Cluster
from prefixray.cluster.decode_queue import DecodeJob, DecodeQueue
from prefixray.cluster.exclusive import ExclusiveTrials
from prefixray.cluster.fleet import Fleet
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import WorkerHandle
from prefixray.config.schema import ArmConfig
from prefixray.trial import TrialSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Move:
    """A trial that one worker is asked to hand over to another; it has a slot on both until the answer is there."""

    spec: TrialSpec
    source: WorkerHandle
    target: WorkerHandle
    answer: Any  # Ray's reference to the source's answer


class Pool(Fleet):
    """The workers of a sweep, and what runs on them."""

    def __init__(self, cluster: Cluster, setup: WorkerSetup, records: Path) -> None:
        """Start the workers, as `Fleet` does."""
        super().__init__(cluster, setup, records)
        self._decodings = DecodeQueue(self)
        self._exclusive = ExclusiveTrials(cluster, setup.max_wait_hours)
        self._reserved: WorkerHandle | None = None  # gets no more trials that share it: an exclusive one waits for it
        self._stops: dict[str, Any] = {}  # by trial: Ray's reference to its worker's answer that it is stopped
        self._move: _Move | None = None
        self._refused: set[str] = set()  # trials that could not be handed over, since a trial was released last
        self._awaits_empty = False  # whether an exclusive trial is still to start

    def wait(self, arms: Sequence[ArmConfig]) -> None:
        """As `Fleet.wait`; and refuse fine-tuning for which no worker has the memory, where no other one may come."""
        super().wait(arms)
        if (problem := self._exclusive.measure(arms, self.facts, self._look)) is not None:
            self._say(problem)

    def rescale(self, num_sharing: int, num_exclusive: int) -> None:
        """As `Fleet.rescale`; and move the trials that are stranded, and wait for a device for exclusive ones."""
        num_workers_sharing = math.ceil(num_sharing / self.num_slots)
        self._num_useless = self._exclusive.num_useless(self.workers, num_exclusive, num_workers_sharing)
        super().rescale(num_sharing, num_exclusive)
        if self.num_ready:
            self._exclusive.look(self.workers, num_exclusive)
        self._awaits_empty = num_exclusive > sum(worker.exclusive for worker in self.workers)
        self._move_stranded()

    def has_room(self, *, exclusive: bool) -> bool:
        """Whether a trial could be placed now; an exclusive one needs an empty worker.

        Room is kept for trials whose worker has no process, which may have to move: else more trials would run than
        there are slots.
        """
        away = [worker for worker in self.workers if worker.trials and not worker.has_device]
        ready = [worker for worker in self.workers if worker.takes_trials and not worker.exclusive]
        if exclusive:
            return sum(not worker.trials for worker in ready) > len(away) and self._choose(exclusive=True) is not None
        num_free = sum(worker.num_slots - len(worker.trials) for worker in ready)
        num_kept = sum(self.num_slots if worker.exclusive else len(worker.trials) for worker in away)
        return num_free > num_kept and self._choose(exclusive=False) is not None

    @property
    def num_ready(self) -> int:
        """How many workers have loaded the base, and answer."""
        return sum(worker.is_ready for worker in self.workers)

    @property
    def namespace(self) -> str:
        """Ray's namespace, in which the workers are found by name."""
        return self._cluster.namespace

    def place(self, spec: TrialSpec, *, exclusive: bool) -> None:
        """Take a slot for a trial, and write down on which worker.

        A worker that has become silent since `has_room` was asked may get it: its trials wait for it, or move.
        """
        worker = self._choose(exclusive=exclusive) or self._choose(exclusive=exclusive, silent_too=True)
        assert worker is not None, "has_room comes first"
        worker.trials[spec.key], worker.exclusive = spec, exclusive
        _write_placement(spec, worker)

    def release(self, key: str, *, has_ended: bool) -> None:
        """Free a trial's slot, and tell the worker, in whose pack the trial may still be."""
        self._stops.pop(key, None)
        self._refused.clear()
        if self._is_moving(key):
            self._move = None
        for worker in self.workers:
            if key in worker.trials:
                del worker.trials[key]
                worker.exclusive = False
                worker.actor.leave.remote(key, has_ended=has_ended)

    def stop(self, key: str) -> None:
        """Ask a trial's worker to end it; if it is in the pack by now, its last report comes like any other.

        To ask again does nothing until the worker has answered; it may be in the middle of a step.
        """
        if key in self._stops and not ray.wait([self._stops[key]], timeout=0)[0]:
            return
        for worker in self.workers:
            if key in worker.trials:
                self._stops[key] = worker.actor.stop.remote(key)

    def reserve(self, wanted: bool) -> None:
        """Keep the emptiest worker from new trials that share it, while an exclusive trial waits for a worker."""
        if not wanted:
            self._reserved = None
            return
        fit = [w for w in self.workers if w.is_ready and not w.exclusive and self._exclusive.fit(w)]
        if self._reserved not in fit:
            self._reserved = min(fit, key=lambda worker: len(worker.trials), default=None)

    def decode_when_idle(self, job: DecodeJob) -> None:
        """Have a worker decode once it has no trials; `decode` does what is not done by then."""
        self._decodings.add_early(job)

    def is_decoding(self, job: DecodeJob) -> bool:
        """Whether a worker still decodes this, or is to decode it once it has no trials."""
        return self._decodings.is_awaited(job)

    def use_idle(self, *, may_begin: bool = True) -> None:
        """Give workers without trials something to decode; else move a trial from the fullest worker to the emptiest.

        `may_begin`: no trial could start there instead.
        """
        self._decodings.use_idle(may_begin=may_begin)
        if self._move is not None:
            self._end_move(self._move)
        elif may_begin and not self._awaits_empty:
            self._begin_move()

    def decode(
        self, jobs: Sequence[DecodeJob], on_progress: Callable[[str], None] = lambda _: None
    ) -> list[tuple[DecodeJob, str]]:
        """Decode all this, a job at a time on each worker; what is on disk already is not decoded again.

        Returns the jobs that may fail and have failed, each with its problem. `on_progress` is called every few seconds
        with how far it is, in words.
        """
        return self._decodings.run(jobs, on_progress)

    def _look(self) -> list[WorkerHandle]:
        self._refresh()
        return self.workers

    def _choose(self, *, exclusive: bool, reserved_too: bool = False, silent_too: bool = False) -> WorkerHandle | None:
        """The worker for a trial: of those with room for it, the emptiest."""
        ready = [worker for worker in self.workers if worker.takes_trials or (silent_too and worker.is_silent)]
        if exclusive:
            return next((w for w in ready if not w.trials and self._exclusive.fit(w)), None)
        closed = None if reserved_too else self._reserved
        with_room = [w for w in ready if not w.exclusive and len(w.trials) < w.num_slots and w is not closed]
        return min(with_room, key=lambda worker: len(worker.trials) / worker.num_slots, default=None)

    def _begin_move(self) -> None:
        """Ask the fullest worker for a trial, if the emptiest one has two fewer at least, all of them in its pack."""
        target = self._choose(exclusive=False)
        sharing = [worker for worker in self.workers if worker.is_ready and not worker.exclusive]
        source = max(sharing, key=lambda worker: len(worker.trials), default=None)
        if target is None or source is None or len(source.trials) < len(target.trials) + 2:
            return
        spec = source.furthest_from_end(besides=self._refused)
        if spec is not None and len(target.in_pack()) == len(target.trials):
            target.trials[spec.key] = spec
            self._ask_to_move(spec, source, target)

    def _ask_to_move(self, spec: TrialSpec, source: WorkerHandle, target: WorkerHandle) -> None:
        self._move = _Move(spec, source, target, source.actor.hand_over.remote(spec, target.name))

    def _end_move(self, move: _Move) -> None:
        """Once the source has answered, free the slot where the trial is not: the trial's folder says where it is.

        A source that did not get the question, or from which no answer came, is asked again as long as it may live.
        """
        if not ray.wait([move.answer], timeout=0)[0]:
            return
        try:
            ray.get(move.answer)
        except RayTaskError:  # of a full disk, for instance: the trial has stayed
            pass
        except RayError:
            if not move.source.is_stranded:
                self._ask_to_move(move.spec, move.source, move.target)
                return
        self._move, placed_on = None, None
        with suppress(OSError):
            placed_on = move.spec.placed_on()
        if placed_on == move.target.name:
            logger.info("%s has moved from %s to %s", move.spec.key, move.source.name, move.target.name)
            del move.source.trials[move.spec.key]
        else:
            self._refused.add(move.spec.key)
            del move.target.trials[move.spec.key]

    def _is_moving(self, key: str) -> bool:
        return self._move is not None and self._move.spec.key == key

    def _move_stranded(self) -> None:
        """Let the trials of stranded workers go on where there is room."""
        for stranded in (worker for worker in self.workers if worker.is_stranded):
            moved: dict[str, list[TrialSpec]] = {}  # by the name of their new worker
            for key, spec in [entry for entry in stranded.trials.items() if not self._is_moving(entry[0])]:
                other = self._choose(exclusive=stranded.exclusive, reserved_too=True)
                if other is not None:
                    other.exclusive, stranded.exclusive = stranded.exclusive, False
                    other.trials[key] = stranded.trials.pop(key)
                    moved.setdefault(other.name, []).append(spec)
            for other in self.workers:
                specs = moved.get(other.name, [])
                if specs:  # it must know what the other worker died of before the trials come
                    other.actor.inherit.remote(str(stranded.record), [spec.key for spec in specs])
                for spec in specs:
                    _write_placement(spec, other)
                    # It may have come again just now, and admitted the trial.
                    stranded.actor.leave.remote(spec.key, has_ended=False)


def _write_placement(spec: TrialSpec, worker: WorkerHandle) -> None:
    spec.place_on(worker.name)
    logger.info("%s is placed on %s", spec.key, worker.name)
