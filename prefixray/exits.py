"""How a command ends: with an exit code that scripts can use, and no traceback where nothing of ours went wrong.

Each entry's last line is `leave(main)`. What a command refuses or finds failed is its own code to return; that it was
interrupted, or that nobody reads on (`prefixray plan ... | head`), can happen to all of them and is dealt with here.
"""

import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130
"""As a shell counts it: 128 and the signal's number."""
UNREAD = 141


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # also what --help has printed before it left
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = UNREAD
    sys.exit(code)


def _is_unread() -> bool:
    """Whether it is our output whose reader has gone; from here on it goes nowhere."""
    ours = sys.stdout.fileno()
    poll = select.poll()
    poll.register(ours, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), ours)
    return True
