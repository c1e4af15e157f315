"""Seats: all trials of a Tune run in one process, though Tune believes that each has an actor of its own.

A trial's part in Tune only waits for the reports of a worker, for which a process of 115 MB is too much. So one actor,
the house, holds the trainables of all trials, each under the number of its seat. Tune gets its actor classes from a
class with a private name; while a run is `seated`, a stand-in takes that class's place. The stand-in's "actor class"
opens a seat, and the "actor" that it returns forwards each method call to the house, with the number of its seat.

Where Ray has no such name any more, each trial has a process, as Tune wants it. `tests/driver/engine/test_seats.py`
tries both with the installed Ray.
"""

import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.actor import ActorClass, ActorHandle
from ray.tune.execution import tune_controller
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prefixray.cluster.nodes import own_node

logger = logging.getLogger(__name__)

PRIVATE_NAME = "_ActorClassCache"
"""What Tune's controller gets its actor classes from."""
_NUM_SPARE = 8  # threads of the house beside one for each trial, for calls that do not wait
_READY, _STOP = "__ray_ready__", "stop"


class House:
    """The process of all trials: it calls a method of a seat's trainable, in a thread for each call."""

    def __init__(self) -> None:
        self._seats: dict[int, tune.Trainable] = {}
        self._lock = threading.Lock()

    def open(self, number: int, trainable: type[tune.Trainable], given: Mapping[str, Any]) -> None:
        """Make a seat's trainable."""
        seat = trainable(**given)
        with self._lock:
            self._seats[number] = seat

    def call(self, number: int, method: str, given: Sequence[Any], named: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Call a method of a seat's trainable; `stop` closes the seat."""
        with self._lock:
            seat = self._seats.pop(number) if method == _STOP else self._seats[number]
        return getattr(seat, method)(*given, **named)


class _Method:
    """A method of a seat, as Tune calls it."""

    def __init__(self, seat: "_Seat", name: str) -> None:
        self._seat, self._name = seat, name

    def remote(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401
        """Call it; Ray's reference to the result."""
        if self._name == _READY:
            return self._seat.opened
        return self._seat.house.call.remote(self._seat.number, self._name, given, named)


class _Seat:
    """What Tune takes for the actor of a trial."""

    def __init__(self, house: ActorHandle[House], number: int, opened: Any) -> None:  # noqa: ANN401
        self.house, self.number = house, number
        self.opened = opened
        """Ray's reference that is there once the seat is open."""

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class _SeatClass(ActorClass[tune.Trainable]):
    """What Tune takes for an actor class: it opens seats."""

    def __init__(self, house: ActorHandle[House], numbers: Iterator[int], trainable: type[tune.Trainable]) -> None:
        self._house, self._numbers, self._trainable = house, numbers, trainable

    def options(self, **_: Any) -> "_SeatClass":  # noqa: ANN401
        """Where and with what Tune wants the actor to run is the house's affair."""
        return self

    def remote(self, **given: Any) -> _Seat:  # type: ignore[override]  # noqa: ANN401
        """Open a seat for a trial."""
        number = next(self._numbers)
        return _Seat(self._house, number, self._house.open.remote(number, self._trainable, given))


@dataclass(frozen=True)
class OpenHouse:
    """A house, and for how many trials at a time it has threads."""

    actor: ActorHandle[House]
    num_seats: int

    def close(self) -> None:
        """End its process."""
        ray.kill(self.actor)


def open_house(num_seats: int) -> OpenHouse:
    """Start a house on this machine; its process imports Tune, which takes seconds, while the caller goes on."""
    here = NodeAffinitySchedulingStrategy(own_node().id, soft=False)
    options = ray.remote(House).options(num_cpus=0, max_concurrency=num_seats + _NUM_SPARE, scheduling_strategy=here)
    actor: ActorHandle[House] = options.remote()  # type: ignore[assignment]
    return OpenHouse(actor, num_seats)


@contextmanager
def seated(num_seats: int, ready: OpenHouse | None = None) -> Iterator[dict[str, float]]:
    """Let the trials of the Tune run inside, at most `num_seats` at a time, share a process on this machine.

    A house that is `ready` is used if it has the room, and closed in any case. Gives what each trial shall ask of Ray:
    a bit of this node, where a thousand trials have room.
    """
    place = {own_node().resource: 0.001}
    replaced = getattr(tune_controller, PRIVATE_NAME, None)
    if ready is not None and (replaced is None or ready.num_seats < num_seats):
        ready.close()
        ready = None
    if replaced is None:
        logger.warning("this version of Ray has no %s any more: each trial gets a process of its own", PRIVATE_NAME)
        yield place
        return
    house = ready or open_house(num_seats)
    numbers = itertools.count()

    class Classes:
        """In the place of Tune's class."""

        def get(self, trainable: type[tune.Trainable]) -> _SeatClass:
            return _SeatClass(house.actor, numbers, trainable)

    setattr(tune_controller, PRIVATE_NAME, Classes)
    try:
        yield place
    finally:
        setattr(tune_controller, PRIVATE_NAME, replaced)
        house.close()
