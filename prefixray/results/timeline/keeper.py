"""Writes down what each worker does, a line whenever that changes, so that a sweep's idle time can be seen.

The file grows at its end alone, and every driver of a sweep goes on in it. A line a minute says that the driver still
lives: a driver that was killed is gone from its last line on. Nothing of a sweep depends on the file.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

logger = logging.getLogger(__name__)

FILE = "timeline.jsonl"
LOOK_SECONDS = 0.25  # between two looks at the workers
ALIVE_SECONDS = 60.0  # between two lines of a worker that does the same all the while

Does = Literal["wait", "load", "train", "decode", "idle"]


@dataclass(frozen=True)
class Doing:
    """What a worker does at a moment."""

    does: Does  # wait: it has no process; idle: it has nothing to do
    trials: Mapping[str, int] = field(default_factory=dict)  # how many it has, by stage: "prefix", "final/prefix"
    stepping: float = 0.0  # seconds for which its process has stepped packs so far, evaluations among them
    evaluating: float = 0.0  # seconds of evaluations among those

    def differs(self, other: "Doing | None") -> bool:
        """Whether the worker did something else before."""
        return other is None or (self.does, dict(self.trials)) != (other.does, dict(other.trials))


class Timekeeper:
    """The timeline of one driver, which begins and ends with the block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look: Callable[[], Mapping[str, Doing]] = dict
        self._last: dict[str, tuple[float, Doing]] = {}  # by worker: its last line
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._is_broken = False
        self._thread = threading.Thread(target=self._run, name="timeline", daemon=True)

    def __enter__(self) -> Self:
        """Note that a driver begins, and look at the workers from now on."""
        self._write([{"at": _now(), "driver": "begins"}])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Note that the driver ends."""
        self._ended.set()
        self._thread.join()
        self.note(is_due=True)
        self._write([{"at": _now(), "driver": "ends"}])

    def watch(self, look: Callable[[], Mapping[str, Doing]]) -> None:
        """Have `look` asked what the workers do, by name."""
        self._look = look

    def note(self, *, is_due: bool = False) -> None:
        """Write a line for each worker that does something else than before; `is_due`: for all of them."""
        with self._lock:
            doing, now, lines = self._look(), _now(), list[dict[str, object]]()
            for worker, is_now in doing.items():
                at, before = self._last.get(worker, (0.0, None))
                if is_due or is_now.differs(before) or now >= at + ALIVE_SECONDS:
                    self._last[worker] = now, is_now
                    lines.append({"at": now, "worker": worker, **_short(is_now)})
            for worker in self._last.keys() - doing.keys():
                del self._last[worker]
                lines.append({"at": now, "worker": worker, "does": "gone"})
            self._write(lines)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.note()

    def _write(self, lines: list[dict[str, object]]) -> None:
        """Write whole lines at the end of the file; where the disk refuses, the rest of the timeline is left out."""
        if self._is_broken or not lines:
            return
        try:
            with self._path.open("ab+") as file:
                if file.tell() and _last_byte(self._path) != b"\n":  # a driver was killed while it wrote
                    file.write(b"\n")
                file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())
        except OSError as error:
            self._is_broken = True
            logger.warning("%s: %s; what the workers do is written down no more", self._path, error.strerror)


def _now() -> float:
    return round(time.time(), 2)


def _short(doing: Doing) -> dict[str, object]:
    """A line's part without what is empty."""
    busy = [round(doing.stepping, 2), round(doing.evaluating, 2)]
    trials = {"trials": dict(doing.trials)} if doing.trials else {}
    return {"does": doing.does, **trials, **({"busy": busy} if doing.stepping else {})}


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
