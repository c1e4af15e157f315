"""LoRA (Hu et al. 2021): a low-rank update beside the query and value projections, W x + (alpha / rank) B A x.

Models with one fused projection (GPT-2's `c_attn`) get one update over all of it, as in PEFT. B starts at zero, so an
untrained LoRA leaves the base as it is. The dropout mask depends on the position and the feature, and all rows of a
step share it. So a row's numbers are the same however rows are packed, padded and cut into micro-batches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefixray.config.trials import LoraTrial
from prefixray.errors import UserError
from prefixray.methods.contract import Method, seeded_dropout
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert

# PEFT's own choice for these families; "q" and "v" are T5's.
_TARGETS = ("q_proj", "v_proj", "c_attn", "q", "v", "query_key_value", "qkv_proj")


class Lora(Method):
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
            if self._dropout > 0.0 and step is not None:
                ones = torch.ones(x.shape[1:], dtype=x.dtype, device=x.device)
                x = x * seeded_dropout(ones, self._dropout, seed=self._dropout_seed + (index << 32), step=step)
            update = functional.linear(functional.linear(x, down), up)
            return output + (self._scale * update).to(output.dtype)

        return apply


def _widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear, or of GPT-2's Conv1D, whose weight is transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.weight
    assert isinstance(weight, Tensor) and weight.ndim == 2, "a projection has a matrix"
    return weight.shape[0], weight.shape[1]
