"""A queue of what is to be logged, and the thread that sends it in order, again and again while the server is away.

An entry is a call on the store, with the time in ms at which it was asked for. Points of one trial's curves join the
entry that waits.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_logger = logging.getLogger(__name__)

_MOST_WAITING = 50_000  # entries that are kept while the server is away; points of curves beyond that are lost
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0  # seconds between attempts
_PATIENCE, _PATIENCE_AWAY = 60.0, 10.0  # seconds without progress after which closing gives up
_GATHERING = 5.0  # seconds for which points wait for others of their trial; MLflow's page looks every 30 s


@dataclass(frozen=True)
class Point:
    """What a trial reported at a step, and the time in ms at which it did."""

    step: int
    metrics: Mapping[str, float]
    when: int


class Store(Protocol):
    """What is sent to: whose calls are entries, points of curves among them."""

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Add points to a trial's curves."""


StoreT = TypeVar("StoreT", bound=Store)


@dataclass(frozen=True)
class Curve:
    """An entry that more points of its trial may join until it is sent."""

    key: str
    points: list[Point]

    def __call__(self, store: Store, when: int) -> None:
        """Send the points that it has by now."""
        store.log(self.key, self.points)


class Sender(Generic[StoreT]):
    """A queue of entries and the thread that sends them in order."""

    def __init__(self, store: StoreT, uri: str) -> None:
        self._store = store
        self._uri = uri
        self._entries: deque[tuple[Callable[[StoreT, int], None], int]] = deque()
        self._open: dict[str, Curve] = {}  # by trial: the entry that its next point joins
        self._num_waiting = 0  # each point counts
        self._changed = threading.Condition()
        self._closing = False
        self._away = False
        self._given_up = threading.Event()
        self._num_sent = 0
        self._num_lost = 0
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, entry: Callable[[StoreT, int], None], *, key: str | None = None) -> None:
        """Add an entry, which points of the trial `key` do not overtake; returns at once."""
        with self._changed:
            self._open.pop(key or "", None)
            self._add(entry, _now())

    def put_point(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the entry of its trial that waits, or else a new entry; returns at once."""
        with self._changed:
            point = Point(step, metrics, _now())
            if self._num_waiting >= _MOST_WAITING:
                self._num_lost += 1
            elif key in self._open:
                self._open[key].points.append(point)
                self._num_waiting += 1
            else:
                self._open[key] = Curve(key, [point])
                self._add(self._open[key], point.when)

    def drain(self) -> None:
        """Wait until all is sent, or until nothing was for a while; say what is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        num_sent, since = self._num_sent, time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < (_PATIENCE_AWAY if self._away else _PATIENCE):
            self._thread.join(0.05)
            if self._num_sent != num_sent:
                num_sent, since = self._num_sent, time.monotonic()
        self._given_up.set()
        num_lost = self._num_lost + self._num_waiting
        if num_lost:
            _logger.warning("MLflow at %s: %d entries could not be logged", self._uri, num_lost)

    def _add(self, entry: Callable[[StoreT, int], None], when: int) -> None:
        self._entries.append((entry, when))
        self._num_waiting += 1
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                entry, when = self._entries[0]
                if isinstance(entry, Curve):
                    self._changed.wait_for(lambda: self._closing, timeout=_GATHERING - (_now() - when) / 1000)
                    if self._open.get(entry.key) is entry:
                        del self._open[entry.key]
            if not self._send(entry, when):
                return
            with self._changed:
                self._entries.popleft()
                self._num_waiting -= _size(entry)
                self._num_sent += 1

    def _send(self, entry: Callable[[StoreT, int], None], when: int) -> bool:
        """Send an entry, in the end; False when closing has given up."""
        pause = _FIRST_PAUSE
        while True:
            try:
                entry(self._store, when)
            except Exception as error:  # whatever goes wrong in logging, the sweep goes on
                if not _is_away(error):
                    self._refused(error, _size(entry))
                    return True
                if not self._away:
                    _logger.warning("MLflow at %s is away; the sweep goes on: %s", self._uri, error)
                self._away = True
            else:
                self._away = False
                return True
            if self._given_up.wait(pause):
                return False
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refused(self, error: Exception, num_entries: int) -> None:
        if not self._num_lost:
            _logger.warning("MLflow at %s refuses what is logged: %s", self._uri, error)
        self._num_lost += num_entries


def _is_away(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return bool(status >= 500 or status == 429)
    return isinstance(error, OperationalError) or (
        isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    )


def _size(entry: object) -> int:
    return len(entry.points) if isinstance(entry, Curve) else 1


def _now() -> int:
    return time.time_ns() // 1_000_000
