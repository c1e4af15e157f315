"""What a search may spend and has spent, in hours and in hours of its workers' devices, over all drivers of its sweep.

It is written down once a minute and at the end of a search, in the sweep's folder, for the next driver to go on from.
"""

import json
import logging
import math
import time
from pathlib import Path

from prefixray.config.schema import SearchConfig
from prefixray.system.atomic_files import write_whole

logger = logging.getLogger(__name__)

WRITE_SECONDS = 60.0  # between two times that it is written down


class Budget:
    """The clock of a sweep's search: it runs from the start of a driver to the end of the search."""

    def __init__(self, folder: Path, search: SearchConfig) -> None:
        self._file = folder / "spent.json"
        self._most = {"max_hours": search.max_hours, "max_gpu_hours": search.max_gpu_hours}
        self._spent = _read(self._file)
        self._devices_at = 0.0
        self._at = self._written_at = time.monotonic()

    def resume(self, device_seconds: float) -> None:
        """Let the clock run again: what has been spent since it was looked at last is not the search's."""
        self._at, self._devices_at = time.monotonic(), device_seconds

    def note(self, device_seconds: float, *, is_last: bool = False) -> None:
        """Count what has been spent since then; so long has this driver held devices by now."""
        now = time.monotonic()
        self._spent["max_hours"] += (now - self._at) / 3600
        self._spent["max_gpu_hours"] += (device_seconds - self._devices_at) / 3600
        self._at, self._devices_at = now, device_seconds
        if is_last or now > self._written_at + WRITE_SECONDS:
            self._written_at = now
            write_whole(self._file, json.dumps(self._spent) + "\n")

    def problem(self) -> str | None:
        """Which of the two is spent, if one is."""
        for key, most in self._most.items():
            if most is not None and self._spent[key] >= most:
                told = f"search.{key}: {self._spent[key]:.3g} of {most:g} hours are spent"
                return f"{told}: no trial is started any more, unless it is raised"
        return None


def _read(file: Path) -> dict[str, float]:
    """What earlier drivers have spent."""
    spent = {"max_hours": 0.0, "max_gpu_hours": 0.0}
    try:
        found = {key: float(json.loads(file.read_text(encoding="utf-8"))[key]) for key in spent}
        return found if all(math.isfinite(hours) and hours >= 0 for hours in found.values()) else spent
    except FileNotFoundError:
        return spent
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("%s: what earlier runs have spent cannot be read, and counts as nothing: %s", file, error)
        return spent
