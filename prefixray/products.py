"""Products with frozen weights that lie as oneDNN wants them, while a model decodes on a CPU.

Otherwise fp32 products go to MKL, which on AMD's processors reaches less than half of what oneDNN does; in bf16 a
product of few rows spends most of its time on rearranging the weights, and where autocast makes bf16 of fp32 weights
it does so again at every step.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

MOST_MEMORY = 0.1  # of the machine's, that a second copy of the weights may take


@contextmanager
def rearranged(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's linear layers on a copy of their weights; for forwards without gradients."""
    changed: list[nn.Module] = []
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    try:
        if _pays(model, dtype):
            for module in model.modules():
                if type(module) in (nn.Linear, Conv1D):
                    module.forward = _product(module, dtype)
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _pays(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Where it was measured to, and the copy is small: by the machine's whole memory, so that it is always the same."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return dtype in (torch.float32, torch.bfloat16) and size <= MOST_MEMORY * memory


def _product(module: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = module.get_parameter("weight").detach().to(dtype), dict(module.named_parameters()).get("bias")
    plain = (weight.t() if isinstance(module, Conv1D) else weight).contiguous()  # (out, in)
    lying = torch.ops.mkldnn._reorder_linear_weight(plain, None)
    added = None if bias is None else bias.detach().to(dtype)

    def forward(inputs: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.to(dtype), lying, added, "none", [], "")
        return output

    return forward
