"""The training loop: step the pack, evaluate, report, admit and drop trials. A lone trial is a pack of one.

A trial that reaches a rung is parked there until `go_on`; the others train on. Every report keeps what it needs: the
artifact when the dev loss is the best so far, a resumable checkpoint when that is small, the last one is old, or the
trial may pause there.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import torch

from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.batches import encode
from prefixray.batching.lengths import Lengths
from prefixray.batching.packed_rows import PackedRows, packed
from prefixray.batching.rows import Row, sampled
from prefixray.batching.shared_prompts import lengths_run
from prefixray.batching.template import Template, make_template
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import TrainConfig
from prefixray.data import Task, load_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import NoMemory, UserError
from prefixray.model.base import Base, checkpointed, choose_device, load_in
from prefixray.system.machine import give_back, uncollected
from prefixray.training.base_checks import Room, check_arms, is_out_of_memory, shown
from prefixray.training.device.costs import Costs
from prefixray.training.device.measure import free_bytes, measure
from prefixray.training.facts import WorkerFacts
from prefixray.training.member import Member, Seeds, too_large
from prefixray.training.pack import Pack
from prefixray.training.progress import Progress
from prefixray.trial import LOSS, Report, TrialSpec

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Trainer:
    """Trains the trials that it is given, together."""

    def __init__(
        self, base: Base, task: Task, config: TaskConfig, *, max_new_tokens: int = 0, token_budget: int | None = None
    ) -> None:
        self.base, self.task, self._task_config = base, task, config
        self.template: Template = make_template(base, config)
        self._subsets = [
            (packed(subset.train, self.template), encode(subset.dev, self.template)) for subset in task.subsets
        ]
        logger.info("the rows are tokenised")
        longest = max(_longest(train, dev) for train, dev in self._subsets)
        self._room = Room(base, self.template, task.test_sources, longest, max_new_tokens)
        self.pack = Pack(base, self._subsets[0][0], pad_id=self.template.pad_id, token_budget=token_budget)
        self._trials: dict[str, Progress] = {}
        self.last_tokens = 0  # target tokens that the last step trained on
        self.evaluating = 0.0  # seconds of evaluations so far

    @property
    def train_lengths(self) -> Lengths:
        """How long the rows to train on are on average."""
        return self._subsets[0][0].lengths

    def describe(self) -> WorkerFacts:
        """What a sweep wants to know of the base and the device."""
        return _facts(self.base, self.task, self._subsets[0], self.pack.layout.costs)

    def check(self, arms: Sequence[ArmConfig]) -> None:
        """Refuse arms of which an end of a range cannot be built on this base: `UserError` with all that is wrong."""
        shortest = min(self.task.documents, key=lambda each: len(self.base.text_ids(each.text)), default=None)
        check_arms(arms, self.base, self.pack.binder, self._room, document=shortest)

    def admit(self, spec: TrialSpec) -> int:
        """Let a trial join, from its newest valid checkpoint where there is one; return the step it stands at.

        At a step with a report it reports again, unless it has paused there. Raises `UserError` when the configuration
        cannot be built on this base, `NoMemory` when it has no room beside the others, and leaves the pack as it was.
        """
        try:
            trial = self._trials[spec.key] = self._built(spec)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            trial.owes_report = trial.is_due and trial.step != spec.resumed_from
            if trial.step == spec.resumed_from:
                trial.losses, trial.norms = [], []  # they are in the report that the driver has
            return trial.step
        torch.cuda.empty_cache()  # out here, since the handled error keeps what has been built alive
        raise NoMemory(f"out of memory while it is built: {shown(spec.config.method)}")

    def _built(self, spec: TrialSpec) -> Progress:
        """A trial as new members of the pack, at its newest valid checkpoint."""
        seeds, members = Seeds.derive(spec.seed, spec.replicate), list[Member]()
        try:
            for key, subset in spec.member_keys().items():
                train, document = self._subsets[subset][0], self.task.subsets[subset].document
                members.append(self.pack.admit(key, spec.config, seeds, rows=train, document=document))
                self._room.check(members[-1].method)
            trial = Progress(spec, members)
            trial.restore()
        except BaseException:
            for member in members:
                self.pack.drop(member.key)
            raise
        return trial

    def drop(self, key: str) -> None:
        """Let a trial go."""
        if key in self._trials:
            spec = self._trials.pop(key).spec
            for member in spec.member_keys():
                self.pack.drop(member)
            if spec.config.method.has_own_model:
                give_back()  # others on this machine may need its memory

    def go_on(self, key: str) -> None:
        """The verdict of a rung was to go on."""
        self._trials[key].is_parked = False

    def keys(self) -> list[str]:
        """The trials in the pack."""
        return list(self._trials)

    def parked(self) -> list[str]:
        """The trials that wait at a rung."""
        return [key for key, trial in self._trials.items() if trial.is_parked]

    def steps(self) -> dict[str, int]:
        """How many steps each trial has done."""
        return {key: trial.step for key, trial in self._trials.items()}

    def costs(self, key: str) -> dict[str, float]:
        """What a trial has taken so far, as metrics."""
        return self._trials[key].costs()

    def checkpoint(self, keys: Iterable[str]) -> list[str]:
        """Write a resumable checkpoint of each of these trials whose folder is its own; returns their keys."""
        held = [key for key in keys if self._trials[key].is_held()]
        for key in held:
            self._trials[key].save()
        return held

    def run(self) -> list[Report]:
        """One step of every trial that is not parked, and the reports that are due after it. Ended trials are gone."""
        running = [key for key, trial in self._trials.items() if not trial.is_parked]
        self.last_tokens = 0
        if not running:
            return []
        started, num_members = time.monotonic(), sum(len(self._trials[key].members) for key in running)

        # Step the pack. A trial whose numbers are not finite, or that does not fit into memory, ends here.
        ended = self._step([key for key in running if not self._trials[key].owes_report])

        # Evaluate the trials that have a report to make.
        dev_losses = self._evaluate([key for key in running if key in self._trials and self._trials[key].is_due])

        # A trial that is about to write ends here where its folder is no longer its own. The others write checkpoints
        # where the last one is old.
        ended += self.give_up_lost([key for key in running if key in self._trials and self._trials[key].writes_now()])
        going_on = [key for key in running if key in self._trials]
        self.checkpoint([key for key in going_on if self._trials[key].is_stale()])

        # All members that ran share the time.
        share = (time.monotonic() - started) / num_members
        for key in going_on:
            self._trials[key].seconds += share * len(self._trials[key].members)
        return ended + self._reports({key: loss for key, loss in dev_losses.items() if key in self._trials})

    def give_up_lost(self, keys: Iterable[str]) -> list[Report]:
        """Drop those of the trials whose folders are no longer their own; last reports where a folder is deleted."""
        lost = {key: self._trials[key].why_failed() for key in keys if not self._trials[key].is_held()}
        reports = [self._failed(key, reason) for key, reason in lost.items() if reason is not None]
        for key in lost:
            self.drop(key)
        return reports

    def _step(self, keys: Sequence[str]) -> list[Report]:
        """One step of these trials; the last reports of those that end with it."""
        results = self.pack.step(member.key for key in keys for member in self._trials[key].members)
        self.last_tokens = sum(result.num_tokens for result in results.values())
        ended = []
        for key in keys:
            of_trial = [results[member.key] for member in self._trials[key].members]
            self._trials[key].add(of_trial)
            failed = next((result.failed for result in of_trial if result.failed is not None), None)
            ended += [] if failed is None else [self._failed(key, failed)]
        return ended

    def _evaluate(self, keys: Sequence[str]) -> dict[str, float]:
        """Dev loss per trial, the mean over its members; members that need the same rows share one pass."""
        dev_losses, began = dict[str, float](), time.monotonic()
        for (subset, share), members in _evaluated([self._trials[key] for key in keys]).items():
            dev_losses |= self.pack.evaluate(members, sampled(self._subsets[subset][1], share))
        self.evaluating += time.monotonic() - began
        of_trials = {key: [dev_losses[member.key] for member in self._trials[key].members] for key in keys}
        return {key: sum(losses) / len(losses) for key, losses in of_trials.items()}

    def _reports(self, dev_losses: Mapping[str, float]) -> list[Report]:
        """Reports of the trials that were evaluated; those that end are dropped, those at a rung are parked."""
        finite = {key: loss for key, loss in dev_losses.items() if math.isfinite(loss)}
        reports = [
            self._report(key, finite) if key in finite else self._failed(key, _why_failed(self._trials[key], self.pack))
            for key in dev_losses
        ]
        for report in reports:
            if report.state == "running":
                trial = self._trials[report.key]
                if trial.has_small_checkpoint() or trial.is_stale() or (trial.is_parked and trial.spec.may_pause):
                    trial.save()
                trial.losses, trial.norms = [], []  # the checkpoint has them, in case this report is made again
            else:
                self.drop(report.key)
        return reports

    def _report(self, key: str, dev_losses: Mapping[str, float]) -> Report:
        """The report of a trial; at a rung, with the dev losses of all trials that reached it together."""
        trial = self._trials[key]
        step, dev_loss = trial.step, dev_losses[key]
        trial.owes_report = False
        if trial.spec.loss_at(step) == LOSS and dev_loss < trial.best:
            trial.best = dev_loss
            if trial.spec.keep_artifact:
                _save_artifact(trial, self.base, self.task, self._task_config, self.template)
        metrics = trial.metrics(dev_loss)
        earlier = {before: loss for before, loss in trial.curve.items() if before < step}  # a trial may report again
        trial.curve[step] = dev_loss
        if trial.rung is None:
            state: Literal["done", "running"] = "done" if step == trial.spec.config.num_steps else "running"
            return Report(key, step, state, metrics, earlier=earlier)
        trial.is_parked = True
        packmates = {other: loss for other, loss in dev_losses.items() if self._trials[other].rung == trial.rung}
        return Report(key, step, "running", metrics, rung=step, packmates=packmates, earlier=earlier)

    def _failed(self, key: str, reason: str) -> Report:
        """The last report of a trial, which is dropped."""
        report = Report(key, self.steps()[key], "failed", self.costs(key), note=reason)
        self.drop(key)
        return report


def _longest(train: PackedRows, dev: Sequence[Row]) -> int:
    """Tokens of the longest row."""
    return max([train.longest, *(row.num_inputs for row in dev)])


def _facts(base: Base, task: Task, rows: tuple[PackedRows, list[Row]], costs: Costs | None) -> WorkerFacts:
    device, (train, dev) = base.device, rows
    cuda = device.type == "cuda"
    return WorkerFacts(
        base_digest=base.digest,
        num_parameters=base.shape.num_parameters,
        precision=base.precision,
        data_digest=task.digest,
        num_test_total=task.num_test_total,
        metrics=task.metrics,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        num_threads=torch.get_num_threads(),
        shape=base.shape,
        free_bytes=free_bytes(device),
        step_bytes=None if costs is None else costs.step_bytes,
        num_dev=len(dev),
        num_test=len(task.test_sources),
        train_lengths=train.lengths,
        dev_lengths=lengths_run(dev),
        rows_digest=train.digest,
    )


def _evaluated(trials: Sequence[Progress]) -> dict[tuple[int, float], list[str]]:
    """The members of trials that are evaluated now, by their subset and the share of its dev rows."""
    parts: dict[tuple[int, float], list[str]] = {}
    for trial in trials:
        for member, subset in trial.spec.member_keys().items():
            parts.setdefault((subset, trial.spec.report_steps[trial.step]), []).append(member)
    return parts


def _why_failed(trial: Progress, pack: Pack) -> str:
    """Why a trial has no finite dev loss."""
    if pack.unfit.intersection(member.key for member in trial.members):
        return too_large(trial.spec.config)
    return f"dev loss is not finite at step {trial.step}"


def _save_artifact(trial: Progress, base: Base, task: Task, config: TaskConfig, template: Template) -> None:
    """Keep a trial's best state so far for decoding."""
    (member,), (subset,) = trial.members, trial.spec.subsets
    document = task.subsets[subset].document
    meta = artifact_meta(
        base,
        trial.spec.config,
        task=config,
        template=template.record(),
        decoding=trial.spec.decoding,
        scores={"dev/loss": trial.best},
        document=None if document is None else document.name,
    )
    save_artifact(trial.spec.files.artifact, member.method.artifact(), meta)


