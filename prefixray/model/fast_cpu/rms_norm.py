"""RMS norms with frozen weights, forward and backward, on a CPU: a few rows at a time, in the processor's cache.

transformers spells them out in fp32, each operation over all rows, and keeps what stands between for the backward: 3.7
ms forward and backward for 1,152 x 576 in bf16, and 1.5 ms so. Kept are the input, and of each row the factor that it
was scaled with.
"""

# N rows, W width of the model

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from prefixray.model.fast_cpu.onednn import Forward, running

BLOCK = 1 << 16  # values: three blocks of fp32 lie in a second-level cache
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}  # relative; of bf16 a last place


def rms_norms(model: nn.Module) -> list[nn.Module]:
    """Those of a model's modules that are RMS norms, as Llama has them, on a CPU in fp32 or bf16."""
    return [module for module in model.modules() if _is_rms_norm(module)]


def frozen_norms(norms: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Run these norms, whose weights are frozen, in blocks."""
    return running(norms, _in_blocks)


def _is_rms_norm(module: nn.Module) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if epsilon is None or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return False
    if len(inspect.signature(module.forward).parameters) != 1:  # it may take a gate, too
        return False
    if weight.device.type != "cpu" or weight.dtype not in TOLERANCE:
        return False
    rows = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(1))
    rows = (rows * torch.tensor([[1.0], [100.0], [float(epsilon) ** 0.5]])).to(weight.dtype)
    with torch.no_grad():
        found, own = _in_blocks(module)(rows), module(rows)
    return found.dtype == own.dtype and torch.allclose(found, own, rtol=TOLERANCE[weight.dtype], atol=1e-6)


def _in_blocks(module: nn.Module) -> Forward:
    weight, epsilon = module.get_parameter("weight").detach(), float(module.variance_epsilon)  # type: ignore[arg-type]
    plain = module.forward

    def run(inputs: Tensor) -> Tensor:
        if inputs.dtype != weight.dtype:
            return plain(inputs)  # type: ignore[no-any-return]
        found: Tensor = _RMSNorm.apply(inputs, weight, epsilon)  # type: ignore[no-untyped-call]
        return found

    return run


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x**2) + epsilon) * weight, and its gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401
        rows = inputs.reshape(-1, inputs.shape[-1])  # (N, W)
        whole, factors = torch.empty(inputs.shape, dtype=inputs.dtype), torch.empty(len(rows), 1)
        outputs, size = whole.view(rows.shape), _size(rows)
        x_block, square_block = torch.empty(2, size, rows.shape[1])
        for given, output, factor in zip(*(part.split(size) for part in (rows, outputs, factors)), strict=True):
            x, square = x_block[: len(given)].copy_(given), square_block[: len(given)]
            torch.mean(torch.mul(x, x, out=square), 1, keepdim=True, out=factor)
            output.copy_(x.mul_(factor.add_(epsilon).rsqrt_())).mul_(weight)
        ctx.save_for_backward(rows, factors, weight)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        rows, factors, weight = ctx.saved_tensors
        coming, found = gradients[0].reshape(rows.shape), torch.empty_like(rows)
        size, exact = _size(rows), weight.float()
        x_block, slope_block, product_block = torch.empty(3, size, rows.shape[1])
        parts = (part.split(size) for part in (rows, coming, found, factors))
        for given, gradient, output, factor in zip(*parts, strict=True):
            x, slope = x_block[: len(given)].copy_(given).mul_(factor), slope_block[: len(given)]
            slope.copy_(gradient).mul_(exact)
            along = torch.mul(x, slope, out=product_block[: len(given)]).mean(1, keepdim=True)
            output.copy_(slope.addcmul_(x, along, value=-1).mul_(factor))
        return found.view(gradients[0].shape), None, None


def _size(rows: Tensor) -> int:
    """How many rows a block has."""
    return max(1, BLOCK // rows.shape[1])
