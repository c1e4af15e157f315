"""An arm's trials that are to be run, and what the study, the tracker and the live view are told of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefixray.cluster.pool import DecodeJob
from prefixray.config.schema import ArmConfig
from prefixray.search.halving import Halving
from prefixray.search.status import Row, State
from prefixray.search.study import ArmStudy, Proposal, Record, TrialSource
from prefixray.system.records import Scalar
from prefixray.trial import TrialSpec

MakeSpec = Callable[[Proposal | Record], TrialSpec]


@dataclass(frozen=True)
class Stage:
    """Trials of one arm that are to be run."""

    name: str  # the trials' keys are NAME/NUMBER
    arm: ArmConfig
    source: TrialSource
    concurrency: int
    spec: MakeSpec
    halving: Halving = field(default_factory=Halving)  # by default there is no rung
    decode: Callable[[TrialSpec], DecodeJob] | None = None  # what is to be decoded of a trial that is done


def turn_of(stage: Stage, *, is_due: bool) -> int:
    """When a stage is asked; of a list that is fixed, as in the final stage, the order is the driver's."""
    if is_due:
        return 0
    return 2 if stage.arm.exclusive and isinstance(stage.source, ArmStudy) else 1


def record_of(stage: Stage, number: int) -> Record:
    """What the study knows of a trial."""
    return next(record for record in stage.source.records() if record.number == number)


def settle(stage: Stage, record: Record, result: Mapping[str, Any]) -> Record:
    """Tell the study what its driver had written down, but died before it told."""
    value = result["metrics"]["dev/best_loss"] if result["state"] == "done" else None
    stage.source.tell(record.number, result["state"], value, result["note"])
    return record_of(stage, record.number)


def may_lack_a_score(study: ArmStudy) -> bool:
    """Whether no trial has a score yet, and one may still come."""
    records = study.records()
    to_come = len(records) < study.num_wanted() or any(record.state == "running" for record in records)
    return to_come and not any(record.reports and record.state != "failed" for record in records)


def budget_of(stage: Stage, rows: Sequence[Row]) -> str:
    """How far a search is, and where it ends; a request may have changed that."""
    num_started = sum(row.arm == stage.name for row in rows)
    return f"{stage.name} {num_started} of {stage.source.num_wanted()} trials, {stage.concurrency} at once"


def budget_text(study: ArmStudy) -> str:
    """How far a search is, for an answer."""
    num_started, num_wanted = len(study.records()), study.num_wanted()
    all_there_are = ", all that its space has" if num_wanted == study.size() else ""
    return f"{num_started} of {num_wanted} trials started{all_there_are}"


def row_of(stage: Stage, spec: TrialSpec, trial: Proposal | Record, *, state: State) -> Row:
    """A trial as the live view shows it."""
    shown: Mapping[str, Scalar] = {"seed": spec.replicate} if "item" in trial.values else trial.values
    adopted = isinstance(trial, Proposal) and trial.adopted
    return Row(stage.name, trial.number, shown, 0, spec.config.num_steps, None, state, adopted=adopted)


def unbuilt_row(stage: Stage, record: Record) -> Row:
    """The line of a trial that has failed since its values do not go together."""
    return Row(stage.name, record.number, record.values, 0, stage.arm.num_steps, None, "failed", record.note)


def params_of(spec: TrialSpec) -> dict[str, Scalar]:
    """A trial's configuration for the tracker: every value under the name it has in the sweep file."""
    config = spec.config.model_dump(mode="json")
    return {**config.pop("method"), **config, "replicate": spec.replicate}


def tags_of(stage: Stage, spec: TrialSpec) -> dict[str, str]:
    """The tags of a trial's run."""
    return {"prefixray.arm": stage.arm.name, "prefixray.stage": stage.name, "prefixray.replicate": str(spec.replicate)}


def small_artifact(spec: TrialSpec) -> Path | None:
    """What a tracker may take a copy of: everything but a whole model."""
    folder = spec.files.artifact
    return folder if folder.is_dir() and spec.config.method.method != "finetune" else None
