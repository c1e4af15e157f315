"""What workers decode: one job at a time on each worker that has no trials.

A job that a worker has not finished, because it died, goes to another worker. What is on disk already is not decoded
again, so a job may safely be given twice: early, to a worker that happens to be idle, and in the final stage.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from prefixray.cluster.fleet import RESCALE_SECONDS, Fleet, answer_of
from prefixray.cluster.worker_handle import WorkerHandle
from prefixray.errors import SweepFailed, UserError, first_line, typed_line
from prefixray.results.hypotheses import Split
from prefixray.results.record import IN_CONTEXT

logger = logging.getLogger(__name__)

MOST_FAILURES = 3  # of workers that decode the same job, before the sweep gives up
WATCH_SECONDS = 5.0  # between two looks at the workers while they decode


class DecodeJob(NamedTuple):
    """The arguments of `Worker.decode`."""

    model: str  # the folder of an artifact, or the name of an untrained arm
    folder: str
    split: Split
    settings: Mapping[str, Any]
    metrics: Sequence[str] = ()  # that the split is scored by
    document: str | None = None  # of several documents the one that the model is about

    @property
    def may_fail(self) -> bool:
        """Whether a table needs it not: a document in front of each row may take more memory than there is."""
        return self.model == IN_CONTEXT


class DecodeQueue:
    """Hands decodings to the idle workers of a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._early: list[DecodeJob] = []
        self._added: list[DecodeJob] = []  # all that were ever to be done early
        self._running: dict[str, DecodeJob] = {}  # by worker

    def add_early(self, job: DecodeJob) -> None:
        """Have a job tried once, as soon as a worker is idle; `run` finds it done, or does it.

        Those of dev come first: final runs wait for them.
        """
        if job not in self._added:
            self._added.append(job)
            self._early.append(job)
            self._early.sort(key=lambda each: each.split != "dev")

    def is_awaited(self, job: DecodeJob) -> bool:
        """Whether a job that was to be done early has not been tried yet."""
        return job in self._early or job in self._running.values()

    def use_idle(self, *, may_begin: bool = True) -> None:
        """Give early jobs to the workers that are idle now; otherwise only see which workers have done theirs."""
        for worker in self._fleet.workers:
            if worker.decoding is not None and ray.wait([worker.decoding], timeout=0)[0]:
                answer, worker.decoding = worker.decoding, None
                _note_failure(worker, answer, self._running.pop(worker.name))
            if may_begin and self._early:
                self._give(worker, self._early)

    def run(self, jobs: Sequence[DecodeJob], on_progress: Callable[[str], None]) -> list[tuple[DecodeJob, str]]:
        """Do all these jobs, and wait for them; those that may fail and have failed, each with its problem.

        `on_progress` is called after each look at the workers. Raises `SweepFailed` where too many workers have died of
        another job, or could not do it.
        """
        self._early.clear()
        early = list(self._running.values())
        waiting = [job for job in jobs if job not in early]
        failures: Counter[str] = Counter()  # by a job's folder
        failed: list[tuple[DecodeJob, str]] = []
        while waiting or self._running:
            self._fleet.rescale(len(waiting) + len(self._running), 0)
            for worker in self._fleet.workers:
                if waiting:
                    self._give(worker, waiting)
            num_left = len(waiting) + sum(job in jobs for job in self._running.values())
            on_progress(self._progress(len(jobs) - num_left, len(jobs)))
            for worker in self._finished():
                answer, worker.decoding, job = worker.decoding, None, self._running.pop(worker.name)
                try:
                    is_done = self._is_done(worker, answer, job, early, failures)
                except (RayTaskError, UserError, SweepFailed) as error:
                    if not job.may_fail:
                        raise
                    logger.warning("%s could not be decoded: it is left out", job.folder, exc_info=error)
                    cause = error.cause if isinstance(error, RayTaskError) else error
                    failed.append((job, first_line(cause)))
                    continue
                waiting += [job] if not is_done and job in jobs else []  # else another configuration has won meanwhile
        return failed

    def _is_done(
        self,
        worker: WorkerHandle,
        answer: Any,  # noqa: ANN401
        job: DecodeJob,
        early: list[DecodeJob],
        failures: Counter[str],
    ) -> bool:
        """Whether a worker's answer says that the job is done; else it is to be tried again, or this raises."""
        try:
            answer_of(answer)
        except RayActorError as error:
            worker.note_failed_call()
            _count_failure(failures, job, error)
            return False
        except (RayTaskError, UserError) as error:
            if job in early:
                early.remove(job)
            elif isinstance(error, UserError) or job.may_fail:
                raise
            else:
                _count_failure(failures, job, error)
            logger.info("%s could not decode %s; it is tried again", worker.name, job.folder, exc_info=error)
            return False
        return True

    def _give(self, worker: WorkerHandle, jobs: list[DecodeJob]) -> None:
        """Let a worker do the first of these jobs, if it is idle."""
        if worker.is_ready and worker.is_idle:
            job = self._running[worker.name] = jobs.pop(0)
            worker.decoding = worker.actor.decode.remote(*job)

    def _progress(self, num_done: int, num_in_all: int) -> str:
        """`3 of 7 models have decoded, 40 of 630 sources of those that decode now`."""
        busy = [worker.status for worker in self._fleet.workers if worker.decoding is not None]
        counts = [status.decoded for status in busy if status is not None]
        done, in_all = sum(done for done, _ in counts), sum(in_all for _, in_all in counts)
        sources = f", {done:,} of {in_all:,} sources of those that decode now" if in_all else ""
        return f"{num_done} of {num_in_all} models have decoded{sources}"

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


def _note_failure(worker: WorkerHandle, answer: Any, job: DecodeJob) -> None:  # noqa: ANN401
    """Note where an early job has failed; `run` tries it again."""
    try:
        answer_of(answer)
    except (RayError, UserError) as error:
        if isinstance(error, RayActorError):
            worker.note_failed_call()
        logger.info("%s could not decode %s early", worker.name, job.folder, exc_info=error)


def _count_failure(failures: Counter[str], job: DecodeJob, error: RayActorError | RayTaskError) -> None:
    """Count a worker that has died of a job or could not do it; raises `SweepFailed` where there were too many."""
    failures[job.folder] += 1
    if failures[job.folder] > MOST_FAILURES:
        cause = typed_line(error.cause) if isinstance(error, RayTaskError) else first_line(error)
        problem = (
            f"{job.folder}: {failures[job.folder]} workers have died while they decoded it, or could not decode it"
        )
        raise SweepFailed(f"{problem}, the last one of: {cause}; sweep.log says more") from error
