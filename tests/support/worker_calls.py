"""A worker as a plain object: trials for it, and calls to it from threads of their own, no Ray."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from prefixray.cluster.worker import Worker
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.trial import Report, TrialSpec

SECONDS = 60.0  # after which a call that should have returned has failed
MOMENT = 0.2  # in which what must not happen would have happened

MakeWorker = Callable[[], Worker]


def trial_spec(
    folder: Path, key: str, num_steps: int, *rungs: int, preseqlen: int = 3, eval_every: int | None = None
) -> TrialSpec:
    method = PrefixTrial(preseqlen=preseqlen, mid_dim=None, init_token=None)
    config = TrialConfig(
        arm="prefix", learning_rate=1e-2, batch_size=2, num_steps=num_steps, eval_every=eval_every, method=method
    )
    return TrialSpec(key, config, seed=1, replicate=0, rungs=rungs, folder=str(folder / key))


class Call:
    """A call in a thread of its own."""

    def __init__(self, worker: Worker, key: str, token: str = "token") -> None:
        self._result: Future[Report | None] = Future()

        def run() -> None:
            try:
                self._result.set_result(worker.next_report(key, token))
            except BaseException as error:
                self._result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()

    def report(self) -> Report | None:
        """What the call returns."""
        return self._result.result(SECONDS)

    def state(self) -> str | None:
        """The state in the report that it returns."""
        report = self.report()
        return None if report is None else report.state

    def is_done(self) -> bool:
        """Whether it has returned."""
        return self._result.done()

    def waits(self) -> bool:
        """Whether it has not returned yet, after a moment."""
        time.sleep(MOMENT)
        return not self._result.done()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def hold_first_step(worker: Worker, specs: list[TrialSpec]) -> None:
    """Let several trials join before the pack's next step."""
    holding, together = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        together.wait(SECONDS)

    held = threading.Thread(target=worker._loop.call, args=(hold,), daemon=True)
    held.start()
    assert holding.wait(SECONDS)
    joins = [threading.Thread(target=worker.join, args=(spec, "token"), daemon=True) for spec in specs]
    for number, join in enumerate(joins, start=1):
        join.start()
        wait_until(lambda number=number: len(worker._loop._jobs) == number)  # type: ignore[misc]
    together.set()
    for thread in (held, *joins):
        thread.join(SECONDS)
