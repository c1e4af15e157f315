"""A trial as processes speak of it: its specification, its folder, its reports, and a worker's answers.

All of these are plain records in a module without torch, because the process of the trials' seats
in Ray Tune imports them.
"""

import json
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prefixray.config.seeds import CANDIDATE_REPLICATE
from prefixray.config.trials import TrialConfig
from prefixray.system.atomic_files import clear_scratch, write_whole

Ended = Literal["done", "stopped", "failed"]
LOSS, SAMPLE_LOSS = "dev/loss", "dev/sample_loss"  # metrics: over all of dev, and over a sample of it
BEST_LOSS = "dev/best_loss"  # the lowest over all of dev so far: a trial's state with it is kept
RESULT_FILE = "result.json"
_CHECKPOINT = re.compile(r"step-(\d+)")


def report_steps(eval_every: int | None, also: Iterable[int], num_steps: int) -> tuple[int, ...]:
    """The steps after which a trial of `num_steps` is evaluated, ascending: each `eval_every`, `also`, and the last."""
    steps = {*also, num_steps}
    if eval_every is not None:
        steps.update(range(eval_every, num_steps, eval_every))
    return tuple(sorted(step for step in steps if step <= num_steps))


def evaluated_shares(
    eval_every: int | None, rungs: Sequence[int], num_steps: int, dev_sample: float, also: Iterable[int] = ()
) -> dict[int, float]:
    """The steps after which a trial is evaluated, ascending, each with the share of dev.

    It is evaluated on a sample at all rungs but the last, and on all of dev at the last rung, each `eval_every`,
    `also`, and the last step.
    """
    shares = dict.fromkeys(report_steps(eval_every, (*rungs[-1:], *also), num_steps), 1.0)
    shares |= {step: dev_sample for step in rungs[:-1] if step < num_steps and step not in shares}
    return dict(sorted(shares.items()))


