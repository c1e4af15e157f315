"""The driver's loop, which serves requests, ticks and draws: an error in it must not end it."""

import contextlib
import errno
import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RpcError
from support.fake_pool import Driver

from prefixray.cluster.fleet import NoWorkers
from prefixray.driver.engine import tune
from prefixray.driver.engine.tune import Engine, _look_after, is_of_memory
from prefixray.errors import SweepFailed
from prefixray.reporting.live import LiveView
from prefixray.search.status import View


class PlayedCoordinator:
    """Raises these errors, one for each tick; after them come good ticks, of which the last ends the sweep."""

    def __init__(
        self, ended: threading.Event, errors: list[Exception], broken: str | None = None, num_good_ticks: int = 1
    ) -> None:
        self._ended, self._errors, self._num_good_ticks = ended, errors, num_good_ticks
        self.broken = broken
        self.num_ticks = self.num_pictures = 0

    def serve(self) -> list[str]:
        return []

    def news(self) -> list[str]:
        return []

    def tick(self) -> None:
        self.num_ticks += 1
        if self._errors:
            raise self._errors.pop(0)
        self._num_good_ticks -= 1
        if self._num_good_ticks == 0:
            self._ended.set()

    def is_searching(self) -> bool:
        return True

    def view(self, title: str, stage: str) -> View:
        self.num_pictures += 1
        return View(title, stage)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set when the sweep has come to its end."""
    monkeypatch.setattr(tune, "TICK_SECONDS", 0.01)
    yield threading.Event()


def test_what_goes_wrong_in_a_tick_is_logged_once_and_the_next_tick_comes(
    ended: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune._thread, "interrupt_main", lambda signum: pytest.fail("nothing has ended"))
    refused = [RpcError("the control service does not answer now"), ConnectionError("neither now")]
    coordinator = PlayedCoordinator(ended, [refused[0], refused[0], refused[1], KeyError("an error of ours")])
    with (tmp_path / "shown").open("w") as shown:
        _look_after(coordinator, LiveView(shown), "small", "search", "a hint", ended)  # type: ignore[arg-type]
    assert (coordinator.num_ticks, coordinator.num_pictures) == (5, 2), "four errors, a picture, and the last one"
    assert "search" in (tmp_path / "shown").read_text()
    assert [record.getMessage().count("does not answer now") for record in caplog.records] == [1, 0, 0]


def test_a_terminal_that_is_gone_does_not_leave_the_workers_alone(ended: threading.Event) -> None:
    coordinator = PlayedCoordinator(ended, [], num_good_ticks=3)
    shown = open("/dev/full", "w")  # noqa: SIM115 - closing it fails too
    _look_after(coordinator, LiveView(shown), "small", "search", "a hint", ended)  # type: ignore[arg-type]
    assert coordinator.num_ticks == 3
    with pytest.raises(OSError):
        shown.close()


@pytest.mark.parametrize("handled", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM is handled", "it is not"])
@pytest.mark.parametrize("met", [OSError(errno.ENOSPC, "No space left on device"), NoWorkers("no worker is left")])
def test_a_disk_that_refuses_or_that_no_worker_is_left_ends_the_sweep(
    ended: threading.Event, monkeypatch: pytest.MonkeyPatch, met: Exception, handled: int
) -> None:
    interrupts: list[int] = []
    monkeypatch.setattr(tune.signal, "getsignal", lambda number: print if number == handled else signal.SIG_DFL)
    monkeypatch.setattr(tune._thread, "interrupt_main", interrupts.append)
    coordinator = PlayedCoordinator(ended, [met], broken=str(met))
    _look_after(coordinator, LiveView(), "small", "search", "a hint", ended)  # type: ignore[arg-type]
    assert interrupts == [handled] and coordinator.num_ticks == 1
    coordinator = PlayedCoordinator(ended, [SweepFailed("full")], broken="the main thread has met it")
    _look_after(coordinator, LiveView(), "small", "search", "a hint", ended)  # type: ignore[arg-type]
    assert interrupts == [handled]


def test_memory_that_ray_ran_out_of_is_known_behind_tunes_own_error() -> None:
    def raised(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                raise RuntimeError(f"Caught unexpected exception: {error}") from error  # as Tune's actor manager does
        except RuntimeError as error:
            return error

    assert is_of_memory(raised(OutOfMemoryError("8 worker(s) were killed")))
    assert not is_of_memory(raised(RayActorError()))
    assert not is_of_memory(None)


class FallingTuner:
    """Stands for Tune, which falls over so many times."""

    def __init__(self, num_falls: int) -> None:
        self.num_falls = num_falls
        self.num_runs = 0

    def __call__(self, *_: object) -> "FallingTuner":
        return self

    def fit(self) -> None:
        self.num_runs += 1
        if self.num_falls:
            self.num_falls -= 1
            try:
                raise RayActorError()
            except RayActorError:
                raise RuntimeError("Traceback (most recent call last): and many lines more")  # noqa: B904 - as Tune does


@pytest.mark.parametrize("num_falls", [3, 4])
def test_tune_may_fall_over_three_times_in_ten_minutes_and_each_time_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_falls: int
) -> None:
    tuner = FallingTuner(num_falls)
    monkeypatch.setattr(tune, "_tuner", tuner)
    monkeypatch.setattr(tune, "seated", lambda num_seats, ready: contextlib.nullcontext({}))
    driver = Driver(tmp_path)
    shown = io.StringIO()
    engine = Engine(driver.pool, driver.tracker, driver.inbox, LiveView(shown), "small", tmp_path)  # type: ignore[arg-type]
    if num_falls == 4:
        told = (
            "^Ray Tune has fallen over: RayActorError: .*, more than 3 times in 10 minutes\nthe sweep goes on from here"
        )
        with pytest.raises(SweepFailed, match=told):
            engine.run("search", [driver.stage])
    else:
        engine.run("search", [driver.stage])
    assert tuner.num_runs == 4
    assert driver.pool.calls.count("suspend") == num_falls
    assert shown.getvalue().count("it is run again, and its trials go on") == 3
