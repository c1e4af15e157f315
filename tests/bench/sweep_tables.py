"""What was measured of whole sweeps, and the tables that `whole_sweep.py` prints of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peft_sweep import TrialTimes

GIB = 2**30


@dataclass
class Run:
    """What was measured of one arm; times in seconds."""

    arm: str
    part: str  # "sweep" or "memory"
    at_once: int
    wall: float = 0.0
    cpu_seconds: float = 0.0  # of all processes
    peak_bytes: int = 0
    num_processes: int = 0
    trials: list[TrialTimes] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)  # dev losses of the best trial
    joined: list[float] = field(default_factory=list)  # ours: proposal -> the trial asks its worker
    started: float = 0.0  # UNIX time

    @property
    def waits(self) -> list[float]:
        """From proposal to the first step, in the order of proposals."""
        times = sorted((one for one in self.trials if one.first_step), key=lambda one: one.proposed)
        return [one.first_step - one.proposed for one in times if one.first_step]

    @property
    def best(self) -> float:
        """The lowest dev loss."""
        return min(self.curve, default=float("nan"))

    @property
    def num_steps(self) -> int:
        """Of all trials."""
        return sum(one.steps for one in self.trials)

    def most_at_once(self) -> int:
        """How many trials were between their first step and their end at one time."""
        spans = [(one.first_step, one.ended) for one in self.trials if one.first_step and one.ended]
        return max((sum(begun <= start < ended for begun, ended in spans) for start, _ in spans), default=0)


def sweep_table(runs: Sequence[Run], num_steps: int) -> str:
    """A line for each arm; ratios are to the first."""
    head = f"{'whole sweep':<26}{'wall s':>8}{'ratio':>7}{'CPU s':>8}{'ratio':>7}{'to the end':>12}{'steps':>7}"
    more = f"{'wall s/step':>13}{'ratio':>7}{'best dev loss':>15}{'peak GiB':>10}{'at once':>9}"
    lines = [head + more]
    for run in runs:
        pace, first = run.wall / max(1, run.num_steps), runs[0].wall / max(1, runs[0].num_steps)
        ended = sum(one.steps == num_steps and one.state != "failed" for one in run.trials)
        failed = sum(one.state == "failed" for one in run.trials)
        lines.append(
            f"{run.arm:<26}{run.wall:8.1f}{runs[0].wall / run.wall:7.2f}"
            f"{run.cpu_seconds:8.0f}{runs[0].cpu_seconds / run.cpu_seconds:7.2f}"
            f"{f'{ended} of {len(run.trials)}':>12}{run.num_steps:7}{pace:13.2f}{first / pace:7.2f}"
            f"{run.best:15.3f}{run.peak_bytes / GIB:10.2f}{run.at_once:9}{f'  {failed} failed' if failed else ''}"
        )
    return "\n".join([*lines, ""])


def wait_table(runs: Sequence[Run]) -> str:
    """From proposal to first step, medians; the first trials of a sweep, for which nothing is warm, by themselves."""
    title = "from proposal to first step, s"
    lines = [f"{title:<32}{'first trials':>14}{'later':>8}{'until it asks its worker':>26}"]
    for run in runs:
        wave = run.at_once
        cells = f"{_median(run.waits[:wave]):>14}{_median(run.waits[wave:]):>8}{_median(run.joined[wave:]):>26}"
        lines.append(f"{run.arm:<32}{cells}")
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


def _median(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f}" if seconds else "-"