@dataclass(frozen=True)
class TrialFolder:
    """Where the files of a trial lie."""

    path: Path

    @property
    def artifact(self) -> Path:
        """The folder of the state with the best dev loss."""
        return self.path / "artifact"

    @property
    def result_file(self) -> Path:
        """The file that says how the trial ended."""
        return self.path / RESULT_FILE

    @property
    def worker_file(self) -> Path:
        """The file that names the worker which trains the trial."""
        return self.path / "worker"

    @property
    def fence_file(self) -> Path:
        """The file with the token of the one process that may write checkpoints and artifacts."""
        return self.path / "fence"

    def claim(self) -> str | None:
        """Become the one process that may write here; the token that tells it, None where there is no folder yet."""
        if not self.path.is_dir():
            return None
        token = uuid.uuid4().hex
        write_whole(self.fence_file, token)
        return token

    def holder(self) -> str | None:
        """The token of the process that may write here; None where there is none, as in a folder that was deleted."""
        try:
            return self.fence_file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of this step."""
        return self.path / f"step-{step}"

    def checkpoint_steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        if not self.path.is_dir():
            return []
        matches = (_CHECKPOINT.fullmatch(path.name) for path in self.path.iterdir())
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints, and those that a killed process has left half written."""
        for step in self.checkpoint_steps():
            shutil.rmtree(self.checkpoint(step), ignore_errors=True)
        self.clear_scratch_checkpoints()

    def delete(self) -> None:
        """Delete what another trial of this number has left."""
        shutil.rmtree(self.path, ignore_errors=True)

    def clear_scratch_checkpoints(self) -> None:
        """Delete the checkpoints that a killed process has left half written."""
        clear_scratch(self.path, "step-*")

    def costs(self) -> dict[str, float]:
        """What the trial had taken at its newest checkpoint, as metrics; nothing where none can be read."""
        for step in self.checkpoint_steps():
            try:
                state = json.loads((self.checkpoint(step) / "checkpoint.json").read_text(encoding="utf-8"))["state"]
                return {"train/tokens": state["num_tokens"], "train/seconds": state["seconds"]}
            except (OSError, ValueError, KeyError):  # it is damaged, or its worker deletes it
                continue
        return {}

    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`; None where the trial has not ended."""
        return json.loads(self.result_file.read_text(encoding="utf-8")) if self.result_file.is_file() else None


def final_name(arm: str, number: int, replicate: int, document: str | None = None) -> str:
    """The name of a run in the final stage: of its folder in the sweep's, in MLflow and in the live view.

    `document` is the one that the run is about, where there are several.
    """
    return f"final/{arm}-{number}-{replicate}" + ("" if document is None else f"@{document}")


@dataclass(frozen=True)
class TrialSpec:
    """One configuration to be trained, with everything that its numbers depend on."""

    key: str  # "prefix/3", "final/prefix-3-1", "final/prefix-3-1@manual": unique in the sweep
    config: TrialConfig
    seed: int  # the sweep's seed
    replicate: int  # 0 in the search, 1..k in the final stage
    rungs: tuple[int, ...]  # steps at which the trial waits for a verdict
    folder: str  # of the trial's files, on storage that every worker sees
    subsets: tuple[int, ...] = (0,)  # of the task's subsets those that it trains on, with a member for each
    keep_artifact: bool = True  # whether the best state is kept for decoding; of one member alone
    eval_at: tuple[int, ...] = ()  # further steps at which it is evaluated, without a verdict
    dev_sample: float = 1.0  # the share of dev that it is evaluated on at all rungs but the last
    decoding: Mapping[str, Any] | None = None  # the settings that its artifact shall record
    may_pause: bool = False  # whether the verdict at a rung may be to pause: then a checkpoint is kept there
    resumed_from: int | None = None  # the step at which the trial has paused last, whose report the driver has

    @property
    def files(self) -> TrialFolder:
        """Where the trial's files lie."""
        return TrialFolder(Path(self.folder))

    @property
    def stage(self) -> str:
        """What it is trained for: "prefix" in the search, then "candidates/prefix" and "final/prefix"."""
        if self.replicate == 0:
            return self.config.arm
        return f"{'candidates' if self.replicate == CANDIDATE_REPLICATE else 'final'}/{self.config.arm}"

    @cached_property
    def report_steps(self) -> Mapping[int, float]:
        """The steps after which the trial is evaluated, ascending, each with the share of dev; the last is the end."""
        config = self.config
        return evaluated_shares(config.eval_every, self.rungs, config.num_steps, self.dev_sample, self.eval_at)

    def loss_at(self, step: int) -> str:
        """The metric that is reported after this step."""
        return LOSS if self.report_steps.get(step, 1.0) == 1 else SAMPLE_LOSS

    def member_keys(self) -> dict[str, int]:
        """The keys of the trial's members, each with its subset; a lone member has the trial's."""
        if len(self.subsets) == 1:
            return {self.key: self.subsets[0]}
        return {f"{self.key}@{subset}": subset for subset in self.subsets}

    def place_on(self, worker: str) -> None:
        """Write down which worker trains the trial; it changes when the trial moves."""
        self._write(self.files.worker_file, worker)

    def placed_on(self) -> str:
        """The worker that trains the trial."""
        return self.files.worker_file.read_text(encoding="utf-8")

    def write_result(self, report: "Report", state: Ended) -> None:
        """Write `result.json`: the trial's last report, how it ended, and its configuration."""
        content = {
            **asdict(report),
            "state": state,
            "replicate": self.replicate,
            "config": self.config.model_dump(mode="json"),
        }
        self._write(self.files.result_file, json.dumps(content, indent=1) + "\n")

    def _write(self, file: Path, content: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)


@dataclass(frozen=True)
class Report:
    """A trial's message to the driver, at a report step or when it ends."""

    key: str
    step: int
    state: Literal["running", "done", "stopped", "failed"]  # stopped: on the driver's request
    metrics: Mapping[str, float] = field(default_factory=dict)
    rung: int | None = None  # the rung at which the trial waits
    packmates: Mapping[str, float] = field(default_factory=dict)  # dev losses of all trials that reached it together
    earlier: Mapping[int, float] = field(default_factory=dict)  # dev losses by step, in case reports were lost
    note: str | None = None  # why the trial failed
    lost: bool = False  # the trial did not fail, but nobody can run it now

    @property
    def loss(self) -> float | None:
        """The dev loss, over all of dev or a sample; None where the trial was not evaluated."""
        return self.metrics.get(LOSS, self.metrics.get(SAMPLE_LOSS))


@dataclass(frozen=True)
class Admission:
    """A worker's answer to a trial that wants to join."""

    state: Literal["joined", "later", "refused"]  # later: others have their turn, or it will be placed elsewhere
    note: str | None = None  # why the trial is refused


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker does now."""

    steps: Mapping[str, int]  # by trial, of those in its pack
    tokens_per_second: float  # target tokens
    memory_bytes: int
    seconds_silent: float = 0.0  # since the last sign of life of a loop that has something to do
    num_deaths: int = 0  # of this worker's earlier processes
    last_death: str | None = None  # what is known of the last death
    stepping: float = 0.0  # seconds for which this process has stepped packs so far, evaluations among them
    evaluating: float = 0.0  # seconds of evaluations among those
    decoded: tuple[int, int] = (0, 0)  # sources of the split that it decodes now, or has decoded last; and of how many
