"""Bottleneck adapters after every block (Lin et al. 2020; Li & Liang's baseline): x + W_up relu(W_down LN(x)).

The up projection starts at zero, so an untrained adapter leaves the base as it is. Each trial's adapters see only that
trial's rows of a packed batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prefixray.attention import Insert
from prefixray.base import Base
from prefixray.config import AdapterTrial
from prefixray.methods.contract import Method


class Adapter(Method):
    """A trial's adapters, one per block, in fp32."""

    def __init__(self, config: AdapterTrial, base: Base, draw: torch.Generator) -> None:
        super().__init__()
        width = base.shape.hidden_size
        self._names = [name for name, _ in base.blocks()]
        self.layers = nn.ModuleList([_bottleneck(width, config.bottleneck, draw) for _ in self._names])
        self.to(base.device)

    def insert(self, step: int | None) -> Insert:
        """One function per block. Adapters have no dropout of their own."""
        return Insert(functions={name: _apply(layer) for name, layer in zip(self._names, self.layers, strict=True)})

    def artifact(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over all tensors."""
        self.load_state_dict(tensors)


def _bottleneck(width: int, bottleneck: int, draw: torch.Generator) -> nn.Sequential:
    layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width))
    down, up = layer[1], layer[3]
    assert isinstance(down, nn.Linear) and isinstance(up, nn.Linear)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        down.weight.uniform_(-bound, bound, generator=draw)
        down.bias.uniform_(-bound, bound, generator=draw)
        up.weight.zero_()
        up.bias.zero_()
    return layer


def _apply(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def apply(inputs: Tensor, output: Tensor) -> Tensor:
        dtype = next(layer.parameters()).dtype
        update: Tensor = layer(output.to(dtype))
        return output + update.to(output.dtype)

    return apply
