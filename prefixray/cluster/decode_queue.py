"""What workers decode: one job at a time on each worker that has no trials.

A job that a worker has not finished, because it died, goes to another worker. What is on disk already is not decoded
again, so a job may safely be given twice: early, to a worker that happens to be idle, and in the final stage.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from prefixray.cluster.fleet import RESCALE_SECONDS, Fleet, answer_of
from prefixray.cluster.worker_handle import WorkerHandle
from prefixray.errors import SweepFailed, first_line
from prefixray.results.hypotheses import Split

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of workers that decode the same job, before the sweep gives up
WATCH_SECONDS = 5.0  # between two looks at the workers while they decode

DecodeJob = tuple[str | None, str, Split, Mapping[str, Any]]
"""The arguments of `Worker.decode`: artifact, folder, split, settings."""


class DecodeQueue:
    """Hands decodings to the idle workers of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._early: list[DecodeJob] = []

    def add_early(self, job: DecodeJob) -> None:
        """Have a job done as soon as a worker is idle; `run` finds it done, or does it."""
        self._early.append(job)

    def use_idle(self) -> None:
        """Give early jobs to the workers that are idle now."""
        for worker in self._fleet.workers:
            if worker.decoding is not None and ray.wait([worker.decoding], timeout=0)[0]:
                worker.decoding = None
            if self._early and worker.is_ready and worker.is_idle:
                worker.decoding = worker.actor.decode.remote(*self._early.pop(0))

    def run(self, jobs: Sequence[DecodeJob], on_progress: Callable[[str], None]) -> None:
        """Do all these jobs, and wait for them. Raises `SweepFailed` where a job has killed too many workers.

        `on_progress` is called after each look at the workers.
        """
        self._finish_early(lambda: on_progress(self._progress(0, len(jobs))))
        waiting = list(jobs)
        running: dict[str, DecodeJob] = {}  # by worker
        deaths: Counter[str] = Counter()  # by a job's folder
        while waiting or running:
            self._fleet.rescale(len(waiting) + len(running), 0)
            for worker in self._fleet.workers:
                if waiting and worker.is_ready and worker.is_idle:
                    running[worker.name] = waiting.pop(0)
                    worker.decoding = worker.actor.decode.remote(*running[worker.name])
            on_progress(self._progress(len(jobs) - len(waiting) - len(running), len(jobs)))
            for worker in self._finished():
                answer, worker.decoding, job = worker.decoding, None, running.pop(worker.name)
                try:
                    answer_of(answer)
                except RayActorError as error:
                    folder = job[1]
                    deaths[folder] += 1
                    if deaths[folder] > MOST_DEATHS:
                        problem = f"{folder}: {deaths[folder]} workers have died while they decoded it"
                        raise SweepFailed(f"{problem}, the last one of: {first_line(error)}") from error
                    waiting.append(job)
                    worker.note_failed_call()

    def _progress(self, num_done: int, num_in_all: int) -> str:
        """`3 of 7 models have decoded, 40 of 630 sources of those that decode now`."""
        busy = [worker.status for worker in self._fleet.workers if worker.decoding is not None]
        counts = [status.decoded for status in busy if status is not None]
        done, in_all = sum(done for done, _ in counts), sum(in_all for _, in_all in counts)
        sources = f", {done:,} of {in_all:,} sources of those that decode now" if in_all else ""
        return f"{num_done} of {num_in_all} models have decoded{sources}"

    def _finish_early(self, on_progress: Callable[[], None]) -> None:
        """Wait for the early jobs that run, and forget those that do not."""
        self._early.clear()
        while any(worker.decoding is not None for worker in self._fleet.workers):
            on_progress()
            for worker in self._finished():
                answer, worker.decoding = worker.decoding, None
                try:
                    ray.get(answer)
                except RayActorError:
                    worker.note_failed_call()
                except RayTaskError:
                    logger.info("%s could not decode; it is tried again", worker.name)

    def _finished(self) -> list[WorkerHandle]:
        """Wait a while for a worker to finish its job; returns those that have. Watches that no worker hangs."""
        busy = [worker for worker in self._fleet.workers if worker.decoding is not None]
        if not busy:  # none is ready yet
            time.sleep(RESCALE_SECONDS)
            return []
        done, _ = ray.wait([worker.decoding for worker in busy], timeout=WATCH_SECONDS)
        if not done:
            self._fleet.status(timeout=1.0)
        return [worker for worker in busy if worker.decoding in done]
