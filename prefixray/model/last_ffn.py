"""The last block's feed-forward network, run only on the positions that the head is run on.

A feed-forward network does not mix positions, and behind the last attention nothing looks at another position: so its
output may stay zero wherever the head does not run. In the blocks before, attention looks at all positions.
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
    """Hook the network of a known architecture. `targets()` gives the positions for this forward; None means all.

    The network runs on all positions while it is trained with dropout, and where it takes more than its input.
    """
    ends = _ends(model.get_decoder())  # type: ignore[no-untyped-call]
    if ends is None:
        return
    picked: list[tuple[Targets, torch.Size]] = []  # by `pick` for `put_back`: the positions, and the shape of all

    def pick(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A hook before the network: (B, S, W) -> (1, N, W), N rounded up."""
        picked.clear()
        wanted = targets()
        if wanted is None or named or len(args) != 1 or args[0].ndim != 3 or module.training:
            return None
        if padded_count(len(wanted[0])) >= args[0].shape[:2].numel():
            return None
        picked.append((wanted, args[0].shape))
        return (pad_rows(args[0][wanted])[None],), named

    def put_back(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        """A hook behind the network: (1, N, W) -> (B, S, W); further outputs of the network stay as they are."""
        if not picked:
            return None
        (wanted, shape), hidden = picked.pop(), output[0] if isinstance(output, tuple) else output
        full = hidden.new_zeros(shape).index_put(wanted, hidden[0, : len(wanted[0])])
        return (full, *output[1:]) if isinstance(output, tuple) else full

    ends[0].register_forward_pre_hook(pick, with_kwargs=True)
    ends[1].register_forward_hook(put_back)


def _ends(decoder: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The first and the last module of the last block's feed-forward network; None: unknown architecture."""
    blocks = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    modules = dict(blocks[-1].named_modules()) if blocks else {}
    return next(((modules[first], modules[last]) for first, last in ENDS if {first, last} <= modules.keys()), None)
