"""A trial inside a pack, and the formulas of its recipe.

The defaults are those of transformers' trainer, which Li & Liang (2021, section 5.3) used: AdamW, a linear learning
rate, weight decay on matrices alone, gradients clipped to the norm 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prefixray.batching.order import example_indices
from prefixray.batching.rows import Row
from prefixray.config.seeds import derive_seed
from prefixray.config.trials import TrialConfig
from prefixray.data.documents import Document
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.training.base_checks import is_out_of_memory, shown
from prefixray.training.loss import RowLosses


@dataclass(frozen=True)
class Seeds:
    """The seeds of one trial, each for one purpose."""

    data: int
    init: int
    dropout: int

    @classmethod
    def derive(cls, seed: int, replicate: int) -> "Seeds":
        """The seeds of a replicate of a sweep."""
        return cls(*(derive_seed(seed, replicate, purpose) for purpose in ("data", "init", "dropout")))


@dataclass(frozen=True)
class StepResult:
    """What one step did to one member."""

    loss: float  # mean over the step's target tokens
    grad_norm: float  # before clipping
    num_tokens: int  # target tokens trained on
    failed: str | None = None  # why the trial ends here, before its update

    @property
    def is_not_finite(self) -> bool:
        """Whether it failed for its numbers, not for want of memory."""
        return self.failed is not None and self.num_tokens > 0


class Member:
    """A trial inside a pack: its method, its optimiser, its rows and its step among them."""

    def __init__(
        self,
        key: str,
        config: TrialConfig,
        base: Base,
        binder: Binder,
        seeds: Seeds,
        rows: Sequence[Row],
        document: Document | None = None,
    ) -> None:
        self.key, self.config = key, config
        self.step = 0
        if config.objective == "distill" and not all(row.teachers for row in rows):
            raise UserError(f"arm {config.arm}: objective: distill: the task has no teacher; take token_mean")
        self._rows, self._order_seed = rows, seeds.data
        self.dropout_seed = seeds.dropout
        self.method: Method = build_method(
            config.method, base, binder.record, init_seed=seeds.init, dropout_seed=seeds.dropout, document=document
        )
        if base.model.dtype == torch.float64:
            self.method.double()
        own_model = self.method.own_model
        self.binder = binder if own_model is None else Binder.of(own_model)
        trained = [p for p in self.method.parameters() if p.requires_grad]
        if not trained:
            raise UserError(f"arm {config.arm}: nothing of {base.name} would be trained with these values")
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)

    @property
    def drops_in_base(self) -> bool:
        """Whether it trains with the dropout of the base that it shares."""
        return self.config.base_dropout and self.method.own_model is None

    def next_rows(self, ahead: int = 0) -> list[Row]:
        """The rows of the coming step, or of so many steps after it: the batches of all its accumulated gradients."""
        count = self.config.batch_size * self.config.grad_accumulation
        order = example_indices((self.step + ahead) * count, count, num_examples=len(self._rows), seed=self._order_seed)
        return [self._rows[index] for index in order]

    def gradients(self) -> list[Tensor]:
        """The gradients that have arrived, in the order of the optimiser's parameters."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return [p.grad for p in parameters if p.grad is not None]


Read = Callable[[Tensor], tuple[list[float], list[float]]]
"""Takes the norms of tensors' gradients, and gives the values of members' summed NLL and of the norms."""


def finished(
    members: Sequence[Member], rows: Sequence[Sequence[Row]], losses: RowLosses | None, *, together: bool
) -> dict[str, StepResult | None]:
    """Update members whose gradients have arrived, together or one by one; without losses one does not fit.

    None: there was no memory for the update.
    """
    if losses is None:
        return {members[0].key: StepResult(math.nan, math.nan, 0, failed=too_large(members[0].config))}
    if together and members:
        return _finished_if_they_fit(members, rows, losses.read)
    results: dict[str, StepResult | None] = {}
    for member, own, total in zip(members, rows, losses.read()[0], strict=True):
        results |= _finished_if_they_fit([member], [own], partial(_beside, total))
    return results


def _beside(total: float, norms: Tensor) -> tuple[list[float], list[float]]:
    """A sum that is known, and the norms' values."""
    return [total], norms.tolist()


def _finished_if_they_fit(
    members: Sequence[Member], rows: Sequence[Sequence[Row]], read: Read
) -> dict[str, StepResult | None]:
    """The results of members that were updated; None where memory has run out, with the trials as they were before."""
    try:
        return _finish_steps(members, rows, read)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    for member in members:
        member.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return {member.key: None for member in members}


