"""The student: an actor on one device that loads the base and makes the self-study of documents, one after another."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import DeviceWait, answer_of
from prefixray.cluster.worker import WorkerSetup
from prefixray.data.documents import Document
from prefixray.errors import SweepFailed, UserError, disk_problem, first_line
from prefixray.system.logs import quieten, to_file

if TYPE_CHECKING:
    from prefixray.model.base import Base

# Torch and transformers are imported where a student is at work: the driver does without them.

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of students over the same document, before the sweep gives up
LOOK_SECONDS = 2.0  # between two looks at how far it is


@dataclass(frozen=True)
class Assignment:
    """A document that is to be studied."""

    document: Document
    folder: Path  # for what is made, absolute
    made: Mapping[str, Any]  # from what, for the record


class Student:
    """One base, for as long as the study of the documents takes."""

    def __init__(self, setup: WorkerSetup) -> None:
        quieten()
        if setup.log is not None:
            to_file(Path(setup.log), terminal=None)
        self._setup, self._progress = setup, "loading the base"
        self._base: Base | None = None

    def study(self, assignment: Assignment, seed: int) -> None:
        """Make the self-study of a document. Raises `UserError` for what the user can mend."""
        from prefixray.self_study.study import load_base_of, study

        setup, folder = self._setup, assignment.folder
        try:
            self._base = self._base or load_base_of(
                setup.base,
                setup.train.precision,
                device=setup.device,
                num_threads=setup.num_threads,
                trust_remote_code=setup.trust_remote_code,
                commit=setup.commit,
            )
            made, note = assignment.made, self._note
            study(self._base, setup.task, assignment.document, folder, made=made, seed=seed, on_progress=note)
        except UserError:
            raise
        except OSError as error:
            raise SweepFailed(disk_problem(error)) from error
        except Exception as error:
            logger.exception("the document could not be studied")
            raise SweepFailed(f"self-study: {type(error).__name__}: {first_line(error)}") from error

    def progress(self) -> str:
        """How far it is, in words; answered while it studies."""
        return self._progress

    def _note(self, progress: str) -> None:
        self._progress = progress


def have_studied(
    cluster: Cluster,
    setup: WorkerSetup,
    assignments: Sequence[Assignment],
    *,
    seed: int,
    on_progress: Callable[[str], None],
    on_done: Callable[[Assignment], None],
) -> None:
    """Start a student, and wait until all folders are there; a dead student's work is begun again by another.

    `on_done` is called after each document. Raises the student's `UserError`, and `SweepFailed` where several students
    have died over one document, or none has got a device in time.
    """
    left, deaths, wait = list(assignments), Counter[str](), DeviceWait(cluster, setup.max_wait_hours)
    while left:
        student = _start(cluster, setup)
        try:
            while left:
                _wait_for(student, student.study.remote(left[0], seed), wait, on_progress)
                on_done(left.pop(0))
        except (RayActorError, OutOfMemoryError) as error:  # the second where Ray has killed it for its memory
            name = left[0].document.name
            deaths[name] += 1
            problem = f"the worker that studied {name} has died: {first_line(error)}"
            if deaths[name] == MOST_DEATHS:
                raise SweepFailed(f"{problem}, {deaths[name]} times; the end of {setup.log} says more") from error
            logger.warning("%s; another one begins again", problem)
        finally:
            ray.kill(student)


def _start(cluster: Cluster, setup: WorkerSetup) -> Any:  # noqa: ANN401
    options = ray.remote(Student).options(
        namespace=cluster.namespace,
        max_concurrency=2,
        **cluster.worker_options,
    )
    return options.remote(setup)


def _wait_for(student: Any, answer: Any, wait: DeviceWait, on_progress: Callable[[str], None]) -> None:  # noqa: ANN401
    """Wait for a study, and tell how far it is. Raises what the student raised."""
    progress = None
    while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
        progress = _progress_of(student) or progress
        wait.look(num_there=progress is not None, num_wanted=1)
        on_progress(progress or "waiting for a worker")
    answer_of(answer)


def _progress_of(student: Any) -> str | None:  # noqa: ANN401
    """How far a student is; None where it does not say so in time, or has died."""
    try:
        return str(ray.get(student.progress.remote(), timeout=LOOK_SECONDS))
    except (GetTimeoutError, RayError):
        return None
