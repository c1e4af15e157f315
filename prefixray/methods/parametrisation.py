"""How a prefix's numbers are trained: directly (flat), or as the output of a network (Li & Liang 2021, section 4.3).

Either way they are P rows, one for each position. The network is `Embedding -> Linear(mid_dim) -> Tanh -> Linear`. To
start from given rows, its last linear layer is solved by least squares, so that the network reproduces them. The first
positions may be frozen: they stay as they start, and no network makes them.
"""

# P prefix positions, M mid_dim

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class Sizes(NamedTuple):
    """The sizes of a parametrisation."""

    positions: int  # P
    hidden: int  # width of the network's embedding
    mid: int | None  # M; None: flat
    frozen: int = 0  # positions, the first ones, that stay as they start


class Parametrisation(nn.Module):
    """P rows of some width, (P, width): a tensor, or the network that gives it."""

    frozen: Tensor | None

    def __init__(self, sizes: Sizes, width: int, target: Tensor | None, draw: torch.Generator) -> None:
        """The rows start as `target`, (P, width); a network may start without one, where no position is frozen."""
        super().__init__()
        positions, hidden, mid, num_frozen = sizes
        frozen: Tensor | None = None
        if num_frozen:
            assert target is not None, "what stays as it is starts as something"
            frozen, target = _exact(target[:num_frozen]), target[num_frozen:]
        self.register_buffer("frozen", frozen)
        positions -= num_frozen
        self.residual: float | None = None
        self.network: _Network | None = None
        if mid is None:
            assert target is not None, "a flat parametrisation starts as something"
            self.flat = nn.Parameter(_exact(target))
        else:
            self.network = _Network(positions, hidden, mid, width, draw)
            if target is not None:
                self.residual = self.network.solve(target)

    def forward(self) -> Tensor:
        """The rows."""
        rows: Tensor = self.flat if self.network is None else self.network()
        return rows if self.frozen is None else torch.cat([self.frozen, rows])


def _exact(rows: Tensor) -> Tensor:
    """A copy of the rows on the CPU, in fp32 or as exactly as they come."""
    return rows.detach().to("cpu", torch.promote_types(rows.dtype, torch.float32), copy=True)


class _Network(nn.Module):
    """The reparametrisation, with torch's default distributions drawn from `draw`."""

    def __init__(self, positions: int, hidden: int, mid: int, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.embedding = skip_init(nn.Embedding, positions, hidden)  # torch's own draws would be thrown away
        self.inner = skip_init(nn.Linear, hidden, mid)
        self.outer = skip_init(nn.Linear, mid, width)
        with torch.no_grad():
            self.embedding.weight.normal_(generator=draw)
            for linear in (self.inner, self.outer):
                bound = 1 / math.sqrt(linear.in_features)
                linear.weight.uniform_(-bound, bound, generator=draw)
                linear.bias.uniform_(-bound, bound, generator=draw)

    def hidden(self) -> Tensor:
        """The input of the last linear layer, (P, M)."""
        return torch.tanh(self.inner(self.embedding.weight))

    def forward(self) -> Tensor:
        """All positions at once, (P, width)."""
        rows: Tensor = self.outer(self.hidden())
        return rows

    def solve(self, target: Tensor) -> float:
        """Set the last linear layer so that the network gives `target` (P, width); return the relative residual.

        Exact while P <= M + 1: a least-squares problem with P equations per output. The solution has the smallest norm.
        """
        wanted = target.double().cpu()
        with torch.no_grad():
            hidden = self.hidden().double().cpu()  # (P, M)
            inputs = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.float64)], dim=1)
            solution = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution  # (M + 1, width)
            self.outer.weight.copy_(solution[:-1].T)
            self.outer.bias.copy_(solution[-1])
            return float((inputs @ solution - wanted).norm() / wanted.norm().clamp(min=1e-30))
