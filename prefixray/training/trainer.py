"""The training loop: step the pack, evaluate, report, admit and drop trials. A lone trial is a pack of one.

A trial that reaches a rung is parked there until `go_on`; the others train on. Every report snapshots what it needs:
the artifact when the dev loss is the best so far, a resumable checkpoint when the last one is old.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from prefixray.artifacts.store import artifact_meta, load_checkpoint, save_artifact, save_checkpoint
from prefixray.batching.batches import encode
from prefixray.batching.lengths import row_lengths
from prefixray.batching.shared_prompts import lengths_run
from prefixray.batching.template import Template, make_template
from prefixray.config.arms import samples
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import AnyTrial, FinetuneTrial, PrefixTrial, TrainConfig
from prefixray.data import Task, load_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.model.base import Base, checkpointed, load_in
from prefixray.system.machine import available_bytes, give_back
from prefixray.system.seeds import subset_of
from prefixray.training.facts import WorkerFacts
from prefixray.training.member import Member, Seeds, learning_rate
from prefixray.training.pack import Pack, StepResult
from prefixray.trial import Report, TrialSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECKPOINT_SECONDS = 180.0  # a resumable checkpoint is written when the last one is older
SMALL_CHECKPOINT_BYTES = 64 << 20  # and at every report where it is no larger than this


@dataclass
class _Progress:
    """What the trainer remembers of a trial between reports."""

    spec: TrialSpec
    parked: bool = False
    owes_report: bool = False  # it came back to a step whose report may never have arrived
    best: float = math.inf
    curve: dict[int, float] = field(default_factory=dict)  # dev loss by step
    losses: list[float] = field(default_factory=list)  # since the last report
    norms: list[float] = field(default_factory=list)
    num_clipped: int = 0  # in all
    num_tokens: int = 0  # in all
    seconds: float = 0.0  # of the pack's time, shared among its members
    saved_at: float = field(default_factory=time.monotonic)


class Trainer:
    """Trains the trials that it is given, together."""

    def __init__(
        self, base: Base, task: Task, config: TaskConfig, *, max_new_tokens: int = 0, token_budget: int | None = None
    ) -> None:
        self.base, self.task, self._task_config = base, task, config
        self._max_new_tokens = max_new_tokens  # that what is trained will decode
        self.template: Template = make_template(base, config)
        self._subsets = [
            (encode(subset.train, self.template), encode(subset.dev, self.template)) for subset in task.subsets
        ]
        self._train, self._dev = self._subsets[0]
        self._longest = max(row.num_inputs for subset in self._subsets for part in subset for row in part)
        self.pack = Pack(base, self._train, pad_id=self.template.pad_id, token_budget=token_budget)
        self._progress: dict[str, _Progress] = {}
        self.last_tokens = 0
        """Target tokens that the last step trained on."""

    def describe(self) -> WorkerFacts:
        """What a sweep wants to know of the base and the device."""
        device = self.base.device
        cuda = device.type == "cuda"
        if not cuda:
            give_back()  # what loading has freed
        return WorkerFacts(
            base_digest=self.base.digest,
            num_parameters=self.base.shape.num_parameters,
            precision=self.base.precision,
            data_digest=self.task.digest,
            num_test_total=self.task.num_test_total,
            metrics=self.task.metrics,
            device=torch.cuda.get_device_name(device) if cuda else "cpu",
            num_threads=torch.get_num_threads(),
            shape=self.base.shape,
            free_bytes=torch.cuda.mem_get_info(device)[0] if cuda else available_bytes(),
            num_dev=len(self._dev),
            num_test=len(self.task.test_sources),
            train_lengths=row_lengths(self._train),
            dev_lengths=lengths_run(self._dev),
        )

    def admit(self, spec: TrialSpec) -> int:
        """Let a trial join, from its newest valid checkpoint where there is one; return the step it stands at.

        One that comes back to a step with a report reports there again. Raises `UserError` when the configuration
        cannot be built on this base, and leaves the pack as it was.
        """
        train, _ = self._subsets[self._subset(spec)]
        member = self.pack.admit(spec.key, spec.config, Seeds.derive(spec.seed, spec.replicate), train=train)
        progress = _Progress(spec)
        try:
            self._check_room(member.method)
            saved = load_checkpoint(spec.files.path)
            if saved is not None:
                _restore(member, progress, *saved)
        except BaseException:
            self.pack.drop(spec.key)
            raise
        self._progress[spec.key] = progress
        progress.owes_report = self._is_due(spec.key)
        return member.step

    def drop(self, key: str) -> None:
        """Let a trial go."""
        if key in self._progress:
            is_large = isinstance(self._progress.pop(key).spec.config.method, FinetuneTrial)
            self.pack.drop(key)
            if is_large:
                give_back()  # others on this machine may need it

    def go_on(self, key: str) -> None:
        """The verdict of a rung was to go on."""
        self._progress[key].parked = False

    def keys(self) -> list[str]:
        """The trials in the pack."""
        return list(self._progress)

    def parked(self) -> list[str]:
        """The trials that wait at a rung."""
        return [key for key, progress in self._progress.items() if progress.parked]

    def steps(self) -> dict[str, int]:
        """How many steps each trial has done."""
        return {key: self.pack.members[key].step for key in self._progress}

    def run(self) -> list[Report]:
        """One step of every trial that is not parked, and the reports that are due after it. Ended trials are gone."""
        running = [key for key, progress in self._progress.items() if not progress.parked]
        self.last_tokens = 0
        if not running:
            return []
        started = time.monotonic()
        outcomes = self.pack.step([key for key in running if not self._progress[key].owes_report])
        self.last_tokens = sum(outcome.num_tokens for outcome in outcomes.values())
        reports = [self._after_step(key, outcome) for key, outcome in outcomes.items()]
        ended = [report for report in reports if report is not None]
        due = [key for key in running if key in self._progress and self._is_due(key)]
        scores = self._evaluate(due)
        for key in running:
            if key in self._progress and self._is_stale(key):
                self.checkpoint([key])
        share = (time.monotonic() - started) / len(running)
        for key in running:
            if key in self._progress:
                self._progress[key].seconds += share
        return ended + self._reports(scores)

    def costs(self, key: str) -> dict[str, float]:
        """What a trial has taken so far, as metrics: whatever comes of it, it was spent."""
        progress = self._progress[key]
        return {"train/tokens": progress.num_tokens, "train/seconds": progress.seconds}

    def checkpoint(self, keys: Iterable[str]) -> None:
        """Write a resumable checkpoint of each of these trials."""
        for key in keys:
            progress, member = self._progress[key], self.pack.members[key]
            tensors, state = _snapshot(member, progress)
            save_checkpoint(progress.spec.files.path, member.step, tensors, state)
            progress.saved_at = time.monotonic()

    def _after_step(self, key: str, outcome: StepResult) -> Report | None:
        progress, member = self._progress[key], self.pack.members[key]
        progress.losses.append(outcome.loss)
        progress.norms.append(outcome.grad_norm)
        limit = progress.spec.config.max_grad_norm
        progress.num_clipped += limit is not None and outcome.grad_norm > limit
        progress.num_tokens += outcome.num_tokens
        if outcome.failed is None:
            return None
        report = Report(key, member.step, "failed", self.costs(key), note=outcome.failed)
        self.drop(key)
        return report

    def _evaluate(self, keys: Sequence[str]) -> dict[str, float]:
        """The dev loss of each of these trials, those of one subset together."""
        by_subset: dict[int, list[str]] = {}
        for key in keys:
            by_subset.setdefault(self._subset(self._progress[key].spec), []).append(key)
        scores: dict[str, float] = {}
        for subset, own in by_subset.items():
            scores |= self.pack.evaluate(own, self._subsets[subset][1])
        return {key: scores[key] for key in keys}

    def _subset(self, spec: TrialSpec) -> int:
        return subset_of(spec.replicate, len(self._subsets))

    def _is_due(self, key: str) -> bool:
        return self.pack.members[key].step in self._progress[key].spec.report_steps()

    def _reports(self, scores: Mapping[str, float]) -> list[Report]:
        """Reports of the trials that were evaluated; those that end are dropped, those at a rung are parked."""
        rungs = {key: self._rung(key) for key in scores}
        finite = {key: score for key, score in scores.items() if math.isfinite(score)}
        reports = [self._report(key, score, rungs) for key, score in scores.items()]
        with_packmates = [
            replace(report, packmates={key: finite[key] for key in finite if rungs[key] == rungs[report.key]})
            if report.rung is not None
            else report
            for report in reports
        ]
        for report in reports:
            if report.state == "running":
                self._checkpoint_if_due(report.key)
            else:
                self.drop(report.key)
        return with_packmates

    def _report(self, key: str, score: float, rungs: Mapping[str, tuple[str, int] | None]) -> Report:
        progress, member = self._progress[key], self.pack.members[key]
        progress.owes_report = False
        if not math.isfinite(score):
            note = f"dev loss is not finite at step {member.step}"
            return Report(key, member.step, "failed", self.costs(key), note=note)
        if score < progress.best:
            progress.best = score
            if progress.spec.keep_artifact:
                self._save_artifact(member, progress)
        metrics = {**_metrics(member, progress, score), **self.costs(key)}
        progress.losses, progress.norms = [], []
        earlier = dict(progress.curve)
        progress.curve[member.step] = score
        if member.step == member.config.num_steps:
            return Report(key, member.step, "done", metrics, earlier=earlier)
        progress.parked = rungs[key] is not None
        rung = member.step if progress.parked else None
        return Report(key, member.step, "running", metrics, rung=rung, earlier=earlier)

    def _rung(self, key: str) -> tuple[str, int] | None:
        """The arm and step of the rung that a trial stands at."""
        member = self.pack.members[key]
        at_rung = member.step in self._progress[key].spec.rungs and member.step < member.config.num_steps
        return (member.config.arm, member.step) if at_rung else None

    def check(self, arms: Sequence[ArmConfig]) -> None:
        """Refuse arms of which an end of a range cannot be built on this base: `UserError` with all that is wrong."""
        problems: dict[str, None] = {}
        for arm in arms:
            methods = {arm.trial(values).method: None for values in samples(arm)} if not arm.exclusive else {}
            for method in methods:
                try:
                    with torch.no_grad():
                        record = self.pack.binder.record
                        self._check_room(build_method(_flat(method), self.base, record, init_seed=0, dropout_seed=0))
                except UserError as error:
                    problems |= {f"arms.{arm.name}.{problem}": None for problem in error.problems}
        if problems:
            raise UserError(*problems)

    def _check_room(self, method: Method) -> None:
        """Refuse a trial whose prefix leaves no room for the longest example, or for decoding the longest source."""
        insert, limit = method.insert(None), self.base.shape.max_positions
        num_positions = insert.num_positions() + insert.infix_length
        if limit is None or self.base.shape.is_encoder_decoder:  # there, positions are not shifted by a prefix
            return
        if num_positions + self._longest > limit:
            raise UserError(
                f"preseqlen: {num_positions}: with the longest example ({self._longest} tokens) beyond the {limit} "
                f"positions of {self.base.name}; lower preseqlen, task.max_source_tokens or task.max_target_tokens"
            )
        if num_positions + self._longest_source + self._max_new_tokens > limit:
            prefix = f" behind a prefix of {num_positions}" if num_positions else ""
            raise UserError(
                f"final.max_new_tokens: {self._max_new_tokens}: with the longest test source ({self._longest_source} "
                f"tokens{prefix}) beyond the {limit} positions of {self.base.name}; lower it"
                + (", preseqlen" if prefix else "")
                + " or task.max_source_tokens"
            )

    @cached_property
    def _longest_source(self) -> int:
        """Tokens of the longest prompt that the final stage decodes."""
        sources = [one.source for one in self.task.test_sources]
        return max(map(len, self.template.encode_sources(sources)), default=0)

    def _save_artifact(self, member: Member, progress: _Progress) -> None:
        """Keep the best state so far for decoding."""
        meta = artifact_meta(
            self.base,
            member.config,
            task=self._task_config,
            template=self.template.record(),
            decoding=progress.spec.decoding,
            scores={"dev/loss": progress.best},
        )
        save_artifact(progress.spec.files.artifact, member.method.artifact(), meta)

    def _checkpoint_if_due(self, key: str) -> None:
        num_bytes = 12 * self.pack.members[key].method.trained_parameters()
        if num_bytes <= SMALL_CHECKPOINT_BYTES or self._is_stale(key):
            self.checkpoint([key])

    def _is_stale(self, key: str) -> bool:
        return time.monotonic() - self._progress[key].saved_at > CHECKPOINT_SECONDS


def load_trainer(
    name: str,
    task: TaskConfig,
    train: TrainConfig,
    *,
    device: str,
    num_threads: int,
    max_new_tokens: int,
    trust_remote_code: bool = False,
) -> Trainer:
    """Load a base and a task by name, for trials that will decode `max_new_tokens`.

    Raises `UserError` with what is wrong with either.
    """
    if device == "cpu":
        torch.set_num_threads(num_threads)
    problems: list[str] = []
    code = trust_remote_code
    base = _or_problems(lambda: load_in(name, train.precision, device, trust_remote_code=code), problems)
    data = _or_problems(lambda: load_task(task), problems)
    if base is None or data is None:
        raise UserError(*problems)
    base = checkpointed(base) if train.gradient_checkpointing else base
    return Trainer(base, data, task, max_new_tokens=max_new_tokens)


def _flat(method: AnyTrial) -> AnyTrial:
    """The same without the network that makes a prefix, which is large and fits any base."""
    return method.model_copy(update={"mid_dim": None}) if isinstance(method, PrefixTrial) else method


def _or_problems(load: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return load()
    except UserError as error:
        problems += error.problems
        return None


def _metrics(member: Member, progress: _Progress, score: float) -> dict[str, float]:
    recent = {}
    if progress.losses:
        recent["train/loss"] = sum(progress.losses) / len(progress.losses)
        recent["train/grad_norm"] = sum(progress.norms) / len(progress.norms)
    return {
        "dev/loss": score,
        "dev/best_loss": progress.best,
        **recent,
        "train/clipped_share": progress.num_clipped / max(1, member.step),
        "train/learning_rate": learning_rate(member.config, max(0, member.step - 1)),
        **{f"size/{name}": size for name, size in member.method.sizes().items()},
    }


def _snapshot(member: Member, progress: _Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A trial's trainable tensors and optimiser state by name, and the numbers beside them."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in _trained(member):
        tensors[f"method/{name}"] = parameter.detach().cpu().contiguous()
        for kind, value in member.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{kind}"] = value.detach().cpu().contiguous()
    counts = {"num_clipped": progress.num_clipped, "num_tokens": progress.num_tokens}
    return tensors, {**counts, "best": progress.best, "curve": progress.curve, "seconds": progress.seconds}


def _trained(member: Member) -> list[tuple[str, Tensor]]:
    """What a trial trains, by name; the weights of an own model that stay are the base's."""
    return [(name, parameter) for name, parameter in member.method.named_parameters() if parameter.requires_grad]


def _restore(member: Member, progress: _Progress, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    member.step = step
    with torch.no_grad():
        for name, parameter in _trained(member):
            parameter.copy_(tensors[f"method/{name}"])
            kinds = ("step", "exp_avg", "exp_avg_sq")
            found = {kind: tensors.get(f"optimizer/{name}/{kind}") for kind in kinds}
            state_of = {kind: value.clone().to(parameter.device) for kind, value in found.items() if value is not None}
            if state_of:
                member.optimizer.state[parameter] = state_of
    progress.curve = {int(at): loss for at, loss in state.get("curve", {}).items()}  # JSON's keys are texts
    progress.best, progress.num_clipped = state["best"], state["num_clipped"]
    progress.num_tokens, progress.seconds = state["num_tokens"], state["seconds"]
