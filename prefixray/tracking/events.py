"""What can happen to a sweep and its trials, one record per kind of event.

The driver makes the records, `queue.py` keeps them in order, `mlflow_store.py` writes them to MLflow.
A key names a trial: "prefix/3". Times are in ms since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefixray.system.records import Scalar
from prefixray.trial import Ended

SweepEnding = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class SweepStarted:
    """A driver begins a sweep or continues it; `columns` are those that the page's saved views show of a trial."""

    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    files: Sequence[Path]
    columns: Sequence[str]


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins, or continues after a relaunch; `is_new`: it begins, though one of its key may have ended."""

    key: str
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    is_new: bool = False


@dataclass(frozen=True)
class Point:
    """A trial's metrics at a step, and the time at which it reported them."""

    step: int
    metrics: Mapping[str, float]
    when: int


@dataclass(frozen=True)
class CurveGrew:
    """A trial has reported; later points of the trial may join the list until the event is sent."""

    key: str
    points: list[Point]


@dataclass(frozen=True)
class TrialPaused:
    """A trial pauses; it may go on later, and then starts again."""

    key: str


@dataclass(frozen=True)
class TrialEnded:
    """A trial ended; `artifact` is the folder to upload, if any."""

    key: str
    state: Ended
    artifact: Path | None


@dataclass(frozen=True)
class TrialScored:
    """The metrics of a trial's decoded hypotheses, which come after the trial's end."""

    key: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SweepSummarized:
    """The sweep's results; `note`, Markdown, becomes the description of its run."""

    files: Sequence[Path]
    note: str


@dataclass(frozen=True)
class SweepEnded:
    """The driver leaves the sweep."""

    state: SweepEnding


Event = SweepStarted | TrialStarted | CurveGrew | TrialPaused | TrialEnded | TrialScored | SweepSummarized | SweepEnded
