"""How a prefix's numbers are trained: directly (flat), or as the output of a network (Li & Liang 2021, section 4.3).

Either way they are P rows, one for each position. The network is `Embedding -> Linear(mid_dim) -> Tanh -> Linear`. To
start from given rows, its last linear layer is solved by least squares, so that the network reproduces them.
"""

# P prefix positions, M mid_dim

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class Parametrisation(nn.Module):
    """P rows of some width, (P, width): a tensor, or the network that gives it."""

    def __init__(
        self, sizes: tuple[int, int, int | None], width: int, target: Tensor | None, draw: torch.Generator
    ) -> None:
        """`sizes`: P, the width of the network's embedding, and M or None (flat).

        The rows start as `target`, (P, width); a network may start without one.
        """
        super().__init__()
        positions, hidden, mid = sizes
        self.residual: float | None = None
        self.network: _Network | None = None
        if mid is None:
            assert target is not None, "a flat parametrisation starts as something"
            self.flat = nn.Parameter(target.float().cpu().clone())
        else:
            self.network = _Network(positions, hidden, mid, width, draw)
            if target is not None:
                self.residual = self.network.solve(target)

    def forward(self) -> Tensor:
        """The rows."""
        rows: Tensor = self.flat if self.network is None else self.network()
        return rows


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
