"""Who may be in a worker's pack after a death: those who were in the step that it did not survive come back in halves.

Only a trial that was alone in the pack of a worker that died, again and again at the same step, is to blame; its
packmates get past that step and are free. What has to outlive the process is one line of JSON in the sweep's folder,
rewritten before and after every step: that reaches the kernel's memory at least, so a process that is killed leaves
word of what it was doing. Trials that go on with another worker take with them what the record says of them; a process
that is ended on purpose says so, and is no death.
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
    was_retired: bool = False  # the process was ended on purpose, without trials

    def judge(self) -> str:
        """Make suspects of those who were in the step that the process did not survive; what is known of its end.

        Groups of suspects whose turn had not come, or who had not, come after them.
        """
        whom = f"in its step: {', '.join(self.running)}" if self.running else "between two steps"
        told = f"{self.cause or 'killed or lost'}, {whom}"
        first, waiting = self.groups[:1], self.groups[1:]
        old = first[0] if first else {}
        suspects = {key: max(step, old.get(key, JOINING)) for key, step in self.running.items()}
        later = [{key: step for key, step in old.items() if key not in self.running}, *waiting]
        if len(suspects) > 1 and self.was_cleared:
            self.limit = len(suspects) // 2
        if len(suspects) == 1:
            (key,) = suspects
            self.alone[key] = self.alone.get(key, 0) + 1
        self.groups = [group for group in (*_halves(suspects), *later) if group]
        self.running, self.cause, self.was_cleared = {}, None, False
        return told


class Triage:
    """A worker's record of deaths and suspects.

    The first of the groups has its turn: its trials alone may be in the pack, until each is past the step at which the
    worker died. Where trials that all got past their steps die together again before one of them has ended, they are
    too many for the worker: then half as many may be in its pack, until one ends.
    """

    def __init__(self, record: Path | None, max_failures: int) -> None:
        self._max_failures = max_failures
        self._file = None if record is None else _open(record)
        left = None if record is None else _read(record)
        self._memory = left or _Memory()
        self.last_death: str | None = None
        """What is known of the end of the worker before this one."""
        if left is not None and not left.was_retired:
            self._memory.num_deaths += 1
            self.last_death = self._memory.judge()
            self._drop_refused()
        self._memory.was_retired = False
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

    def retires(self) -> None:
        """Note that the process is ended on purpose from here on."""
        self._memory.was_retired = True
        self._write()

    def inherits(self, record: Path, keys: Collection[str]) -> bool:
        """Take over what the record of a worker that is gone says of these trials, which come from there.

        Returns whether those that are in the pack are to make room, since suspects among them have their turn.
        """
        memory, left = self._memory, _read(record) or _Memory()
        if not left.was_retired:
            self.last_death = left.judge()
        for key in keys:
            memory.alone.pop(key, None)
            memory.alone |= {key: left.alone[key]} if key in left.alone else {}
        was_free = not memory.groups
        found = [{key: step for key, step in group.items() if key in keys} for group in left.groups]
        memory.groups += [group for group in found if group]
        self._drop_refused()
        if was_free:
            self._turn_ends = time.monotonic() + TURN_SECONDS
        self._write()
        return was_free and bool(memory.groups)

    def _drop_refused(self) -> None:
        """Wait for none of those who are not let in any more."""
        groups = self._memory.groups
        kept = [{key: step for key, step in group.items() if self.refusal(key) is None} for group in groups]
        self._memory.groups = [group for group in kept if group]

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


def _read(record: Path) -> _Memory | None:
    """What the worker before this one has left, if there was one; of a damaged record, only that."""
    try:
        found = record.read_bytes()
        return _Memory(**json.loads(found.splitlines()[0])) if found else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("a worker's record cannot be read: %s", error)
        return _Memory()


def _halves(suspects: Mapping[str, int]) -> list[dict[str, int]]:
    keys = list(suspects)
    middle = (len(keys) + 1) // 2
    return [{key: suspects[key] for key in part} for part in (keys[:middle], keys[middle:])]
