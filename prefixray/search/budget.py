"""When a search ends before its last trial: once it has found enough, once its budget is spent, or by a request.

The budget is hours, and hours of the workers' devices, summed over all drivers of the sweep.
The hours that are spent are written to `spent.json` in the sweep's folder, once a minute and at the end of a search, so
that the next driver goes on from there.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from prefixray.config.schema import ArmConfig, SearchConfig, StopWhen
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Record
from prefixray.system.atomic_files import write_whole

logger = logging.getLogger(__name__)

WRITE_SECONDS = 60.0  # between two writes


def found_enough(records: Sequence[Record], stop_when: StopWhen) -> str | None:
    """Why an arm's search needs no more trials, as a sentence without its subject; None while it does.

    All is read off the arm's trials, so a later driver comes to the same answer.
    """
    done = [(record.value, record.ended or 0.0, record.number) for record in records if record.state == "done"]
    finite = [(value, ended, number) for value, ended, number in done if value is not None]
    if not finite:
        return None
    loss, ended, number = min(finite)
    if stop_when.dev_loss is not None and loss <= stop_when.dev_loss:
        return f"trial {number} has reached dev/loss {loss:.4g}, and {stop_when.dev_loss:g} is enough"
    num_since = sum(_is_settled_since(record, ended) for record in records)
    if stop_when.no_better is not None and num_since >= stop_when.no_better:
        return f"{num_since} trials in a row were no better than trial {number} with dev/loss {loss:.4g}"
    return None


def _is_settled_since(record: Record, moment: float) -> bool:
    """Whether a trial has ended since then; one that pauses, or has ended in a pause, if it has begun since then."""
    ended_in_pause = record.state == "stopped" and record.pauses and record.pauses[-1]["resumed"] is None
    if record.state == "paused" or ended_in_pause:
        return (record.began or 0.0) > moment
    return record.state != "running" and (record.ended or 0.0) > moment


class Budget:
    """The clock of a search: it runs from the start of a driver that has trials to search to the end of the search."""

    def __init__(self, folder: Path, search: SearchConfig) -> None:
        self._file = folder / "spent.json"
        self._limits = {"max_hours": search.max_hours, "max_gpu_hours": search.max_gpu_hours}
        self._spent = _read(self._file)
        self._noted_device_seconds = 0.0
        self._noted_at = self._written_at = time.monotonic()

    def resume(self, device_seconds: float) -> None:
        """Let the clock run again; hours since the last `note` do not count."""
        self._noted_at, self._noted_device_seconds = time.monotonic(), device_seconds

    def note(self, device_seconds: float, *, is_last: bool = False, counts: bool = True) -> None:
        """Count the hours since the last `note`, unless the search had ended: they do not count (`counts`).

        `device_seconds` is how long this driver has held devices so far.
        """
        now = time.monotonic()
        if counts:
            self._spent["max_hours"] += (now - self._noted_at) / 3600
            self._spent["max_gpu_hours"] += (device_seconds - self._noted_device_seconds) / 3600
        self._noted_at, self._noted_device_seconds = now, device_seconds
        if is_last or now > self._written_at + WRITE_SECONDS:
            self._written_at = now
            write_whole(self._file, json.dumps(self._spent) + "\n")

    def problem(self) -> str | None:
        """The message that one of the two budgets is spent; None where neither is."""
        for key, limit in self._limits.items():
            if limit is not None and self._spent[key] >= limit:
                spent = f"search.{key}: {self._spent[key]:.3g} of {limit:g} hours are spent"
                return f"{spent}: no trial is started any more, unless it is raised"
        return None


def ended_early(arm: ArmConfig, study: ArmStudy, stop_when: StopWhen | None, budget: Budget | None) -> str | None:
    """A sentence on an arm's search that ends before its last trial, and by what; None on any other."""
    records, num_wanted = study.records(), study.num_wanted()
    num_asked = int(max(num_wanted, min(arm.num_trials, study.size())))
    if len(records) >= num_asked:
        return None
    begun = f"{len(records)} of {num_asked} trials"
    why = None if stop_when is None else found_enough(records, stop_when)
    if why is not None:
        return f"{arm.name}: search.stop_when ended the search after {begun}: {why}"
    if len(records) >= num_wanted:
        return f"{arm.name}: a request ended the search after {begun}"
    problem = None if budget is None else budget.problem()
    return None if problem is None else f"{arm.name}: {begun} have begun; {problem}"


def _read(file: Path) -> dict[str, float]:
    """The hours that earlier drivers have spent."""
    nothing = {"max_hours": 0.0, "max_gpu_hours": 0.0}
    try:
        spent = {key: float(json.loads(file.read_text(encoding="utf-8"))[key]) for key in nothing}
        return spent if all(math.isfinite(hours) and hours >= 0 for hours in spent.values()) else nothing
    except FileNotFoundError:
        return nothing
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("%s: what earlier runs have spent cannot be read, and counts as nothing: %s", file, error)
        return nothing
