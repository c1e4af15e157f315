"""What is said about a trial between processes: its specification on the way in, its reports on the way out, its end.

Both are plain records in a module without torch, so that the thin processes that Ray Tune starts can read them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefixray.config.trials import TrainConfig, TrialConfig
from prefixray.system.atomic_files import write_whole

Ended = Literal["done", "stopped", "failed"]
_PLACE = "worker"  # the file in a trial's folder that names its worker
_RESULT = "result.json"  # the file there that says what came of it


def report_steps(recipe: TrainConfig, also: Iterable[int], num_steps: int) -> tuple[int, ...]:
    """The steps after which a trial of `num_steps` is evaluated, ascending: the recipe's, `also`, and the last."""
    steps = {*also, num_steps}
    if recipe.eval_every is not None:
        steps.update(range(recipe.eval_every, num_steps, recipe.eval_every))
    return tuple(sorted(step for step in steps if step <= num_steps))


@dataclass(frozen=True)
class TrialSpec:
    """One configuration to be trained, with everything that its numbers depend on."""

    key: str  # "prefix/3": unique in the sweep
    config: TrialConfig
    seed: int  # the sweep's seed
    replicate: int  # 0 in the search, 1..k in the final stage
    rungs: tuple[int, ...]  # steps at which the trial waits for a verdict
    folder: str  # checkpoints and the artifact go here; on storage that every worker sees
    keep_artifact: bool = True  # whether the best state is kept there for decoding
    eval_at: tuple[int, ...] = ()  # steps at which it is evaluated without a verdict
    decoding: Mapping[str, Any] | None = None  # the settings that its artifact shall record

    def report_steps(self) -> tuple[int, ...]:
        """The steps after which the trial is evaluated, ascending; the last is the end of its schedule."""
        return report_steps(self.config, (*self.rungs, *self.eval_at), self.config.num_steps)

    def place_on(self, worker: str) -> None:
        """Write down which worker trains it, for its process to read; it changes when that worker's machine is gone."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _PLACE, worker)

    def placed_on(self) -> str:
        """The worker that trains it."""
        return (Path(self.folder) / _PLACE).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Report:
    """What a trial says at one of its report steps, or when it ends."""

    key: str
    step: int
    state: Literal["running", "done", "stopped", "failed"]  # stopped: because the driver asked for it
    metrics: Mapping[str, float] = field(default_factory=dict)
    rung: int | None = None  # the rung it waits at, if it waits
    packmates: Mapping[str, float] = field(default_factory=dict)  # scores of all that reached this rung with it
    earlier: Mapping[int, float] = field(default_factory=dict)  # dev losses by step, in case their reports were lost
    note: str | None = None  # why it failed
    lost: bool = False  # it did not fail, but nobody can run it now


def write_result(spec: TrialSpec, report: Report, state: Ended) -> None:
    """Write down what came of a trial, in its folder."""
    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **asdict(report),
        "state": state,
        "replicate": spec.replicate,
        "config": spec.config.model_dump(mode="json"),
    }
    write_whole(folder / _RESULT, json.dumps(content, indent=1) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """What came of the trial of this folder; None where it has not ended."""
    path = folder / _RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass(frozen=True)
class Admission:
    """A worker's answer to a trial that wants to join."""

    state: Literal["joined", "later", "refused"]  # later: it is the turn of others, or it will be placed elsewhere
    note: str | None = None  # why it is refused


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker is doing."""

    steps: Mapping[str, int]  # of the trials in its pack
    tokens_per_second: float  # target tokens
    memory_bytes: int
    seconds_silent: float = 0.0  # since the last sign of life of a loop that has something to do
    num_deaths: int = 0  # of workers in this place before
    last_death: str | None = None  # what is known of the last of them
