"""Hide installed packages from imports that would load them only because they are there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Let no import in the block find these packages, but for those that are loaded already.

    A library that looks in the block whether one is installed may remember that it is not.
    """
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: as Python has it for "not to be found"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
