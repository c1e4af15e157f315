"""Bottleneck adapters: x + W_up relu(W_down x), one or several in each block of the base.

Design 1 (Lin et al. 2020; the baseline of Li & Liang 2021, section 5.2) has one adapter after each block, which
normalises its input. Design 2 (Houlsby et al. 2019) has one after each attention and each feed-forward layer, without a
norm, before the layer's result is added to its input; a decoder block with cross-attention has three. The up projection
starts at zero, so an untrained adapter leaves the base as it is. A trial's adapters see that trial's rows alone.
"""

# W width of the base, T trials, R rows of each, S tokens

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefixray.config.trials import AdapterTrial
from prefixray.errors import UserError
from prefixray.methods.stacked import StackableUpdates, each_linear
from prefixray.model.attention_sites import attentions
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert, StackedRows

logger = logging.getLogger(__name__)

_FEED_FORWARD = ("mlp", "fc2", "DenseReluDense", "feed_forward")
"""The families' names of the last module of a feed-forward layer before its residual addition."""


class Adapter(StackableUpdates):
    """A trial's adapters, in fp32; `bottleneck` is the width of their inner layer."""

    def __init__(self, config: AdapterTrial, base: Base, bottleneck: int, draw: torch.Generator) -> None:
        super().__init__()
        width, self.bottleneck = base.shape.hidden_size, bottleneck
        if config.percent is not None:
            logger.info("adapter: %g percent of %s: bottleneck %d", config.percent, base.name, bottleneck)
        is_normed = config.design == 1
        self._names = [name for name, _ in base.blocks()] if is_normed else list(_sublayers(base))
        self.layers = nn.ModuleList([_adapter(width, bottleneck, is_normed, draw) for _ in self._names])
        self.to(base.device)

    def insert(self, step: int | None) -> Insert:
        """One function per adapter. Adapters have no dropout of their own."""
        return Insert(functions={name: _apply(layer) for name, layer in zip(self._names, self.layers, strict=True)})

    @property
    def modules_changed(self) -> Sequence[str]:
        """The blocks, or the sub-layers."""
        return self._names

    @property
    def tensors(self) -> Sequence[nn.Parameter]:
        """Layer by layer: the norm's, where there is one, then those of the projections."""
        return list(self.layers.parameters())

    @classmethod
    def shared_updates(
        cls, trials: Sequence[Self], stacks: Sequence[Tensor], steps: Sequence[int | None]
    ) -> Sequence["_SharedUpdate"]:
        """One for each layer."""
        num_layers = len(trials[0].layers)
        each = len(stacks) // num_layers
        return [
            _SharedUpdate(
                len(trials),
                stacks[index * each : (index + 1) * each - 4],
                stacks[(index + 1) * each - 4 : (index + 1) * each],
            )
            for index in range(num_layers)
        ]

    def sizes(self) -> dict[str, int]:
        """Also the bottleneck, which is computed where the trial gives `percent`."""
        return {**super().sizes(), "bottleneck": self.bottleneck}

    def artifact(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over all tensors."""
        self.load_state_dict(tensors)


@dataclass(frozen=True)
class _SharedUpdate:
    """The updates of several trials behind one module."""

    num_trials: int
    norm: Sequence[Tensor]  # weight and bias, (T, W) each, or nothing
    projections: Sequence[Tensor]  # weight and bias down, (T, bottleneck, W) and (T, bottleneck), and up
    is_gated: bool = False

    def __call__(self, given: Tensor, output: Tensor, rows: StackedRows) -> Tensor:
        """See `SharedUpdate`."""
        down, down_bias, up, up_bias = map(rows.of, self.projections)
        x = rows.take(output)
        flat = x.to(down.dtype).flatten(1, 2)
        if self.norm:
            weight, bias = map(rows.of, self.norm)
            if len(weight) == 1:  # takes 1,012 launches a step of a lone adapter of gpt2-medium, the other way 1,081
                flat = functional.layer_norm(flat, flat.shape[2:], weight[0], bias[0])
            else:
                flat = torch.addcmul(bias[:, None], functional.layer_norm(flat, flat.shape[2:]), weight[:, None])
        return rows.add(output, each_linear(torch.relu(each_linear(flat, down, down_bias)), up, up_bias).view(x.shape))


def _sublayers(base: Base) -> Iterator[str]:
    """The modules whose results are added to their inputs: of each block its attentions, then its feed-forward layer.

    Raises `UserError` where a block has no feed-forward layer of a known name.
    """
    attention_ids = {id(module) for module, _, _ in attentions(base.model)}
    for block_name, block in base.blocks():
        inner = [(f"{block_name}.{name}", module) for name, module in block.named_modules()]
        yield from (name for name, module in inner if id(module) in attention_ids)
        feed_forward = [name for name, _ in inner if name.rpartition(".")[2] in _FEED_FORWARD]
        if not feed_forward:
            names = ", ".join(_FEED_FORWARD)
            raise UserError(f"design: 2: {base.name} has no feed-forward layer named {names}; take 1")
        yield feed_forward[0]


def _adapter(width: int, bottleneck: int, is_normed: bool, draw: torch.Generator) -> nn.Sequential:
    """One adapter, (.., W) -> (.., W)."""
    down, up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        down.weight.uniform_(-bound, bound, generator=draw)
        down.bias.uniform_(-bound, bound, generator=draw)
        up.weight.zero_()
        up.bias.zero_()
    inner = (down, nn.ReLU(), up)
    return nn.Sequential(nn.LayerNorm(width), *inner) if is_normed else nn.Sequential(*inner)


def _apply(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The function of a module's output that adds the adapter's update."""

    def apply(inputs: Tensor, output: Tensor) -> Tensor:
        dtype = next(layer.parameters()).dtype
        update: Tensor = layer(output.to(dtype))
        return output + update.to(output.dtype)

    return apply
