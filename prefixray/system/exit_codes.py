"""How a command ends: with an exit code that scripts can use, and with a traceback only where our code is wrong.

A command returns its own code for what it refuses or what failed. Three things can end any command, and are handled
here: an interrupt, an output that nobody reads on (`prefixray plan ... | head`), and a file system that refuses.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from prefixray.errors import disk_problem

INTERRUPTED = 130
"""As in a shell: 128 plus the number of the signal."""
TERMINATED = 143
UNREAD = 141
FAILED = 1
_own_start: tuple[list[str], dict[str, str]] | None = None
_OF_THE_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOLCK,
    errno.ESTALE,
}


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code."""
    global _own_start
    _own_start = sys.orig_argv[1:], dict(os.environ)
    _take_any_text()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # --help, too, prints and then exits
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted", file=sys.stderr)
        code = code_of(interrupt)
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = UNREAD
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        print(disk_problem(error), file=sys.stderr)
        code = FAILED
    sys.exit(code)


def own_start() -> tuple[list[str], dict[str, str]] | None:
    """Python's arguments and environment with which this process was started; None where it is no command of ours."""
    return _own_start


class Terminated(KeyboardInterrupt):
    """The interrupt that follows SIGTERM, which systemd, Slurm and `kill` send."""


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that ended by this interrupt."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a `KeyboardInterrupt`, so that the block can clean up.

    A second signal ends the process at once. A signal that is ignored stays ignored: a shell's background jobs ignore
    SIGINT. After SIGTERM the interrupt that leaves the block is `Terminated`, even where a library (Ray does) has
    raised an interrupt of its own in between.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    replaced = {signum: handler for signum, handler in defaults.items() if signal.getsignal(signum) is handler}

    received: list[int] = []

    def first(signum: int, frame: FrameType | None) -> NoReturn:
        received.append(signum)
        for each in replaced:
            signal.signal(each, signal.SIG_DFL)  # then the kernel ends the process, even if the main thread is stuck
        raise KeyboardInterrupt

    for signum in replaced:
        signal.signal(signum, first)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if signal.SIGTERM in received:
            raise Terminated from interrupt
        raise
    finally:
        for signum, handler in replaced.items():
            if signal.getsignal(signum) is first:
                signal.signal(signum, handler)


def _take_any_text() -> None:
    """Let stdout spell out what its encoding lacks, as stderr does; where it was closed, it goes nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_unread() -> bool:
    """Whether the broken pipe is our stdout, whose reader has left; if so, stdout goes nowhere from now on."""
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True
