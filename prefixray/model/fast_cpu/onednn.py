"""Products with frozen weights by oneDNN, on a CPU.

Otherwise fp32 products go to MKL, which on AMD's processors with AVX-512 reaches less than half of what oneDNN does,
in training as in decoding; and bf16 products write a layer's bias first and their result over it. While a model
decodes, its weights lie as oneDNN wants them, too: in bf16 a product of few rows spends most of its time on rearranging
the weights, and where autocast makes bf16 of fp32 weights it does so again at every step. In training the head's lie
so, from the side where it pays.

A kernel is made for a product's shape when that first comes, which with AMX takes as long as one to five products: so
lines, an encoder-decoder's rows, the head's chunks and targets in the last block have few lengths, `filled_up`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefixray.system.machine import cpu_fact, total_bytes

Forward = Callable[[Tensor], Tensor]

MOST_MEMORY = 0.1  # of all that there is here, that a second copy of the weights may take


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Those of a model; GPT-2's are of a class of their own."""
    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


@contextmanager
def rearranged(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's linear layers on a copy of their weights; for forwards without gradients."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    with running(linear_layers(model) if _pays(model, dtype) else [], lambda layer: _on_copy(layer, dtype)):
        yield


@contextmanager
def frozen_layers(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's linear layers, whose weights are frozen, by oneDNN, forward and backward.

    Only in fp32 and where it is faster: in bf16 torch itself takes oneDNN.
    """
    is_exact = model.dtype == torch.float32
    with running(linear_layers(model) if is_exact and is_faster(model.device, model.dtype) else [], _on_weights):
        yield


@contextmanager
def running(modules: Iterable[nn.Module], forward_of: Callable[[nn.Module], Forward]) -> Iterator[None]:
    """Give each of these modules another forward, around which its hooks still run."""
    changed: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module in modules:
            changed.append((module, vars(module).get("forward")))
            module.forward = forward_of(module)
        yield
    finally:
        for module, before in reversed(changed):
            del module.forward
            if before is not None:
                module.forward = before


def through(weight: Tensor, bias: Tensor | None) -> Forward:
    """From inputs (..., in) to outputs (..., out) of a frozen layer that is often used, of a vocabulary's width.

    On a copy of its weight, where that pays: with AMX, 256 rows of 768 into 50,257 take 22 ms on it, else 40.
    """
    return _often(weight, bias, on_copy=_has_amx() and weight.dtype == torch.bfloat16)


def back_through(weight: Tensor) -> Forward:
    """From gradients (..., out) to those of the inputs, (..., in), of such a layer.

    Without AMX these products take a fifth longer on the weight itself in bf16, and in fp32 a quarter to a third;
    with AMX as long.
    """
    return _often(weight.t(), None, on_copy=not (_has_amx() and weight.dtype == torch.bfloat16))


def _often(weight: Tensor, bias: Tensor | None, *, on_copy: bool) -> Forward:
    if not (on_copy and is_faster(weight.device, weight.dtype) and _is_small(weight.nbytes)):
        return lambda inputs: linear(inputs, weight, bias)
    lying = _lying(weight.detach())
    return lambda inputs: _product(inputs, lying, bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`inputs` (..., in) times the frozen `weight` (out, in), as in a layer of `frozen_layers`; without gradients."""
    if not is_faster(inputs.device, inputs.dtype):
        return functional.linear(inputs, weight, bias)
    return _product(inputs, weight, bias)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return output


def _lying(weight: Tensor) -> Tensor:
    """A copy of `weight` (out, in) that lies as oneDNN wants it."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return copy


class _Linear(torch.autograd.Function):
    """`linear`, and its gradient for the inputs alone."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        return linear(gradients[0], weight.t()), None, None


@functools.cache
def _is_amd_with_avx512() -> bool:
    """2.0 to 2.4 times MKL's speed, at 64 to 2,560 rows, on the weights as they are; on Intel's 0.8 to 1.0 times."""
    known = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return known and cpu_fact("vendor_id") == "AuthenticAMD"


@functools.cache
def _has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies faster than what torch would take."""
    if device.type != "cpu":
        return False
    return _has_bf16() if dtype == torch.bfloat16 else dtype == torch.float32 and _is_amd_with_avx512()


def _pays(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Where it was measured to, and the copy is small."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    is_known = _has_bf16() if dtype == torch.bfloat16 else dtype == torch.float32
    return is_known and _is_small(sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize)


def _is_small(num_bytes: int) -> bool:
    """By the whole memory that there is here, so that it is always the same."""
    return num_bytes <= MOST_MEMORY * total_bytes()


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A linear layer's weight (out, in) and bias."""
    weight, bias = module.get_parameter("weight").detach(), dict(module.named_parameters()).get("bias")
    return weight.t() if isinstance(module, Conv1D) else weight, None if bias is None else bias.detach()


def _on_weights(module: nn.Module) -> Forward:
    weight, bias = _weights(module)
    return lambda inputs: _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]


def _on_copy(module: nn.Module, dtype: torch.dtype) -> Forward:
    weight, bias = _weights(module)
    lying, added = _lying(weight.to(dtype)), None if bias is None else bias.to(dtype)
    return lambda inputs: _product(inputs.to(dtype), lying, added)
