"""How far a trial has come: what the trainer remembers between two reports, and what a checkpoint keeps of it.

A trial over several documents has a member for each: they have one configuration, step together, and make one report.
"""

import errno
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefixray.artifacts.store import load_checkpoint, save_checkpoint
from prefixray.training.member import Member, StepResult, learning_rate
from prefixray.trial import BEST_LOSS, TrialSpec

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 180.0  # a resumable checkpoint is written when the last one is older
SMALL_CHECKPOINT_BYTES = 64 << 20  # and at every report where it is no larger than this
_BYTES_PER_TRAINED = 12  # fp32: a parameter and its two moments


@dataclass
class Progress:
    """A trial's members of the pack, and how far they have come."""

    spec: TrialSpec
    members: Sequence[Member]  # one for each of `spec.subsets`
    is_parked: bool = False  # it waits at a rung
    owes_report: bool = False  # it came back to a step whose report may never have arrived
    best: float = math.inf
    curve: dict[int, float] = field(default_factory=dict)  # dev loss by step
    losses: list[float] = field(default_factory=list)  # since the last report
    norms: list[float] = field(default_factory=list)  # since the last report
    num_clipped: int = 0  # in all; a step counts for each member
    num_tokens: int = 0  # in all
    seconds: float = 0.0  # of the pack's time, shared among its members
    saved_at: float = field(default_factory=time.monotonic)
    token: str | None = None  # with which it holds its folder, where the driver has made one

    @property
    def step(self) -> int:
        """How many steps each member has done."""
        return self.members[0].step

    @property
    def is_due(self) -> bool:
        """Whether the trial reports at its step."""
        return self.step in self.spec.report_steps

    @property
    def rung(self) -> tuple[str, int] | None:
        """The arm and step of the rung that the trial stands at; the end of its schedule is no rung."""
        step, config = self.step, self.spec.config
        return (config.arm, step) if step in self.spec.rungs and step < config.num_steps else None

    def add(self, results: Sequence[StepResult]) -> None:
        """Count a step, by the results of all members."""
        self.losses.append(sum(result.loss for result in results) / len(results))
        self.norms.append(sum(result.grad_norm for result in results) / len(results))
        limit = self.spec.config.max_grad_norm
        self.num_clipped += sum(limit is not None and result.grad_norm > limit for result in results)
        self.num_tokens += sum(result.num_tokens for result in results)

    def costs(self) -> dict[str, float]:
        """What the trial has taken so far, as metrics: whatever comes of it, it was spent."""
        return {"train/tokens": self.num_tokens, "train/seconds": self.seconds}

    def metrics(self, dev_loss: float) -> dict[str, float]:
        """What a report says; means are over the steps since the last report."""
        recent = {}
        if self.losses:
            recent["train/loss"] = sum(self.losses) / len(self.losses)
            recent["train/grad_norm"] = sum(self.norms) / len(self.norms)
        return {
            self.spec.loss_at(self.step): dev_loss,
            **({BEST_LOSS: self.best} if math.isfinite(self.best) else {}),
            **recent,
            "train/clipped_share": self.num_clipped / (max(1, self.step) * len(self.members)),
            "train/learning_rate": learning_rate(self.spec.config, max(0, self.step - 1)),
            **{f"size/{name}": size for name, size in self.members[0].method.sizes().items()},
            **self.costs(),
        }

    def is_stale(self) -> bool:
        """Whether the last checkpoint is old."""
        return time.monotonic() - self.saved_at > CHECKPOINT_SECONDS

    def writes_now(self) -> bool:
        """Whether the trial writes something after its step."""
        return self.is_due or self.is_stale()

    def is_held(self) -> bool:
        """Whether the trial's folder is still its own: no other worker has it, and nobody has deleted it."""
        return self.token is None or self.spec.files.holder() == self.token

    def why_failed(self) -> str | None:
        """Why the trial has failed, whose folder is not its own; None where another worker trains it now.

        Raises `OSError` where the folders around it have gone too, as from a file system that is not mounted any more.
        """
        files = self.spec.files
        if files.holder() is None:
            if not files.path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(files.path.parent))
            return f"its folder was deleted while it ran: {files.path}"
        logger.warning("%s is given up here: another worker has taken its folder over", self.spec.key)
        return None

    def has_small_checkpoint(self) -> bool:
        """Whether a checkpoint is so small that each report writes one."""
        num_trained = sum(member.method.trained_parameters() for member in self.members)
        return _BYTES_PER_TRAINED * num_trained <= SMALL_CHECKPOINT_BYTES

    def save(self) -> None:
        """Write a resumable checkpoint: the trial's tensors, optimiser state, and the numbers beside them."""
        tensors = dict[str, Tensor]()
        for before, member in self._named_members():
            for name, parameter in _trained(member):
                tensors[f"{before}method/{name}"] = parameter.detach().cpu().contiguous()
                for kind, value in member.optimizer.state.get(parameter, {}).items():
                    tensors[f"{before}optimizer/{name}/{kind}"] = value.detach().cpu().contiguous()
            tensors |= {f"{before}method/{name}": kept.cpu().contiguous() for name, kept in _kept(member)}
        state = {
            "num_clipped": self.num_clipped,
            "num_tokens": self.num_tokens,
            "best": self.best,
            "curve": self.curve,
            "seconds": self.seconds,
            "losses": self.losses,
            "norms": self.norms,
        }
        save_checkpoint(self.spec.files.path, self.step, tensors, state)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Take hold of the trial's folder, and go back to the newest valid checkpoint, where there is one."""
        self.token = self.spec.files.claim()
        saved = load_checkpoint(self.spec.files.path)
        if saved is None:
            return
        step, tensors, state = saved
        for before, member in self._named_members():
            member.step = step
            _restore_tensors(member, tensors, before)
        self.best, self.seconds = state["best"], state["seconds"]
        self.num_clipped, self.num_tokens = state["num_clipped"], state["num_tokens"]
        self.losses, self.norms = state.get("losses", []), state.get("norms", [])  # an older checkpoint has none
        self.curve = {int(step): loss for step, loss in state.get("curve", {}).items()}  # JSON's keys are texts

    def _named_members(self) -> list[tuple[str, Member]]:
        """The members, with what stands before the names of their tensors in a checkpoint."""
        if len(self.members) == 1:
            return [("", self.members[0])]
        return [(f"{index}/", member) for index, member in enumerate(self.members)]


def _trained(member: Member) -> list[tuple[str, Tensor]]:
    """What a trial trains, by name; the weights of an own model that stay are the base's."""
    return [(name, parameter) for name, parameter in member.method.named_parameters() if parameter.requires_grad]


def _kept(member: Member) -> list[tuple[str, Tensor]]:
    """What a trial does not train, but has for itself, by name: positions that stay as they started."""
    return [] if member.method.own_model is not None else list(member.method.named_buffers())


def _restore_tensors(member: Member, tensors: Mapping[str, Tensor], before: str) -> None:
    """Parameters, AdamW's state of each, its step and two moments, and what is kept untrained."""
    for name, kept in _kept(member):
        if f"{before}method/{name}" in tensors:  # an older checkpoint has none
            kept.copy_(tensors[f"{before}method/{name}"])
    for name, parameter in _trained(member):
        with torch.no_grad():
            parameter.copy_(tensors[f"{before}method/{name}"])
        stored = {kind: tensors.get(f"{before}optimizer/{name}/{kind}") for kind in ("step", "exp_avg", "exp_avg_sq")}
        state: dict[str, Any] = {
            kind: value.clone().to(parameter.device) for kind, value in stored.items() if value is not None
        }
        if state:
            member.optimizer.state[parameter] = state
