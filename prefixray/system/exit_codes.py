"""How a command ends: with an exit code that scripts can use, and no traceback where nothing of ours went wrong.

Each entry's last line is `leave(main)`. What a command refuses or finds failed is its own code to return; that it was
interrupted, that nobody reads on (`prefixray plan ... | head`), or that the file system refuses, can happen to all of
them and is dealt with here.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from prefixray.errors import disk_problem

INTERRUPTED = 130
"""As a shell counts it: 128 and the signal's number."""
TERMINATED = 143
UNREAD = 141
FAILED = 1
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
}


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # also what --help has printed before it left
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, as systemd, Slurm or `kill` send it: an interrupt too."""


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that was interrupted so."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a first SIGINT or SIGTERM be a `KeyboardInterrupt`, so that all is put away, and a second end the process.

    One that is ignored, as a shell has its background jobs ignore SIGINT, stays so. After SIGTERM the interrupt that
    leaves here is `Terminated`, whatever became of the first one on its way: Ray's calls make one of their own of it.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {signum: handler for signum, handler in usual.items() if signal.getsignal(signum) is handler}

    received: list[int] = []

    def first(signum: int, frame: FrameType | None) -> NoReturn:
        received.append(signum)
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # the kernel's doing, whatever the main thread waits for
        raise KeyboardInterrupt

    for signum in before:
        signal.signal(signum, first)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if signal.SIGTERM in received:
            raise Terminated from interrupt
        raise
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is first:
                signal.signal(signum, handler)


def _is_unread() -> bool:
    """Whether it is our output whose reader has gone; from here on it goes nowhere."""
    ours = sys.stdout.fileno()
    poll = select.poll()
    poll.register(ours, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), ours)
    return True
