"""The last block's feed-forward network on those positions alone that the head is run on.

Attention mixes positions, a feed-forward network does not: behind the last attention nothing looks at any other
position, so there its output is left at zero. In the blocks before, attention looks at all of them.
"""

# B rows, S tokens, N positions that the head is run on, W width of the model

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

Targets = tuple[Tensor, Tensor]  # rows (N,) and columns (N,)

ENDS = (("mlp", "mlp"), ("fc1", "fc2"), ("layer.2.DenseReluDense", "layer.2.DenseReluDense"))  # GPT-2, BART, T5


class LastFeedForward:
    """The way in and the way out of the network; `targets` says on which positions it is to run now, None: on all."""

    def __init__(self, model: PreTrainedModel, targets: Callable[[], Targets | None]) -> None:
        self._targets = targets
        self._away: tuple[Targets, torch.Size] | None = None  # what the way out has to put back
        ends = _ends(model.get_decoder())  # type: ignore[no-untyped-call]
        if ends is not None:
            ends[0].register_forward_pre_hook(self._pick, with_kwargs=True)
            ends[1].register_forward_hook(self._put_back)

    def _pick(
        self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(B, S, W) -> (1, N, W); a network that takes more than its input is left alone, and one with dropout."""
        targets, self._away = self._targets(), None
        if targets is None or named or len(args) != 1 or args[0].ndim != 3 or module.training:
            return None
        if len(targets[0]) == args[0].shape[:2].numel():
            return None
        self._away = targets, args[0].shape
        return (args[0][targets][None],), named

    def _put_back(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """(1, N, W) -> (B, S, W)."""
        if self._away is None:
            return None
        (targets, shape), self._away = self._away, None
        return output.new_zeros(shape).index_put(targets, output[0])


def _ends(decoder: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The first and the last module of the last block's feed-forward network, where it is known."""
    blocks = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    modules = dict(blocks[-1].named_modules()) if blocks else {}
    return next(((modules[first], modules[last]) for first, last in ENDS if {first, last} <= modules.keys()), None)
