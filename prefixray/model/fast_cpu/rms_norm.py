"""RMS norms with frozen weights, forward and backward: a few rows at a time, so that they stay in the cache.

transformers runs each operation of a norm in fp32 over all rows, and keeps every result for the backward: 3.7 ms for
1,152 x 576 in bf16, forward and backward, where blocks of rows take 1.5 ms. The backward here needs the input and one
factor per row.
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
    """The modules of a model that compute an RMS norm as Llama's does, in fp32 or bf16 on a CPU."""
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
        ours, theirs = _in_blocks(module)(rows), module(rows)
    return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=TOLERANCE[weight.dtype], atol=1e-6)


def _in_blocks(module: nn.Module) -> Forward:
    weight, epsilon = module.get_parameter("weight").detach(), float(module.variance_epsilon)  # type: ignore[arg-type]
    plain = module.forward

    def run(inputs: Tensor) -> Tensor:
        if inputs.dtype != weight.dtype:
            return plain(inputs)  # type: ignore[no-any-return]
        output: Tensor = _RMSNorm.apply(inputs, weight, epsilon)  # type: ignore[no-untyped-call]
        return output

    return run


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x**2) + epsilon) * weight, and its gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401
        rows = inputs.reshape(-1, inputs.shape[-1])  # (N, W)
        output, factors = torch.empty(inputs.shape, dtype=inputs.dtype), torch.empty(len(rows), 1)
        outputs, size = output.view(rows.shape), _size(rows)
        x_block, square_block = torch.empty(2, size, rows.shape[1])
        for given, result, factor in zip(*(part.split(size) for part in (rows, outputs, factors)), strict=True):
            x, square = x_block[: len(given)].copy_(given), square_block[: len(given)]
            torch.mean(torch.mul(x, x, out=square), 1, keepdim=True, out=factor)
            result.copy_(x.mul_(factor.add_(epsilon).rsqrt_())).mul_(weight)
        ctx.save_for_backward(rows, factors, weight)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        rows, factors, weight = ctx.saved_tensors
        gradient, input_gradient = gradients[0].reshape(rows.shape), torch.empty_like(rows)  # (N, W)
        size, exact = _size(rows), weight.float()
        x_block, slope_block, product_block = torch.empty(3, size, rows.shape[1])
        parts = (part.split(size) for part in (rows, gradient, input_gradient, factors))
        for given, incoming, result, factor in zip(*parts, strict=True):
            x, slope = x_block[: len(given)].copy_(given).mul_(factor), slope_block[: len(given)]
            slope.copy_(incoming).mul_(exact)
            along = torch.mul(x, slope, out=product_block[: len(given)]).mean(1, keepdim=True)
            result.copy_(slope.addcmul_(x, along, value=-1).mul_(factor))
        return input_gradient.view(gradients[0].shape), None, None


def _size(rows: Tensor) -> int:
    """The number of rows in a block."""
    return max(1, BLOCK // rows.shape[1])
