"""The budget of a search: hours, and hours of the workers' devices, summed over all drivers of the sweep.

The hours that are spent are written to `spent.json` in the sweep's folder, once a minute and at the end of a search, so
that the next driver goes on from there.
"""

import json
import logging
import math
import time
from pathlib import Path

from prefixray.config.schema import SearchConfig
from prefixray.system.atomic_files import write_whole

logger = logging.getLogger(__name__)

WRITE_SECONDS = 60.0  # between two writes


class Budget:
    """The clock of a search: it runs from the start of a driver to the end of the search."""

    def __init__(self, folder: Path, search: SearchConfig) -> None:
        self._file = folder / "spent.json"
        self._limits = {"max_hours": search.max_hours, "max_gpu_hours": search.max_gpu_hours}
        self._spent = _read(self._file)
        self._noted_device_seconds = 0.0
        self._noted_at = self._written_at = time.monotonic()

    def resume(self, device_seconds: float) -> None:
        """Let the clock run again; hours since the last `note` do not count."""
        self._noted_at, self._noted_device_seconds = time.monotonic(), device_seconds

    def note(self, device_seconds: float, *, is_last: bool = False) -> None:
        """Count the hours since the last `note`; `device_seconds` is how long this driver has held devices so far."""
        now = time.monotonic()
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