@uncollected()
def load_trainer(
    name: str,
    task: TaskConfig,
    train: TrainConfig,
    *,
    device: str,
    num_threads: int,
    max_new_tokens: int,
    trust_remote_code: bool = False,
    commit: str | None = None,
) -> Trainer:
    """Load a base and a task by name, for trials that will decode `max_new_tokens`.

    `num_threads` is for a CPU, `commit` for a base of the hub. Raises `UserError` with what is wrong with either.
    """
    logger.info("torch and transformers are imported")
    device = choose_device(device)
    if device == "cpu":
        torch.set_num_threads(num_threads)
    else:
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every shape, and nearly each step has new ones
    of_base, of_data = list[str](), list[str]()
    data = _or_problems(lambda: load_task(task), of_data)  # first, since the base may still be converted
    logger.info("the data is read")
    code = trust_remote_code
    base = _or_problems(lambda: load_in(name, train.precision, device, trust_remote_code=code, commit=commit), of_base)
    logger.info("the base is loaded")
    if base is None or data is None:
        raise UserError(*of_base, *of_data)
    base = checkpointed(base) if train.gradient_checkpointing else base
    trainer = Trainer(base, data, task, max_new_tokens=max_new_tokens)
    if device != "cpu":
        measure(trainer.pack, trainer.train_lengths)
    return trainer


def _or_problems(load: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return load()
    except UserError as error:
        problems += error.problems
        return None
