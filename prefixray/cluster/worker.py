"""The worker as Ray calls it: an actor that owns one device, one base and one pack.

Trials call from their seats (`driver/engine`): `join`, then `next_report` until the trial ends; each call may block.
Whatever touches the trainer is done in the thread of the `TrainingLoop`. A worker that Ray starts in place of a dead
one reads from its record which trials may join (`quarantine.py`).
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefixray.cluster.loop import TrainingLoop
from prefixray.cluster.quarantine import Quarantine, content_before
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import TrainConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import SweepFailed, UserError, disk_problem, first_line
from prefixray.results.hypotheses import Split
from prefixray.system.hidden_packages import hidden
from prefixray.system.logs import quieten, to_file
from prefixray.system.machine import uncollected
from prefixray.training.facts import WorkerFacts
from prefixray.trial import Admission, Report, TrialSpec, WorkerStatus

# Torch and transformers are imported where a worker is made: the process of the trials' seats does without them.

logger = logging.getLogger(__name__)

_NOT_NEEDED = ("scipy", "boto3")
"""Packages that transformers and accelerate import where they find them, for losses and machines that we never use.

They take 0.5 to 0.8 CPU seconds of 5.
"""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is made from."""

    base: str
    task: TaskConfig
    train: TrainConfig
    device: str  # "cpu" or "cuda"
    num_threads: int
    max_new_tokens: int = 0  # that the final stage decodes
    log: str | None = None  # the file for the worker's log
    trust_remote_code: bool = False  # see `SweepConfig`
    commit: str | None = None  # of a base of the hub; None: the newest
    record: str | None = None  # the file that tells the next worker in its place what this one died of
    max_failures: int = 3  # the sweep's
    num_searched: int = 1  # documents that a trial of a search trains on: so many members it has
    max_wait_hours: float | None = None  # the sweep's


class Worker:
    """One base, one pack, one loop."""

    def __init__(self, setup: WorkerSetup, *, on_crash: Callable[[], None] = lambda: os._exit(1)) -> None:
        quieten()
        if setup.log is not None:
            to_file(Path(setup.log), terminal=None)
        logger.info("a worker's process begins")
        self._refusal: UserError | None = None
        self._decoded = (0, 0)
        record = None if setup.record is None else Path(setup.record)
        self._before = None if record is None else content_before(record)
        try:
            with hidden(*_NOT_NEEDED), uncollected():
                from prefixray.training.trainer import load_trainer  # a broken CUDA fails here

            self._trainer = load_trainer(
                setup.base,
                setup.task,
                setup.train,
                device=setup.device,
                num_threads=setup.num_threads,
                max_new_tokens=setup.max_new_tokens,
                trust_remote_code=setup.trust_remote_code,
                commit=setup.commit or (self._before[0] if self._before else None),
            )
            self._facts = self._trainer.describe()
        except UserError as error:
            self._refusal = error  # raised here, it would reach the user as a dead actor
            return
        except Exception as error:
            logger.exception("the base and the data could not be loaded")
            self._refusal = SweepFailed(f"{type(error).__name__}: {first_line(error)}")
            return
        self._quarantine = Quarantine(record, setup.max_failures)
        self._loop = TrainingLoop(self._trainer, self._quarantine, on_crash)

    def ready(self) -> WorkerFacts:
        """The facts about its base, data and device; raises the `UserError` that kept the worker from loading them."""
        if self._refusal is not None:
            raise self._refusal
        if self._before is None:  # the driver has asked: trials come from now on
            self._before = self._facts.content
            self._loop.call(self._quarantine.note_content, self._before)
        return self._facts

    def check(self, arms: Sequence[ArmConfig]) -> None:
        """Refuse arms with a trial that cannot be built on this base: `UserError` with all problems."""
        self._loop.call(self._trainer.check, arms)

    def join(self, spec: TrialSpec, token: str) -> Admission:
        """Let a trial join the pack; a member under another token joins anew, from its checkpoint.

        A worker that cannot load the base answers "later": the trial will be placed on another worker. So does one that
        has loaded something else than the worker in whose place Ray has started it; the driver will refuse it, but
        trials come before the driver looks. Raises `UserError` where the user has to mend something first, such as a
        full disk.
        """
        if self._refusal is not None or self._before not in (None, self._facts.content):
            return Admission("later")
        logger.info("%s asks to join", spec.key)
        return self._loop.call(self._loop.admit, spec, token)

    def next_report(self, key: str, token: str) -> Report | None:
        """Wait for the trial's next report; to ask again after the report of a rung is the verdict to go on.

        None: the trial is not in the pack (any more) under this token.
        """
        if self._refusal is not None:
            return None
        return self._loop.next_report(key, token)

    def leave(self, key: str, *, has_ended: bool) -> None:
        """Drop a trial; one that is not in the pack has left already."""
        self._loop.call(self._loop.leave, key, has_ended=has_ended)

    def stop(self, key: str) -> None:
        """End a trial with a last report; one that is not in the pack (yet) is passed over."""
        self._loop.call(self._loop.stop, key)

    def hand_over(self, spec: TrialSpec, worker: str) -> bool:
        """Checkpoint a trial, place it on another worker and drop it; whether that was possible now."""
        return self._loop.call(self._loop.hand_over, spec, worker)

    def suspend(self) -> list[str]:
        """Checkpoint all trials and drop them; returns their keys, which may join again."""
        return self._loop.call(self._loop.suspend)

    def retire(self) -> None:
        """Suspend, and admit no trial any more: the process is about to be ended on purpose."""
        self._loop.call(self._loop.retire)

    def inherit(self, record: str, keys: Sequence[str]) -> None:
        """Expect trials of another worker, whose deaths are in its record."""
        self._loop.call(self._loop.inherit, Path(record), keys)

    def decode(
        self,
        model: str,
        folder: str,
        split: Split,
        settings: Mapping[str, Any],
        metrics: Sequence[str] = (),
        document: str | None = None,
    ) -> None:
        """Decode a split into `folder`, with an artifact or an untrained arm, between two steps of the pack.

        Where a document is named, what the split has about it is decoded. What the metrics are computed from is kept
        there. What `folder` holds already is not made again.
        """
        from prefixray.decoding.evaluate import decode_for_sweep

        job = model, Path(folder), split, settings, metrics, document
        try:
            self._loop.call(decode_for_sweep, self._trainer, *job, self._note_decoded)
        except OSError as error:
            raise SweepFailed(disk_problem(error)) from error

    def status(self) -> WorkerStatus:
        """Where the trials stand; answered without waiting for the loop."""
        return replace(self._loop.status(), decoded=self._decoded)

    def _note_decoded(self, num_done: int, num_in_all: int) -> None:
        self._decoded = (num_done, num_in_all)
