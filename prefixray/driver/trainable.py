"""What Ray Tune starts per trial: join a worker, wait for the trial's next report, hand it on.

Thin on purpose: the process holds no torch and no model. `setup` only stores the configuration, since with reused
actors Tune sets up processes whose trial already runs elsewhere. A dead worker is waited for (Ray starts it again) and
joined anew from the newest checkpoint, so that no retry of Tune's is spent. Whose fault a death was is the worker's to
find out.
"""

import math
import time
import uuid
from typing import Any, cast

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from prefixray.errors import UserError, first_line
from prefixray.trial import Admission, Report, TrialSpec

PAUSE_SECONDS = 1.0  # between two tries to join
PATIENCE_SECONDS = 1800.0  # for a worker to come back: a new node may have to start and load the base


class _Away(Exception):
    """There is no worker where the trial was placed."""


class TrialTrainable(tune.Trainable):
    """A trial as Tune sees it: each step is one report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Store what to train and where."""
        self._spec: TrialSpec = config["spec"]
        self._namespace: str = config["namespace"]
        self._token = uuid.uuid4().hex
        self._joined = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next report."""
        report = self._await_report()
        return {"report": report, "done": report.state != "running"}

    def cleanup(self) -> None:
        """Nothing to do: the driver frees a trial's slot."""

    def _await_report(self) -> Report:
        gives_up = math.inf
        while True:
            try:
                report = self._try()
            except (RayActorError, _Away) as error:
                self._joined = False
                gives_up = min(gives_up, time.monotonic() + PATIENCE_SECONDS)
                if time.monotonic() > gives_up:
                    return self._lost(f"its worker did not come back: {first_line(error)}")
            else:
                if report is not None:
                    return report
                gives_up = math.inf  # the worker is there; it is not the trial's turn
            time.sleep(PAUSE_SECONDS)

    def _try(self) -> Report | None:
        """Join if need be, and wait for a report; None when the trial is not in the worker's pack (any more)."""
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
        """The worker; the pool may give one up and place its trials elsewhere while they look for it."""
        try:
            return ray.get_actor(self._spec.placed_on(), namespace=self._namespace)
        except (ValueError, OSError) as error:  # Ray's for a name that nobody has; the file system's
            raise _Away(str(error)) from error

    def _unable(self, error: RayTaskError) -> Report:
        """What the user can mend stops the sweep; anything else that goes wrong in a trial's making is the trial's."""
        cause = error.cause
        if isinstance(cause, UserError):
            return self._lost(str(cause))
        return Report(self._spec.key, 0, "failed", note=f"{type(cause).__name__}: {cause}".splitlines()[0])

    def _lost(self, note: str) -> Report:
        return Report(self._spec.key, 0, "failed", note=note, lost=True)
