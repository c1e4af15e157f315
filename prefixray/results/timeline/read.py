"""A sweep's timeline as spans of time: what each worker did from when to when, and for how long in all.

Time stands still between two drivers: the seconds are those since the first driver began, without the time in which
none ran.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefixray.results.timeline.keeper import FILE, Doing

KINDS = ("starting", "training", "evaluating", "decoding", "waiting", "idle")
"""What the time of a worker goes into: starting is until the base is loaded, waiting is to have trials and not to step
them."""


@dataclass(frozen=True)
class Span:
    """A time in which a worker did the same."""

    begin: float  # seconds
    end: float
    doing: Doing


@dataclass
class Lane:
    """The time of one worker."""

    worker: str
    spans: list[Span] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))  # by kind

    @property
    def total(self) -> float:
        """For how long the worker was there."""
        return sum(self.seconds.values())

    @property
    def idle_share(self) -> float:
        """The share of its time in which it neither started nor worked."""
        return (self.seconds["waiting"] + self.seconds["idle"]) / self.total if self.total else 0.0


@dataclass(frozen=True)
class Timeline:
    """What the workers of a sweep did."""

    lanes: Sequence[Lane]
    begins: Sequence[float]  # when each driver began, in seconds
    seconds: float  # of all drivers

    @property
    def idle_share(self) -> float:
        """The share of the workers' time in which they neither started nor worked."""
        total = sum(lane.total for lane in self.lanes)
        return sum(lane.idle_share * lane.total for lane in self.lanes) / total if total else 0.0


def read_timeline(folder: Path) -> Timeline | None:
    """The timeline of the sweep in `folder`; None where there is none, as in a sweep of an older version.

    Drivers whose workers had nothing to do are left out: somebody has started a sweep that was finished.
    """
    lanes: dict[str, Lane] = {}
    begins, now = list[float](), 0.0
    for lines in _drivers(folder / FILE):
        found = _lanes(lines, now - lines[0]["at"])
        if any(span.doing.does in ("train", "decode") for lane in found.values() for span in lane.spans):
            begins.append(now)
            now += lines[-1]["at"] - lines[0]["at"]
            for worker, lane in found.items():
                whole = lanes.setdefault(worker, Lane(worker))
                whole.spans += lane.spans
                whole.seconds = {kind: whole.seconds[kind] + lane.seconds[kind] for kind in KINDS}
    return Timeline(list(lanes.values()), begins, now) if lanes else None


def _drivers(file: Path) -> Iterator[list[dict[str, Any]]]:
    """The lines of each driver; one that was cut by a kill is passed over."""
    lines: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line.get("driver") == "begins" and lines:
            yield lines
            lines = []
        lines.append(line)
    if lines:
        yield lines


def _lanes(lines: Sequence[Mapping[str, Any]], shift: float) -> dict[str, Lane]:
    """The lanes of one driver, by worker; `shift` makes seconds of the sweep of its times."""
    by_worker: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "worker" in line:
            by_worker.setdefault(line["worker"], []).append(line)
    ended, lanes = lines[-1]["at"], {}
    for worker, own in by_worker.items():
        lane = lanes[worker] = Lane(worker)
        stepped = (0.0, 0.0)
        for line, following in zip(own, [*own[1:], {"at": ended}], strict=True):
            busy = tuple(line.get("busy", (0.0, 0.0)))  # a process that has stepped nothing says nothing
            _add_steps(lane, stepped, busy)
            stepped = busy
            if line["does"] != "gone":
                _add(lane, line, line["at"] + shift, following["at"] + shift)
        for kind in ("training", "evaluating"):  # a status comes late, so the last steps may be in no line
            lane.seconds["waiting"] -= lane.seconds[kind]
        lane.seconds["waiting"] = max(0.0, lane.seconds["waiting"])
    return lanes


def _add_steps(lane: Lane, before: tuple[float, ...], now: tuple[float, ...]) -> None:
    """Count what a worker has stepped between two lines; a process that has begun anew counts from nothing."""
    if now[0] < before[0]:
        before = (0.0, 0.0)
    lane.seconds["evaluating"] += now[1] - before[1]
    lane.seconds["training"] += now[0] - before[0] - (now[1] - before[1])


def _add(lane: Lane, line: Mapping[str, Any], begin: float, end: float) -> None:
    """Add a span, or let the last one go on; time with trials counts as waiting until steps are taken off it."""
    doing = Doing(line["does"], line.get("trials", {}))
    kind = {"wait": "starting", "load": "starting", "train": "waiting", "decode": "decoding", "idle": "idle"}
    lane.seconds[kind[doing.does]] += end - begin
    if lane.spans and not doing.differs(lane.spans[-1].doing) and lane.spans[-1].end == begin:
        begin = lane.spans.pop().begin
    lane.spans.append(Span(begin, end, doing))
