"""When a sweep's log says what."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path


def logged(log: Path, what: str) -> dict[str, float]:
    """When a sweep's log first says this of each trial, by the trial's key."""
    found: dict[str, float] = {}
    for when, message in lines(log):
        key, _, said = message.partition(" ")
        if re.match(what, said):
            found.setdefault(key, when)
    return found


def lines(log: Path) -> Iterator[tuple[float, str]]:
    """The messages of a sweep's log, each with its UNIX time; nothing of a log that is not there yet."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        if match := re.match(r"(\d\S+ \S+) [A-Z]+ \S+: (.*)", line):
            yield datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp(), match[2]
