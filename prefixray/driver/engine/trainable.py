"""What Ray Tune runs for each trial: it joins a worker, and hands over the trial's reports.

It imports no torch and holds no model. When a worker dies, it waits until Ray has started the worker again, and joins
the worker anew from the trial's newest checkpoint, so that Tune sees no failure. The worker itself finds out which
trial its death was due to.
"""

import threading
import uuid
from contextlib import suppress
from typing import Any, cast

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from prefixray.errors import UserError, typed_line
from prefixray.trial import Admission, Report, TrialSpec

PAUSE_SECONDS = 1.0  # between two tries to join


class _Away(Exception):
    """There is no worker where the trial was placed."""


class TrialTrainable(tune.Trainable):
    """A trial of Tune's: each step is one report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Store the specification; the first step joins a worker."""
        self._spec: TrialSpec = config["spec"]
        self._namespace: str = config["namespace"]
        self._token = uuid.uuid4().hex
        self._worker = ""  # the name of the worker that was asked last
        self._joined = False
        self._closed = threading.Event()

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next report."""
        report = self._await_report()
        return {"report": report, "done": report.state != "running"}

    def cleanup(self) -> None:
        """Wait for no report any more; the driver frees the trial's slot."""
        self._closed.set()

    def _await_report(self) -> Report:
        """Wait for a report, and for a worker where there is none: the fleet says when there will be none any more."""
        while not self._closed.is_set():
            try:
                report = self._try_report()
            except (RayActorError, _Away):
                self._joined = False
            else:
                if report is not None:
                    return report
            if not self._has_moved():
                self._closed.wait(PAUSE_SECONDS)
        return self._lost("its Tune run has ended")

    def _try_report(self) -> Report | None:
        """Join where the trial has not joined, and wait for a report; None where the worker's pack lacks the trial."""
        worker = self._find_worker()
        if not self._joined:
            try:
                admission = cast(Admission, ray.get(worker.join.remote(self._spec, self._token)))
            except RayTaskError as error:
                return self._unable(error)
            if admission.state == "refused":
                return Report(self._spec.key, 0, "failed", note=admission.note)
            if admission.state == "later":
                return None
            self._joined = True
        report = cast("Report | None", ray.get(worker.next_report.remote(self._spec.key, self._token)))
        self._joined = report is not None
        return report

    def _find_worker(self) -> ActorHandle[Any]:
        """The worker; the pool may place the trial elsewhere meanwhile."""
        try:
            self._worker = self._spec.placed_on()
            return ray.get_actor(self._worker, namespace=self._namespace)
        except (ValueError, OSError) as error:  # from Ray, for an unknown name; from the file system
            raise _Away(str(error)) from error

    def _has_moved(self) -> bool:
        """Whether the trial has been placed on another worker than the one that was asked last."""
        with suppress(OSError):
            return self._spec.placed_on() != self._worker
        return False

    def _unable(self, error: RayTaskError) -> Report:
        """The report of a trial that cannot be built: a `UserError` ends the sweep, any other error only the trial."""
        cause = error.cause
        if isinstance(cause, UserError):
            return self._lost(str(cause))
        return Report(self._spec.key, 0, "failed", note=typed_line(cause))

    def _lost(self, note: str) -> Report:
        return Report(self._spec.key, 0, "failed", note=note, lost=True)
