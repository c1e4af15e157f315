"""The sign of life of this process: when a forward of a model last ran.

Training and decoding both run forwards, whatever model they run. So a process that is busy without one for long hangs.
"""

import time

_last = 0.0


def beat() -> None:
    """Note that a forward runs now."""
    global _last
    _last = time.monotonic()


def last_beat() -> float:
    """The `time.monotonic()` of the last forward; 0 before the first."""
    return _last
