"""Who may be in a worker's pack after a death: those who were in the step that it did not survive come back in halves.

Only a trial that was alone in the pack of a worker that died, again and again at the same step, is to blame; its
packmates get past that step and are free. What has to outlive the process is one line of JSON in the sweep's folder,
rewritten before and after every step: that reaches the kernel's memory at least, so a process that is killed leaves
word of what it was doing.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

TURN_SECONDS = 60.0  # within which suspects whose turn has come must have joined; who does not is passed over
JOINING = -1  # the step of a trial that is being admitted


@dataclass
class _Memory:
    """What the worker that is started in place of a dead one has to know."""

    num_deaths: int = 0  # before this process
    running: dict[str, int] = field(default_factory=dict)  # the trials in the step that runs, and the steps before it
    groups: list[dict[str, int]] = field(default_factory=list)  # of suspects, with the step that each has to get past
    alone: dict[str, int] = field(default_factory=dict)  # by trial: deaths in a row in which no other was in the pack
    was_cleared: bool = False  # all suspects got past their steps, and no trial has ended since
    limit: int | None = None  # of trials in the pack
    cause: str | None = None  # what the process dies of, where it can tell


class Triage:
    """A worker's record of deaths and suspects.

    The first of the groups has its turn: its trials alone may be in the pack, until each is past the step at which the
    worker died. Where trials that all got past their steps die together again before one of them has ended, they are
    too many for the worker: then half as many may be in its pack, until one ends.
    """

    def __init__(self, record: Path | None, max_failures: int) -> None:
        self._max_failures = max_failures
        self._file = None if record is None else _open(record)
        self._memory = _Memory(num_deaths=-1) if self._file is None else _read(self._file)
        self._memory.num_deaths += 1
        self.last_death: str | None = None
        """What is known of the end of the worker before this one."""
        if self._memory.num_deaths:
            self._judge()
        self._turn_ends = time.monotonic() + TURN_SECONDS
        self._write()

    @property
    def num_deaths(self) -> int:
        """How many workers have died in this place."""
        return self._memory.num_deaths

    def refusal(self, key: str) -> str | None:
        """Why a trial is not let in any more."""
        num_deaths = self._memory.alone.get(key, 0)
        if num_deaths <= self._max_failures:
            return None
        return f"its worker died {num_deaths} times with no other trial in the pack ({self.last_death})"

    def may_join(self, key: str, present: Collection[str]) -> bool:
        """Whether a trial may join those that are in the pack now."""
        memory = self._memory
        if memory.groups and time.monotonic() > self._turn_ends:
            self._strike([suspect for suspect in memory.groups[0] if suspect not in present and suspect != key])
        if memory.groups:
            return key in memory.groups[0]
        return memory.limit is None or len(present) < memory.limit

    def begins(self, steps: Mapping[str, int]) -> None:
        """Note which trials the process may die of now, and how many steps each has done."""
        self._memory.running = dict(steps)
        self._write()

    def survives(self, steps: Mapping[str, int]) -> bool:
        """Note that a step is over, by the trials that are left in the pack.

        Returns whether these are to make room: they are past their steps, and others have their turn.
        """
        ran, self._memory.running = self._memory.running, {}
        turn = self._memory.groups[0] if self._memory.groups else {}
        past = [key for key in ran if key in turn and (key not in steps or steps[key] > turn[key])]
        for key in past:
            self._memory.alone.pop(key, None)
        self._strike(past)
        self._write()
        return bool(past and not turn and self._memory.groups)

    def ends(self, key: str) -> None:
        """Forget a trial that will not come back."""
        memory = self._memory
        memory.running.pop(key, None)
        memory.alone.pop(key, None)
        memory.was_cleared, memory.limit = False, None
        self._strike([key])
        self._write()

    def dies_of(self, cause: str) -> None:
        """Leave word of what ends the process."""
        self._memory.cause = cause
        self._write()

    def _judge(self) -> None:
        """Make groups of those who were in the step; those whose turn had not come, or who had not, come after them."""
        memory, running = self._memory, self._memory.running
        whom = f"in its step: {', '.join(running)}" if running else "between two steps"
        self.last_death = f"{memory.cause or 'killed or lost'}, {whom}"
        first, waiting = memory.groups[:1], memory.groups[1:]
        old = first[0] if first else {}
        suspects = {key: max(step, old.get(key, JOINING)) for key, step in running.items()}
        later = [{key: step for key, step in old.items() if key not in running}, *waiting]
        if len(suspects) > 1 and memory.was_cleared:
            memory.limit = len(suspects) // 2
        if len(suspects) == 1:
            (key,) = suspects
            memory.alone[key] = memory.alone.get(key, 0) + 1
            suspects = suspects if self.refusal(key) is None else {}
        memory.groups = [group for group in (*_halves(suspects), *later) if group]
        memory.running, memory.cause, memory.was_cleared = {}, None, False

    def _strike(self, keys: Iterable[str]) -> None:
        """Take trials off the groups; when nobody is left in the first, the next has its turn."""
        memory = self._memory
        if not memory.groups:
            return
        for group in memory.groups:
            for key in keys:
                group.pop(key, None)
        if not memory.groups[0]:
            self._turn_ends = time.monotonic() + TURN_SECONDS
        memory.groups = [group for group in memory.groups if group]
        memory.was_cleared = not memory.groups

    def _write(self) -> None:
        """Write the line anew; what an older, longer one leaves behind its end is not read."""
        if self._file is None:
            return
        try:
            os.pwrite(self._file, json.dumps(asdict(self._memory)).encode() + b"\n", 0)
        except OSError as error:  # without its record a death costs more tries; the sweep need not end here
            logger.warning("the worker's record cannot be written: %s", error)


def _open(record: Path) -> int | None:
    try:
        return os.open(record, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        logger.warning("the worker's record cannot be opened: %s", error)
        return None


def _read(file: int) -> _Memory:
    """What the worker before this one has left; of a record that its disk has damaged, that there was one."""
    try:
        found = os.pread(file, os.fstat(file).st_size, 0)
        return _Memory(**json.loads(found.splitlines()[0])) if found else _Memory(num_deaths=-1)
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the worker's record cannot be read: %s", error)
        return _Memory()


def _halves(suspects: Mapping[str, int]) -> list[dict[str, int]]:
    keys = list(suspects)
    middle = (len(keys) + 1) // 2
    return [{key: suspects[key] for key in part} for part in (keys[:middle], keys[middle:])]
