"""A queue of events, and the thread that sends them in order, again and again while the server is away.

Every event carries the time in ms at which it happened, so that a late delivery changes no time in MLflow. A point of
a trial's curve joins the event of that trial that still waits: one request then sends many points.
"""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from prefixray.errors import first_line
from prefixray.tracking.events import CurveGrew, Event, Point, TrialEnded, TrialPaused, TrialStarted

_logger = logging.getLogger(__name__)

_MOST_WAITING = 50_000  # events that are kept while the server is away; points of curves beyond that are lost
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0  # seconds between attempts
_PATIENCE, _PATIENCE_AWAY = 60.0, 10.0  # seconds without progress after which closing gives up
_LEAD = 3.0  # seconds that the first event waits: to import MLflow takes as long, and would hold up the first trials
_GATHERING = 5.0  # seconds for which points wait for others of their trial; MLflow's page refreshes every 30 s


class Sender:
    """The queue and its thread; `deliver` sends one event and raises where it cannot."""

    def __init__(self, deliver: Callable[[Event, int], None], uri: str) -> None:
        self._deliver = deliver
        self._uri = uri
        self._events: deque[tuple[Event, int, float]] = deque()  # with the time in MLflow, and that of our own clock
        self._open: dict[str, CurveGrew] = {}  # by trial: the event that its next point joins
        self._num_waiting = 0  # each point counts
        self._changed = threading.Condition()
        self._closing = False
        self._away = False
        self._given_up = threading.Event()
        self._num_sent = 0
        self._num_lost = 0
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Add an event; returns at once."""
        with self._changed:
            if isinstance(event, TrialStarted | TrialPaused | TrialEnded):
                self._open.pop(event.key, None)  # later points of the trial must not overtake this event
            self._add(event, _now())

    def put_point(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to its trial's event that waits, or else a new event; returns at once."""
        with self._changed:
            point = Point(step, metrics, _now())
            if self._num_waiting >= _MOST_WAITING:
                self._num_lost += 1
            elif key in self._open:
                self._open[key].points.append(point)
                self._num_waiting += 1
            else:
                self._open[key] = CurveGrew(key, [point])
                self._add(self._open[key], point.when)

    def drain(self) -> None:
        """Wait until everything is sent, or until nothing was sent for a while; warn of what is lost."""
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

    def _add(self, event: Event, when: int) -> None:
        self._events.append((event, when, time.monotonic()))
        self._num_waiting += 1
        self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._closing)
            self._changed.wait_for(lambda: self._closing, timeout=_LEAD)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._closing)
                if not self._events:
                    return
                event, when, since = self._events[0]
                if isinstance(event, CurveGrew):
                    self._changed.wait_for(lambda: self._closing, timeout=_GATHERING - (time.monotonic() - since))
                    if self._open.get(event.key) is event:
                        del self._open[event.key]
            if not self._send(event, when):
                return
            with self._changed:
                self._events.popleft()
                self._num_waiting -= _size(event)
                self._num_sent += 1

    def _send(self, event: Event, when: int) -> bool:
        """Send an event, however often that takes; False when closing has given up."""
        pause = _FIRST_PAUSE
        while True:
            try:
                self._deliver(event, when)
            except Exception as error:  # whatever goes wrong in logging, the sweep goes on
                if not _is_away(error):
                    self._note_refusal(error, _size(event))
                    return True
                if not self._away:
                    _logger.warning("MLflow at %s is away; the sweep goes on: %s", self._uri, _reason(error))
                self._away = True
            else:
                self._away = False
                return True
            if self._given_up.wait(pause):
                return False
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _note_refusal(self, error: Exception, num_entries: int) -> None:
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
    return isinstance(error, OperationalError | sqlite3.OperationalError) or (
        isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    )


def _reason(error: Exception) -> str:
    """In one line; a database's own words, without the statement that it was asked."""
    return first_line(getattr(error.__cause__, "orig", None) or error)


def _size(event: Event) -> int:
    return len(event.points) if isinstance(event, CurveGrew) else 1


def _now() -> int:
    return time.time_ns() // 1_000_000
