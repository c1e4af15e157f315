"""What was measured of whole sweeps, and the tables that `whole_sweep.py` prints of it."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep_spec import TrialTimes

GIB = 2**30
AGAINST = ("PEFT fp32", "PEFT bf16")  # arms whose time is divided by that of each other arm


@dataclass
class Run:
    """What was measured of one arm; times in seconds."""

    arm: str
    part: str  # "sweep" or "memory"
    at_once: int
    num_trials: int
    repeat: int = 0
    wall: float = 0.0
    cpu_seconds: float = 0.0  # of all processes
    peak_bytes: int = 0
    num_processes: int = 0
    trials: list[TrialTimes] = field(default_factory=list)
    num_whole: int = 0  # trials that came to the end of their schedule
    curve: list[float] = field(default_factory=list)  # dev losses of the best of those
    config: dict[str, Any] = field(default_factory=dict)  # and its configuration
    joined: list[float] = field(default_factory=list)  # ours: proposal -> the trial asks its worker
    started: float = 0.0  # UNIX time
    idle_share: float | None = None  # ours: of the workers' time

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> "Run":
        """From its fields as JSON."""
        return cls(**{**content, "trials": [TrialTimes(**trial) for trial in content["trials"]]})

    def is_same(self, other: "Run") -> bool:
        """Whether both are the same run of a plan."""
        mine, theirs = ((r.arm, r.part, r.at_once, r.num_trials, r.repeat) for r in (self, other))
        return mine == theirs

    def note_trials(self, num_steps: int) -> None:
        """Note when the last trial ended, and which was the best of those that trained for all steps."""
        self.wall = max((one.ended or 0.0 for one in self.trials), default=0.0) - self.started
        whole = [one for one in self.trials if one.steps == num_steps and one.state != "failed"]
        self.num_whole = len(whole)
        finite = [one for one in whole if all(map(math.isfinite, one.losses))]
        if finite:
            best = min(finite, key=lambda one: one.losses[-1])  # at rungs ours are over a sample of dev
            self.curve, self.config = best.losses, best.config

    @property
    def waits(self) -> list[float]:
        """From proposal to the first step, in the order of proposals."""
        times = sorted((one for one in self.trials if one.first_step), key=lambda one: one.proposed)
        return [one.first_step - one.proposed for one in times if one.first_step]

    @property
    def best(self) -> float:
        """The lowest dev loss of a trial that came to the end."""
        return self.curve[-1] if self.curve else float("nan")

    @property
    def num_steps(self) -> int:
        """Of all trials."""
        return sum(one.steps for one in self.trials)

    @property
    def until_first_step(self) -> float:
        """From the command to the first step of any trial."""
        return min((one.first_step for one in self.trials if one.first_step), default=float("nan")) - self.started

    def most_at_once(self) -> int:
        """How many trials were between their first step and their end at one time."""
        spans = [(one.first_step, one.ended) for one in self.trials if one.first_step and one.ended]
        return max((sum(begun <= start < ended for begun, ended in spans) for start, _ in spans), default=0)


def time_table(runs: Sequence[Run]) -> str:
    """A line for each arm; ratios are those of a repeat's runs."""
    head = f"{'time':<26}{'wall s':>22}" + "".join(f"{f'{arm} / it':>20}" for arm in AGAINST)
    lines = [f"{head}{'CPU s':>8}{'wall s/step':>13}{'to 1st step':>13}"]
    for arm, own in _by_arm(runs).items():
        ratios = [
            [
                other.wall / run.wall
                for run in own
                for other in runs
                if (other.arm, other.repeat) == (against, run.repeat)
            ]
            for against in AGAINST
        ]
        lines.append(
            f"{arm:<26}{spread([run.wall for run in own], 1):>22}"
            + "".join(f"{spread(ratio, 2):>20}" for ratio in ratios)
            + f"{_median(own, lambda run: run.cpu_seconds):8.0f}"
            f"{_median(own, lambda run: run.wall / max(1, run.num_steps)):13.2f}"
            f"{_median(own, lambda run: run.until_first_step):13.1f}"
        )
    return "\n".join([*lines, ""])


def outcome_table(runs: Sequence[Run]) -> str:
    """A line for each arm: what came of the search, and what it took besides time."""
    head = f"{'outcome':<26}{'best dev loss':>22}{'to the end':>12}{'failed':>8}{'steps':>7}{'workers idle':>20}"
    lines = [f"{head}{'peak GiB':>10}{'at once':>9}"]
    for arm, own in _by_arm(runs).items():
        failed = [sum(one.state == "failed" for one in run.trials) for run in own]
        idle = [100 * run.idle_share for run in own if run.idle_share is not None]
        lines.append(
            f"{arm:<26}{spread([run.best for run in own], 3):>22}"
            f"{_median(own, lambda run: run.num_whole):12g}{statistics.median(failed):8g}"
            f"{_median(own, lambda run: run.num_steps):7g}{spread(idle, 0, ' %'):>20}"
            f"{_median(own, lambda run: run.peak_bytes / GIB):10.2f}{own[0].at_once:9}"
        )
    return "\n".join([*lines, ""])


def wait_table(runs: Sequence[Run]) -> str:
    """From proposal to first step, medians; the first trials of a sweep, for which nothing is warm, by themselves."""
    title = "from proposal to first step, s"
    lines = [f"{title:<32}{'first trials':>14}{'later':>8}{'until it asks its worker':>26}"]
    for arm, own in _by_arm(runs).items():
        wave = own[0].at_once
        first, later = ([wait for run in own for wait in run.waits[part]] for part in (slice(wave), slice(wave, None)))
        joined = [wait for run in own for wait in run.joined[wave:]]
        cells = f"{_seconds(first):>14}{_seconds(later):>8}{_seconds(joined):>26}"
        lines.append(f"{arm:<32}{cells}")
    return "\n".join([*lines, ""])


def memory_table(runs: Sequence[Run]) -> str:
    """Peaks in GiB by trials at once; what was not run is on the line through the first point and the last."""
    counts = sorted({run.at_once for run in runs})
    lines = [f"{'peak GiB, trials at once':<26}{''.join(f'{count:>9}' for count in counts)}"]
    for arm in dict.fromkeys(run.arm for run in runs):
        known = {run.at_once: run.peak_bytes / GIB for run in runs if run.arm == arm}
        cells = [
            f"{known[count]:9.2f}" if count in known else f"{_extrapolated(known, count):>8.1f}+" for count in counts
        ]
        lines.append(f"{arm:<26}{''.join(cells)}")
    short = [run for run in runs if run.most_at_once() < run.at_once]
    lines.append("+ not run: on the line through the first and the last of its row")
    lines += [f"{run.arm}, {run.at_once} at once: only {run.most_at_once()} trained at the same time" for run in short]
    return "\n".join([*lines, ""])


def _extrapolated(known: Mapping[int, float], count: int) -> float:
    first, last = min(known), max(known)
    slope = (known[last] - known[first]) / max(1, last - first)
    return known[first] + slope * (count - first)


def _by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The median, and where there are several values the lowest and the highest."""
    if not values:
        return "-"
    cells = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{cells[0]}{unit}" + (f" [{cells[1]}, {cells[2]}]" if len(values) > 1 else "")


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "-"
