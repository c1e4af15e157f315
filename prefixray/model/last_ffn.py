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

from prefixray.model.backend import pad_rows, padded_count

Targets = tuple[Tensor, Tensor]  # rows (N,) and columns (N,)

ENDS = (("mlp", "mlp"), ("fc1", "fc2"), ("layer.2.DenseReluDense", "layer.2.DenseReluDense"))  # GPT-2, BART, T5


def run_on_targets(model: PreTrainedModel, targets: Callable[[], Targets | None]) -> None:
    """Hook the network where it is known; `targets` says on which positions it is to run now, None: on all.

    It is left alone while it is trained with dropout, and where it takes more than its input.
    """
    ends = _ends(model.get_decoder())  # type: ignore[no-untyped-call]
    if ends is None:
        return
    away: list[tuple[Targets, torch.Size]] = []  # what the way out has to put back

    def pick(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """(B, S, W) -> (1, N, W), filled up."""
        away.clear()
        wanted = targets()
        if wanted is None or named or len(args) != 1 or args[0].ndim != 3 or module.training:
            return None
        if padded_count(len(wanted[0])) >= args[0].shape[:2].numel():
            return None
        away.append((wanted, args[0].shape))
        return (pad_rows(args[0][wanted])[None],), named

    def put_back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        """The filled (1, N, W) -> (B, S, W); what else the network may return stays as it is."""
        if not away:
            return None
        (wanted, shape), found = away.pop(), output[0] if isinstance(output, tuple) else output
        whole = found.new_zeros(shape).index_put(wanted, found[0, : len(wanted[0])])
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    ends[0].register_forward_pre_hook(pick, with_kwargs=True)
    ends[1].register_forward_hook(put_back)


def _ends(decoder: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The first and the last module of the last block's feed-forward network, where it is known."""
    blocks = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    modules = dict(blocks[-1].named_modules()) if blocks else {}
    return next(((modules[first], modules[last]) for first, last in ENDS if {first, last} <= modules.keys()), None)
