"""LoRA (Hu et al. 2021): a low-rank update beside the query and value projections, W x + (alpha / rank) B A x.

Models with one fused projection (GPT-2's `c_attn`) get one update over all of it, as in PEFT. B starts at zero, so an
untrained LoRA leaves the base as it is. The dropout mask depends on the position and the feature, and all rows of a
step share it. So a row's numbers are the same however rows are packed, padded and cut into micro-batches.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefixray.config.trials import LoraTrial
from prefixray.errors import UserError
from prefixray.methods.stacked import StackableUpdates, each_linear
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert, StackedRows
from prefixray.model.dropout.hashed_draws import draws_of, key_of, least_kept, scaled

# T trials, R rows of each, S tokens

# PEFT's own choice for these families; "q" and "v" are T5's.
_TARGETS = ("q_proj", "v_proj", "c_attn", "q", "v", "query_key_value", "qkv_proj")


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
        rates, like = [0.0 if s is None else t._dropout for t, s in zip(trials, steps, strict=True)], downs[0]
        scales = _column([trial._scale for trial in trials], like.dtype, like.device)
        drop = None
        if any(rates):
            keys = [0 if step is None else trial.key(step) for trial, step in zip(trials, steps, strict=True)]
            least = _column(map(least_kept, rates), torch.int32, like.device)
            factors = _column((1 / (1 - rate) for rate in rates), like.dtype, like.device)
            drop = _Drop(torch.tensor(keys, dtype=torch.int32, device=like.device)[:, None], least, factors)
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

    def __call__(self, x: Tensor, rows: StackedRows, index: int) -> Tensor:
        """Inputs of the projection `index`, (T, R, S, in), with one mask for all rows of a trial."""
        size = (x.shape[2], x.shape[3])
        drawn = draws_of(rows.of(self.keys), size, index=index, device=x.device)  # (T, S, in)
        factors = torch.where(drawn >= rows.of(self.least), rows.of(self.factors), 0.0)
        return x * factors[:, None]


@dataclass(frozen=True)
class _SharedUpdate:
    """The updates of several trials beside one projection."""

    num_trials: int
    index: int  # of the projection
    down: Tensor  # (T, rank, in)
    up: Tensor  # (T, out, rank)
    scales: Tensor  # (T, 1, 1)
    drop: _Drop | None
    reads_output: bool = False

    def __call__(self, x: Tensor, rows: StackedRows) -> Tensor:
        """(T, R, S, in) -> (T, R, S, out)."""
        x = x.to(self.down.dtype)
        if self.drop is not None:
            x = self.drop(x, rows, self.index)
        inner = each_linear(x.flatten(1, 2), rows.of(self.down)) * rows.of(self.scales)
        return each_linear(inner, rows.of(self.up)).view(*x.shape[:3], -1)


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