def _finish_steps(members: Sequence[Member], rows: Sequence[Sequence[Row]], read: Read) -> dict[str, StepResult | None]:
    """Update members whose gradients have arrived, those alone whose numbers are finite.

    To `read` is to wait for the device: once for all of them.
    """
    for member in members:
        member.method.push_gradients()
    of_tensors = tensor_norms(members)
    totals, values = read(of_tensors)
    results, finite = dict[str, StepResult | None](), []
    for member, own_rows, total, norm in zip(
        members, rows, totals, norms_of(members, values, of_tensors.dtype), strict=True
    ):
        count = sum(row.num_targets for row in own_rows)
        loss, failed = total / count, None
        if math.isfinite(loss) and norm.isfinite():
            finite.append((member, norm))
        else:
            failed = f"{'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {member.step + 1}"
        results[member.key] = StepResult(loss, float(norm) if math.isfinite(loss) else math.nan, count, failed)
    update([member for member, _ in finite], [norm for _, norm in finite])
    for member in members:
        member.optimizer.zero_grad(set_to_none=True)
    return results


def too_large(config: TrialConfig) -> str:
    """Why a trial is not trained or evaluated."""
    remedy = "train.gradient_checkpointing, or a lower task.max_source_tokens, needs less"
    return f"out of memory alone and with one example at a time: {shown(config.method)}; {remedy}"


def not_updated(config: TrialConfig) -> StepResult:
    """The result of a trial whose update has no room, even when the others wait."""
    reason = f"out of memory alone in its update, for gradients and the optimiser's state: {shown(config.method)}"
    return StepResult(math.nan, math.nan, 0, failed=reason)


@torch.no_grad()
def tensor_norms(members: Sequence[Member]) -> Tensor:
    """The norms of all gradients of these members, one behind another, still on the device."""
    return torch.stack(torch._foreach_norm([g for member in members for g in member.gradients()]))


def norms_of(members: Sequence[Member], of_tensors: Sequence[float], dtype: torch.dtype) -> list[Tensor]:
    """The norm of each member's gradients, given those of its tensors as `tensor_norms` has them."""
    counts = [len(member.gradients()) for member in members]
    return [torch.linalg.vector_norm(own) for own in torch.tensor(of_tensors, dtype=dtype).split(counts)]


@torch.no_grad()
def update(members: Sequence[Member], norms: Sequence[Tensor]) -> None:
    """Clip the gradients by their norms, and step AdamW of all members, each at its own learning rate.

    One call of the optimiser serves all tensors with the same rate and weight decay. It does what the optimiser of each
    trial would do, whose state it reads and writes. Where memory runs out, the trained tensors are as they were and the
    gradients are of no use.
    """
    _clip(members, norms)
    calls: dict[tuple[float, ...], list[tuple[Tensor, ...]]] = {}
    for member in members:
        for group in member.optimizer.param_groups:
            group["lr"] = learning_rate(member.config, member.step)
            options = (group["lr"], group["weight_decay"], *group["betas"], group["eps"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = _adam_state(member.optimizer, parameter)
                    tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
                    calls.setdefault(options, []).append(tensors)
    if calls:
        torch._foreach_add_([tensors[-1] for of_call in calls.values() for tensors in of_call], 1)
    for (rate, decay, beta1, beta2, eps), of_call in calls.items():
        parameters, gradients, means, squares, counts = map(list, zip(*of_call, strict=True))
        torch._fused_adamw_(
            parameters,
            gradients,
            means,
            squares,
            [],
            counts,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
    for member in members:
        member.step += 1


def _clip(members: Sequence[Member], norms: Sequence[Tensor]) -> None:
    """Scale the gradients of members whose norm is above their limit, as `clip_grad_norm_` does."""
    gradients, factors = [], []
    for member, norm in zip(members, norms, strict=True):
        limit = member.config.max_grad_norm
        factor = 1.0 if limit is None else float(torch.clamp(limit / (norm + 1e-6), max=1.0))
        if factor < 1.0:
            own = member.gradients()
            gradients += own
            factors += [factor] * len(own)
    if gradients:
        torch._foreach_mul_(gradients, factors)


def _adam_state(optimizer: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """The state of a parameter, as AdamW would make it at its first step; all of it or nothing."""
    state: dict[str, Tensor] = optimizer.state.get(parameter, {})
    if not state:
        state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
        state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = state
    return state


def learning_rate(config: TrialConfig, step: int) -> float:
    """The learning rate of update `step` (from 0): a linear warm-up, then the schedule over the rest of `num_steps`.

    The schedules are transformers', of which the original uses the linear one. A warm-up starts at the rate 0, so its
    first update moves nothing, and the first update after it has the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = (config.num_steps - step) / max(1, config.num_steps - config.warmup_steps)
    match config.schedule:
        case "linear":
            return config.learning_rate * left
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))
        case "constant":
            return config.learning_rate


def row_weight(config: TrialConfig, rows: Sequence[Row]) -> float:
    """The factor of each row's summed loss in the objective of a step over `rows`.

    `token_mean` and `sentence_sum` are 0 and 1 of the original's `--objective_mode` (its `train_e2e.py`, where 1 is the
    default).
    """
    match config.objective:
        case "token_mean" | "distill":
            return 1.0 / sum(row.num_targets for row in rows)
        case "sentence_sum":
            return 1.0 / len(rows)
