"""The Ray that was started for this sweep dies: the driver starts anew in its own place, and goes on as after a kill.

Nothing in this process could be trusted to work on: Ray's core waits for what is gone, and ends the process when it
has waited long enough. So a thread looks at Ray's services once a second. Where one has died, it ends what is left of
Ray, and lets the process execute its own command again, under the same process ID. The kernel frees the lock of the
sweep's folder with that, and the new program takes over what a killed driver leaves.

What always holds:

- Only a command starts anew (`exit_codes.own_start`). In somebody's Python the sweep ends with an error instead.
- No worker lives on: it would write into the folders of trials that others train then. What this process has got from
  the shell that became it (an entry point with `mlflow server & exec prefixray ...`) is not ours, and stays.
- Who ends the driver may have ended Ray together with it: a driver that was interrupted never starts anew, also where
  Ray holds the main thread, so that no handler of Python's comes to run.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NoReturn

import psutil

from prefixray.driver.falls import Falls
from prefixray.errors import SweepFailed
from prefixray.reporting.live import LiveView
from prefixray.system.exit_codes import FAILED, own_start

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
_RESTARTS = "PREFIXRAY_RESTARTS"  # an environment variable: the times of earlier restarts, for the next program
_GRACE = 2.0  # seconds: in this time an interrupt has come that ended Ray as well
_UNWIND_SECONDS = 30.0  # for the main thread to end; Ray may hold it, and ends the process after a minute
_KILL_SECONDS = 10.0  # for killed processes to be gone
_PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REMEDY = "run the same command again: the sweep goes on from here"


def has_started_anew() -> bool:
    """Whether this program is one that the driver has started anew."""
    return bool(os.environ.get(_RESTARTS))


@contextmanager
def watched(
    live: LiveView, dead_service: Callable[[], str | None], spared: Collection[psutil.Process] = ()
) -> Iterator[None]:
    """Watch over Ray during the block: `dead_service` names the part of it that has died.

    `spared` are the children of this process that it has not started. Raises `SweepFailed` where Ray has died and the
    driver cannot start anew, or has done so too often.
    """
    is_command = own_start() is not None
    if is_command:
        _adopt()
    with _noting_signals() if is_command else nullcontext(bool) as has_signal:
        watch = _Watch(live, dead_service, spared, has_signal)
        thread = threading.Thread(target=watch.run, name="restart", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception):  # no interrupt: Ray's death may have been its cause
                watch.look()
            if watch.problem is not None:
                raise SweepFailed(watch.problem) from error
            raise
        finally:
            watch.ended.set()
            thread.join()


class _Watch:
    def __init__(
        self,
        live: LiveView,
        dead_service: Callable[[], str | None],
        spared: Collection[psutil.Process],
        has_signal: Callable[[], bool],
    ) -> None:
        self._live, self._dead_service, self._spared, self._has_signal = live, dead_service, spared, has_signal
        self._handlers = _handlers()
        self._is_in_main_thread = threading.current_thread() is threading.main_thread()
        self._lock = threading.RLock()
        self.ended = threading.Event()
        self.problem: str | None = None
        """Why the sweep cannot go on in this process."""

    def run(self) -> None:
        """Look at Ray until the block ends or the driver is interrupted."""
        while not self.ended.wait(LOOK_SECONDS) and not self._is_interrupted():
            if self._dead_service() is not None and not self.ended.wait(_GRACE):
                self.look()
                if self.problem is not None:
                    self._unwind()
                return

    def look(self) -> None:
        """Start this process anew where Ray has died and nobody interrupts; where it cannot, note the problem."""
        with self._lock:
            dead = self._dead_service()
            if dead is None or self.problem is not None or self._is_interrupted():
                return
            start, falls = own_start(), Falls(map(float, os.environ.get(_RESTARTS, "").split()))
            problem = f"the Ray of this sweep has died ({dead})"
            if start is None:
                self.problem = f"{problem}; {_REMEDY}"
            elif not falls.bear():
                self.problem = f"{problem}, {Falls.rule()}; see sweep.log, then {_REMEDY}"
            said = self.problem or f"{problem}; the driver starts anew, and its trials go on"
            logger.info("%s", said)
            self._live.event(said)  # at once, since Ray may end this process before it comes to raise
            if start is None:
                return
            _end_children(self._spared)
            if self.problem is None and not self._is_interrupted():  # which takes a while
                self._live.close()
                command, environment = start
                try:
                    _execute(command, {**environment, _RESTARTS: " ".join(map(str, falls.times))})
                except OSError as error:
                    self.problem = f"{problem}, and {sys.executable} does not start: {error.strerror}; {_REMEDY}"

    def _is_interrupted(self) -> bool:
        return self._has_signal() or _handlers() != self._handlers  # see `interruptible`

    def _unwind(self) -> None:
        """Have the main thread leave the block; where it cannot, end the process of a command."""
        of_ours = _SIGNALS if own_start() is not None else _SIGNALS[:1]  # what SIGTERM does to others' Python is theirs
        for signum, handler in zip(of_ours, self._handlers, strict=False):
            if callable(handler) and self._is_in_main_thread:
                signal.pthread_kill(threading.main_thread().ident or 0, signum)  # wakes it from system calls too
                break
        if not self.ended.wait(_UNWIND_SECONDS) and own_start() is not None:
            self._live.close()
            print(self.problem, file=sys.stderr, flush=True)
            os._exit(FAILED)


def _handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in _SIGNALS]


@contextmanager
def _noting_signals() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt has come in the block, of a program's main thread.

    The C code beneath Python notes it at once, also while Ray holds the main thread and Python's handlers wait.
    """
    came = bytearray()  # numbers of signals

    def has_come() -> bool:
        with suppress(OSError):  # nothing new, or the block has ended
            came.extend(reader.recv(4096))
        return any(signum in came for signum in _SIGNALS)

    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield has_come
        finally:
            signal.set_wakeup_fd(before)


def _execute(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Let this process run another Python."""
    with suppress(OSError):  # nobody may read it any more
        sys.stdout.flush()
        sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *command], environment)


def _adopt() -> None:
    """Have the children of a child that dies become ours, for us to find; without Linux's help they stay nobody's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_children(spared: Collection[psutil.Process]) -> None:
    """Kill all that this process has started, wait until it has gone, and bury it: adopted, all of it becomes ours."""
    deadline = time.monotonic() + _KILL_SECONDS
    while (children := [each for each in psutil.Process().children() if each not in spared]) and (
        time.monotonic() < deadline
    ):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                for process in [*child.children(recursive=True), child]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
        with suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)
