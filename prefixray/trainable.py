"""What Ray Tune starts per trial: join a worker, wait for the trial's next report, hand it on.

Thin on purpose: the process holds no torch and no model. `setup` only stores the configuration, since with reused
actors Tune sets up processes whose trial already runs elsewhere. A dead worker is waited for (Ray starts it again) and
joined anew from the newest checkpoint, so that no retry of Tune's is spent. Only a death while the trial was in the
worker's pack counts against it.
"""

import logging
import math
import time
import uuid
from typing import Any, cast

import ray
from ray import tune
from ray.exceptions import RayActorError

from prefixray.trial import Report, TrialSpec

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # between two tries to reach a worker that is not there
PATIENCE_SECONDS = 1800.0  # for a worker to come back: a new node may have to start and load the base


class TrialTrainable(tune.Trainable):
    """A trial as Tune sees it: each step is one report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Store what to train and where."""
        self._spec: TrialSpec = config["spec"]
        self._worker_name, self._namespace = config["worker"]
        self._max_failures: int = config["max_failures"]
        self._token = uuid.uuid4().hex
        self._joined = False
        self._num_deaths = 0

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
            except RayActorError as error:
                self._num_deaths += self._joined  # a try while the worker starts again is no death
                self._joined = False
                gives_up = min(gives_up, time.monotonic() + PATIENCE_SECONDS)
                if self._num_deaths > self._max_failures:
                    return self._lost(f"its worker died {self._num_deaths} times: {str(error).splitlines()[0]}")
                if time.monotonic() > gives_up:
                    return self._lost(f"its worker did not come back: {str(error).splitlines()[0]}")
                time.sleep(PAUSE_SECONDS)
                continue
            if report is not None:
                self._num_deaths = 0
                return report

    def _try(self) -> Report | None:
        """Join if need be, and wait for a report; None when the worker does not know the trial."""
        worker = ray.get_actor(self._worker_name, namespace=self._namespace)
        if not self._joined:
            refusal = cast("str | None", ray.get(worker.join.remote(self._spec, self._token)))
            if refusal is not None:
                return Report(self._spec.key, 0, "failed", note=refusal)
            self._joined = True
        report = cast("Report | None", ray.get(worker.next_report.remote(self._spec.key, self._token)))
        self._joined = report is not None
        return report

    def _lost(self, note: str) -> Report:
        return Report(self._spec.key, 0, "failed", note=note, lost=True)
