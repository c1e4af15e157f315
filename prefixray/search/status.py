"""The state of a sweep's trials at one moment, as the live view shows it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefixray.config.schema import SweepConfig
from prefixray.system.records import Scalar

State = Literal["running", "paused", "done", "stopped", "failed"]

ENDED: frozenset[State] = frozenset({"done", "stopped", "failed"})


@dataclass(frozen=True)
class Row:
    """One trial."""

    arm: str
    number: int
    values: Mapping[str, Scalar]  # of the searched keys
    step: int
    num_steps: int
    score: float | None  # the dev loss of its last report
    state: State
    note: str | None = None  # "at rung 2", or why it failed
    adopted: bool = False  # whether it goes on: an earlier driver had it running, or it has paused
    own_name: str | None = None  # of a final run: final/ARM-TRIAL-SEED
    is_sampled: bool = False  # whether the score is over a sample of dev

    @property
    def name(self) -> str:
        """ARM/NUMBER, or the final run's own name: unique in the view, and the same in MLflow and under the folder."""
        return self.own_name or f"{self.arm}/{self.number}"

    @property
    def short_name(self) -> str:
        """What tells the row from others of its arm."""
        return str(self.number) if self.own_name is None else self.own_name.rpartition("/")[2]

    @property
    def state_text(self) -> str:
        """The state with its note."""
        between = ": " if self.state == "failed" else " "
        return self.state + (between + self.note if self.note else "")

    @property
    def score_text(self) -> str:
        """`1.596`, over a sample of dev `~1.596`, or a dash."""
        return "-" if self.score is None else f"{'~' if self.is_sampled else ''}{self.score:.3f}"

    @property
    def comparable(self) -> tuple[bool, float]:
        """A key for sorting by score: losses over a sample of dev come after the others, trials without one last."""
        score = self.score if self.score is not None and math.isfinite(self.score) else math.inf
        return self.is_sampled or math.isinf(score), score


@dataclass(frozen=True)
class View:
    """A picture of the whole sweep."""

    title: str  # "quickstart  SmolLM2-135M on e2e   runs/quickstart"
    stage: str  # "search", "final", ...
    rows: Sequence[Row] = field(default_factory=tuple)
    budget: str = ""  # "prefix 5 of 8 trials, 4 at once"
    tokens_per_second: float = 0.0
    workers: str = ""  # "2 workers x 64 slots, 3.1 GiB"
    seconds_left: float | None = None
    message: str | None = None  # what happens while no trial runs
    hint: str = ""  # how to change what goes on


def title_of(config: SweepConfig, folder: Path) -> str:
    """The title of a sweep's pictures: its name, its base, its task and its folder."""
    return f"{config.name}  {config.base.partition(':')[2] or config.base} on {config.task.name}   {folder}"
