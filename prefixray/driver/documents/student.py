"""The student: an actor on one device that loads the base and makes the self-study of a document."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from prefixray.cluster.connect import Cluster
from prefixray.cluster.fleet import DeviceWait, answer_of
from prefixray.cluster.worker import WorkerSetup
from prefixray.data.documents import Document
from prefixray.errors import SweepFailed, UserError, disk_problem, first_line
from prefixray.system.logs import quieten, to_file

# Torch and transformers are imported where a student is at work: the driver does without them.

logger = logging.getLogger(__name__)

MOST_DEATHS = 3  # of students over the same document, before the sweep gives up
LOOK_SECONDS = 2.0  # between two looks at how far it is


class Student:
    """One base, for as long as the study of a document takes."""

    def __init__(self, setup: WorkerSetup) -> None:
        quieten()
        if setup.log is not None:
            to_file(Path(setup.log), terminal=None)
        self._setup, self._progress = setup, "loading the base"

    def study(self, document: Document, folder: str, made: Mapping[str, Any], seed: int) -> None:
        """Make the self-study of a document in a folder. Raises `UserError` for what the user can mend."""
        from prefixray.self_study.study import load_base_of, study

        setup = self._setup
        try:
            base = load_base_of(
                setup.base,
                setup.train.precision,
                device=setup.device,
                num_threads=setup.num_threads,
                trust_remote_code=setup.trust_remote_code,
            )
            study(base, setup.task, document, Path(folder), made=made, seed=seed, on_progress=self._note)
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
    document: Document,
    folder: Path,
    *,
    made: Mapping[str, Any],
    seed: int,
    on_progress: Callable[[str], None],
) -> None:
    """Start a student, and wait until the folder is there; a dead student's work is begun again by another.

    Raises the student's `UserError`, and `SweepFailed` where several students have died, or none has got a device in
    time.
    """
    options = ray.remote(Student).options(
        namespace=cluster.namespace,
        max_concurrency=2,
        runtime_env={"env_vars": cluster.worker_environment},
        **cluster.worker_resources,
    )
    wait = DeviceWait(cluster, setup.max_wait_hours)
    for num_deaths in range(1, MOST_DEATHS + 1):
        student: Any = options.remote(setup)
        try:
            answer = student.study.remote(document, str(folder), made, seed)
            progress = None
            while not ray.wait([answer], timeout=LOOK_SECONDS)[0]:
                progress = _progress_of(student) or progress
                wait.look(num_there=progress is not None, num_wanted=1)
                on_progress(progress or "waiting for a worker")
            answer_of(answer)
            return
        except RayActorError as error:
            problem = f"the worker that studied {document.name} has died: {first_line(error)}"
            if num_deaths == MOST_DEATHS:
                raise SweepFailed(f"{problem}, {num_deaths} times; the end of {setup.log} says more") from error
            logger.warning("%s; another one begins again", problem)
        finally:
            ray.kill(student)


def _progress_of(student: Any) -> str | None:  # noqa: ANN401
    """How far a student is; None where it does not say so in time, or has died."""
    try:
        return str(ray.get(student.progress.remote(), timeout=LOOK_SECONDS))
    except (GetTimeoutError, RayError):
        return None
