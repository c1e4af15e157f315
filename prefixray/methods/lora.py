"""LoRA (Hu et al. 2021): a low-rank update beside the query and value projections, W x + (alpha / rank) B A x.

Models with one fused projection (GPT-2's `c_attn`) get one update over all of it, as in PEFT. B starts at zero, so an
untrained LoRA leaves the base as it is. The dropout mask depends on the position and the feature, and all rows of a
step share it. So a row's numbers are the same however rows are packed, padded and cut into micro-batches.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prefixray.config.trials import LoraTrial
from prefixray.errors import UserError
from prefixray.methods.stacked import StackableUpdates, each_linear
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert, LineTokens, StackedRows
from prefixray.model.dropout.hashed_draws import draws_of, key_of, least_kept, scaled

# T trials, R rows of each, S tokens, N tokens of a line

# PEFT's own choice for these families; "q" and "v" are T5's.
_TARGETS = ("q_proj", "v_proj", "c_attn", "q", "v", "query_key_value", "qkv_proj")

WIDEST_GATE = 384
"""Ranks of all trials together, the largest times their number, up to which tokens of a line go through all of them.

Modelled for an H100, of a fused projection (out = 3 in): for each rank a token's six products more take 24 FLOPs a
unit of the width, at 553 TFLOP/s; what sorting tokens by trial moves instead is 50 bytes, at 3.0 TB/s.
"""


class Lora(StackableUpdates):
    """A trial's low-rank updates, in fp32."""

    def __init__(self, config: LoraTrial, base: Base, draw: torch.Generator, dropout_seed: int) -> None:
        super().__init__()
        targets = [(n, m) for n, m in base.model.named_modules() if n.rpartition(".")[2] in _TARGETS]
        if not targets:
            raise UserError(f"method lora: {base.name} has no projection named {', '.join(_TARGETS)}")
        self._names = [name for name, _ in targets]
        self._scale = config.numerator / config.rank
        self._dropout, self._dropout_seed = config.dropout, dropout_seed
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for _, module in targets:
            inner, outer = _widths(module)
            bound = 1 / math.sqrt(inner)  # kaiming_uniform with a = sqrt(5), as in the reference implementation
            self.down.append(nn.Parameter(torch.empty(config.rank, inner).uniform_(-bound, bound, generator=draw)))
            self.up.append(nn.Parameter(torch.zeros(outer, config.rank)))
        self.to(base.device)

    def insert(self, step: int | None) -> Insert:
        """One function for each projection."""
        layers = enumerate(zip(self._names, self.down, self.up, strict=True))
        return Insert(functions={name: self._update(down, up, step, index) for index, (name, down, up) in layers})

    @property
    def modules_changed(self) -> Sequence[str]:
        """The projections."""
        return self._names

    @property
    def tensors(self) -> Sequence[nn.Parameter]:
        """All of A, then all of B."""
        return [*self.down, *self.up]

    @classmethod
    def shared_updates(
        cls, trials: Sequence[Self], stacks: Sequence[Tensor], steps: Sequence[int | None]
    ) -> Sequence["_SharedUpdate"]:
        """One for each projection."""
        downs, ups = stacks[: len(stacks) // 2], stacks[len(stacks) // 2 :]
        rates = [0.0 if s is None else t._dropout for t, s in zip(trials, steps, strict=True)]
        device, exact = downs[0].device, torch.promote_types(downs[0].dtype, torch.float32)
        scales = _column([trial._scale for trial in trials], exact, device)
        drop = None
        if any(rates):
            keys = [0 if step is None else trial.key(step) for trial, step in zip(trials, steps, strict=True)]
            least = _column(map(least_kept, rates), torch.int32, device)
            factors = _column((1 / (1 - rate) for rate in rates), exact, device)
            drop = _Drop(torch.tensor(keys, dtype=torch.int32, device=device)[:, None], least, factors)
        pairs = enumerate(zip(downs, ups, strict=True))
        return [_SharedUpdate(len(trials), index, down, up, scales, drop) for index, (down, up) in pairs]

    def artifact(self) -> dict[str, Tensor]:
        """`PROJECTION.down` (rank, in) and `PROJECTION.up` (out, rank)."""
        tensors: dict[str, Tensor] = {}
        for name, down, up in zip(self._names, self.down, self.up, strict=True):
            tensors[f"{name}.down"] = down.detach().cpu().contiguous()
            tensors[f"{name}.up"] = up.detach().cpu().contiguous()
        return tensors

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over all tensors."""
        with torch.no_grad():
            for name, down, up in zip(self._names, self.down, self.up, strict=True):
                down.copy_(tensors[f"{name}.down"])
                up.copy_(tensors[f"{name}.up"])

    def _update(self, down: Tensor, up: Tensor, step: int | None, index: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The function that adds the low-rank update to the output of the projection `index`."""

        def apply(inputs: Tensor, output: Tensor) -> Tensor:
            x = inputs.to(down.dtype)  # (rows, S, in)
            if step is not None and self._dropout:
                drawn = draws_of(self.key(step), (x.shape[-2], x.shape[-1]), index=index, device=x.device)
                x = scaled(x, drawn >= least_kept(self._dropout), self._dropout)
            update = functional.linear(functional.linear(x, down), up)
            return output + (self._scale * update).to(output.dtype)

        return apply

    def key(self, step: int) -> int:
        """The key of a step's draws. Inputs of a projection, (..., S, in), are dropped by a mask (S, in)."""
        return key_of(self._dropout_seed, step)


@dataclass(frozen=True)
class _Drop:
    """The dropout of several trials in one step."""

    keys: Tensor  # (T, 1)
    least: Tensor  # (T, 1, 1) the smallest draw that is kept
    factors: Tensor  # (T, 1, 1) of what is kept

    def of_rows(self, x: Tensor, rows: StackedRows, index: int) -> Tensor:
        """Inputs of the projection `index`, (T, R, S, in), with one mask for all rows of a trial."""
        factors = self._factors((x.shape[2], x.shape[3]), rows.of, index)
        return (x * factors[:, None]).to(x.dtype)

    def of_line(self, x: Tensor, line: LineTokens, index: int) -> Tensor:
        """Inputs of the projection `index`, (N, 1, in), with the masks that they have side by side."""
        factors = self._factors((line.num_positions, x.shape[2]), lambda stacked: stacked, index)
        return (x * factors.flatten(0, 1).index_select(0, line.positions)[:, None]).to(x.dtype)

    def _factors(self, size: tuple[int, int], of: Callable[[Tensor], Tensor], index: int) -> Tensor:
        """(T, S, in)."""
        drawn = draws_of(of(self.keys), size, index=index, device=self.keys.device)
        return torch.where(drawn >= of(self.least), of(self.factors), 0.0)


@dataclass(frozen=True)
class _SharedUpdate:
    """The updates of several trials beside one projection."""

    num_trials: int
    index: int  # of the projection
    down: Tensor  # (T, rank, in)
    up: Tensor  # (T, out, rank)
    scales: Tensor  # (T, 1, 1) at least fp32
    drop: _Drop | None

    @property
    def is_gated(self) -> bool:
        """See `SharedUpdate`."""
        return self.down.shape[:2].numel() <= WIDEST_GATE

    def __call__(self, given: Tensor, output: Tensor, rows: StackedRows) -> Tensor:
        """See `SharedUpdate`."""
        x = given.to(self.down.dtype)  # (B, S, in)
        if rows.line is not None and self.drop is not None:
            x = self.drop.of_line(x, rows.line, self.index)
        if rows.line is not None and self.is_gated:
            return self._gated(x, output, rows.line)
        x = rows.take(x)  # (T, R, S, in)
        if rows.line is None and self.drop is not None:
            x = self.drop.of_rows(x, rows, self.index)
        inner = each_linear(x.flatten(1, 2), rows.of(self.down)) * rows.of(self.scales)
        update = each_linear(inner.to(x.dtype), rows.of(self.up))
        return rows.add(output, update.view(*x.shape[:3], -1))

    def _gated(self, x: Tensor, output: Tensor, line: LineTokens) -> Tensor:
        """The outputs of a line's tokens, (N, 1, out), with their updates, given their inputs (N, 1, in)."""
        if not line.gates:
            trials = torch.arange(self.num_trials, device=x.device)
            line.gates.append((line.trials[:, None] == trials) * self.scales[:, 0, 0])  # (N, T)
        down, up = self.down.flatten(0, 1), self.up.transpose(1, 2).flatten(0, 1)
        tensors = output.to(x.dtype).squeeze(1), x.squeeze(1), down, up, *line.gates
        changed: Tensor = _Gated.apply(*tensors)  # type: ignore[no-untyped-call]
        return changed[:, None].to(output.dtype)


class _Gated(torch.autograd.Function):
    """The updates of all trials, for all tokens: a gate leaves of each token's inner values those of its own trial.

    So two products serve tokens of all trials where they stand. They are larger than the trials' own by the number of
    trials, which counts for little beside the projection while the ranks are few. The gate multiplies by zero: where
    one trial's numbers are not finite, those of the others are not, either, and a pack runs each alone.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, down: Tensor, up: Tensor, gate: Tensor) -> Tensor:  # noqa: ANN401
        """(N, out), (N, in), (T * rank, in), (T * rank, out), (N, T) -> (N, out)."""
        inner = _through(torch.mm(x, down.t()), gate)  # (N, T * rank)
        ctx.save_for_backward(x, down, up, gate, inner)
        return torch.addmm(output, inner, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, down, up, gate, inner = ctx.saved_tensors
        of_inner = _through(torch.mm(slope, up.t()), gate)
        of_x = torch.mm(of_inner, down) if ctx.needs_input_grad[1] else None  # not in the first layer
        return slope, of_x, torch.mm(of_inner.t(), x), torch.mm(inner.t(), slope), None


def _through(inner: Tensor, gate: Tensor) -> Tensor:
    """Changes inner values, (N, T * rank), to those behind the gate."""
    inner.view(*gate.shape, -1).mul_(gate[:, :, None])
    return inner


def _column(values: Iterable[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of trials as (T, 1, 1)."""
    return _known_column(tuple(values), dtype, device)


@functools.lru_cache(maxsize=64)  # the same in every step: they go to the device once
def _known_column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear, or of GPT-2's Conv1D, whose weight is transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.weight
    assert isinstance(weight, Tensor) and weight.ndim == 2, "a projection has a matrix"
    return weight.shape[0], weight.shape[1]
