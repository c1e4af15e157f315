"""Quarantine after a worker's death: which trials may be in the pack, until the trial that kills workers is found.

The trials of the step that the process did not survive are suspects, and come back in halves. A trial is to blame only
where it was alone in the pack of a worker that died, again and again at the same step; its packmates get past that step
and are free.

The record is one line of JSON in the sweep's folder, written anew before and after every step. What a process has
written reaches the kernel's memory at least, so the next process learns what a killed one was doing. Trials that move
to another worker take along what the record says of them. A process that is ended on purpose says so in its record, and
that end is no death.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

TURN_SECONDS = 60.0  # within which the suspects whose turn it is must have joined; then the others are passed over
JOINING = -1  # the step of a trial that is being admitted


@dataclass
class _Record:
    """What a process leaves to the next one in its place."""

    num_loads: int = 0  # processes in this place that have loaded the base so far
    num_deaths: int = 0  # those that have died
    running: dict[str, int] = field(default_factory=dict)  # by trial of the step that runs: the steps done before it
    groups: list[dict[str, int]] = field(default_factory=list)  # of suspects, with the step that each has to get past
    alone: dict[str, int] = field(default_factory=dict)  # by trial: deaths in a row with no other trial in the pack
    was_cleared: bool = False  # all suspects got past their steps, and no trial has ended since
    limit: int | None = None  # of trials in the pack
    cause: str | None = None  # of the process's death, where the process can tell
    was_retired: bool = False  # the process was ended on purpose, without trials
    content: list[str] | None = None  # what the process here had loaded that was ready first: see `WorkerFacts`

    def make_suspects(self) -> str:
        """Make suspects of the trials that ran when the process died; returns what is known of the death.

        The newest suspects come first, then the groups that were waiting, and those of the first group that had not
        joined.
        """
        whom = f"in its step: {', '.join(self.running)}" if self.running else "between two steps"
        death = f"{self.cause or 'killed or lost'}, {whom}"
        first, waiting = self.groups[:1], self.groups[1:]
        earlier = first[0] if first else {}
        suspects = {key: max(step, earlier.get(key, JOINING)) for key, step in self.running.items()}
        absent = {key: step for key, step in earlier.items() if key not in self.running}
        if len(suspects) > 1 and self.was_cleared:
            self.limit = len(suspects) // 2
        if len(suspects) == 1:
            (key,) = suspects
            self.alone[key] = self.alone.get(key, 0) + 1
        self.groups = [group for group in (*_halves(suspects), absent, *waiting) if group]
        self.running, self.cause, self.was_cleared = {}, None, False
        return death


class Quarantine:
    """A worker's suspects, and its record of deaths.

    The first group of suspects has its turn: its trials alone may be in the pack, until each is past the step at which
    the worker died. Trials that all got past their steps and die together again, before one of them has ended, are too
    many for the worker: half as many may be in its pack from then on, until one ends.
    """

    def __init__(self, file: Path | None, max_failures: int) -> None:
        self._max_failures = max_failures
        self._file = None if file is None else _open(file)
        before = None if file is None else _read(file)
        self._record = before or _Record()
        self.last_death: str | None = None
        """What is known of the death of the process before this one."""
        if before is not None and not before.was_retired:
            self._record.num_deaths += 1
            self.last_death = self._record.make_suspects()
            self._drop_refused()
        self._record.num_loads += 1
        self._record.was_retired = False
        self._turn_ends = time.monotonic() + TURN_SECONDS
        self._write()

    @property
    def num_deaths(self) -> int:
        """How many processes have died in this worker's place."""
        return self._record.num_deaths

    def refusal(self, key: str) -> str | None:
        """Why a trial may not join any more; None where it may."""
        num_deaths = self._record.alone.get(key, 0)
        if num_deaths <= self._max_failures:
            return None
        return f"its worker died {num_deaths} times with no other trial in the pack ({self.last_death})"

    def suspects(self, key: str) -> bool:
        """Whether this worker may have died of a trial."""
        return key in self._record.alone or any(key in group for group in self._record.groups)

    def may_join(self, key: str, present: Collection[str]) -> bool:
        """Whether a trial may join now those that are present in the pack."""
        record = self._record
        if record.groups and time.monotonic() > self._turn_ends:
            self._clear([suspect for suspect in record.groups[0] if suspect not in present and suspect != key])
        if record.groups:
            return key in record.groups[0]
        return record.limit is None or len(present) < record.limit

    def note_content(self, content: list[str]) -> None:
        """Note what the processes in this place have to load, so that trials go on as they began."""
        self._record.content = content
        self._write()

    def note_running(self, steps: Mapping[str, int]) -> None:
        """Note the trials of which the process may die now, and how many steps each has done."""
        self._record.running = dict(steps)
        self._write()

    def note_survival(self, steps: Mapping[str, int]) -> bool:
        """Note that the process has survived a step; `steps` are those of the trials still in the pack.

        Returns whether these have to make room: they are past their steps, and the next group has its turn.
        """
        ran, self._record.running = self._record.running, {}
        turn = self._record.groups[0] if self._record.groups else {}
        past = [key for key in ran if key in turn and (key not in steps or steps[key] > turn[key])]
        for key in past:
            self._record.alone.pop(key, None)
        self._clear(past)
        self._write()
        return bool(past and not turn and self._record.groups)

    def forget(self, key: str, *, has_ended: bool) -> None:
        """Forget a trial that leaves. Where it has ended, and not paused or moved, the pack has no limit any more."""
        record = self._record
        record.running.pop(key, None)
        record.alone.pop(key, None)
        if has_ended:
            record.was_cleared, record.limit = False, None
        self._clear([key])
        self._write()

    def note_cause(self, cause: str) -> None:
        """Note what ends the process."""
        self._record.cause = cause
        self._write()

    def note_retirement(self) -> None:
        """Note that whatever ends the process from now on is on purpose."""
        self._record.was_retired = True
        self._write()

    def inherit(self, file: Path, keys: Collection[str]) -> bool:
        """Take over what the record of another worker says of trials that come from there.

        Returns whether the trials in the pack have to make room: there were no suspects, and now there are.
        """
        record, theirs = self._record, _read(file) or _Record()
        if not theirs.was_retired:
            self.last_death = theirs.make_suspects()
        for key in keys:
            record.alone.pop(key, None)
            record.alone |= {key: theirs.alone[key]} if key in theirs.alone else {}
        was_free = not record.groups
        coming = [{key: step for key, step in group.items() if key in keys} for group in theirs.groups]
        record.groups += [group for group in coming if group]
        self._drop_refused()
        if was_free:
            self._turn_ends = time.monotonic() + TURN_SECONDS
        self._write()
        return was_free and bool(record.groups)

    def _drop_refused(self) -> None:
        """Wait for none of the trials that may not join any more."""
        groups = self._record.groups
        allowed = [{key: step for key, step in group.items() if self.refusal(key) is None} for group in groups]
        self._record.groups = [group for group in allowed if group]

    def _clear(self, keys: Iterable[str]) -> None:
        """Take trials off the groups; when the first group is empty, the next has its turn."""
        record = self._record
        if not record.groups:
            return
        for group in record.groups:
            for key in keys:
                group.pop(key, None)
        if not record.groups[0]:
            self._turn_ends = time.monotonic() + TURN_SECONDS
        record.groups = [group for group in record.groups if group]
        record.was_cleared = not record.groups

    def _write(self) -> None:
        """Write the line anew; the rest of an older, longer line stays behind its end, and is not read."""
        if self._file is None:
            return
        try:
            os.pwrite(self._file, json.dumps(asdict(self._record)).encode() + b"\n", 0)
        except OSError as error:  # without its record a death costs more tries; the sweep need not end
            logger.warning("the worker's record cannot be written: %s", error)


def content_before(file: Path) -> list[str] | None:
    """What a process in a worker's place has to load, by the worker's record; None: what it finds."""
    record = _read(file)
    return None if record is None else record.content


def num_loads(file: Path) -> int:
    """How many processes in a worker's place have loaded the base so far, by the worker's record."""
    record = _read(file)
    return 0 if record is None else record.num_loads


def _open(file: Path) -> int | None:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        logger.warning("the worker's record cannot be opened: %s", error)
        return None


def _read(file: Path) -> _Record | None:
    """The record of an earlier process; None where there was none, an empty one where it is damaged."""
    try:
        content = file.read_bytes()
        return _Record(**json.loads(content.splitlines()[0])) if content else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("a worker's record cannot be read: %s", error)
        return _Record()


def _halves(suspects: Mapping[str, int]) -> list[dict[str, int]]:
    keys = list(suspects)
    middle = (len(keys) + 1) // 2
    return [{key: suspects[key] for key in part} for part in (keys[:middle], keys[middle:])]
