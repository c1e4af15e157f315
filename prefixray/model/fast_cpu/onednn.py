"""Products with frozen weights by oneDNN, on a CPU.

Three things are faster than torch's own layers. In fp32 torch takes MKL, which has less than half of oneDNN's speed on
AMD's processors with AVX-512. While a model decodes, a copy of its weights lies in the order that oneDNN needs: a
product of few rows otherwise spends most of its time on rearranging the weights, and under autocast every step makes
bf16 of fp32 weights again. And the head has such a copy in training, for the direction where that is faster.

oneDNN makes a kernel when a shape first comes, which with AMX takes as long as one to five products. So numbers of
tokens are rounded up (see `padded_count`).
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

MOST_MEMORY = 0.1  # share of this machine's memory that a copy of the weights may take


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The linear layers of a model; GPT-2's are of a class of their own."""
    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


@contextmanager
def rearranged(model: PreTrainedModel) -> Iterator[None]:
    """Run the model's linear layers on a copy of their weights in oneDNN's order; for forwards without gradients."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    with running(linear_layers(model) if _may_copy(model, dtype) else [], lambda layer: _on_copy(layer, dtype)):
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


def head_product(weight: Tensor, bias: Tensor | None) -> Forward:
    """The function from hidden states (..., in) to logits (..., out) of a frozen head; without gradients.

    In bf16 with AMX it uses a copy: 256 rows of 768 into 50,257 take 22 ms on the copy, and 40 ms on the weight.
    """
    return _repeated(weight, bias, on_copy=_has_amx() and weight.dtype == torch.bfloat16)


def head_gradient(weight: Tensor) -> Forward:
    """The function from gradients of logits (..., out) to gradients of hidden states (..., in).

    It uses a copy, but not in bf16 with AMX, where that is no faster. Without AMX the product on the weight itself
    takes a fifth longer in bf16, and a quarter to a third longer in fp32.
    """
    return _repeated(weight.t(), None, on_copy=not (_has_amx() and weight.dtype == torch.bfloat16))


def _repeated(weight: Tensor, bias: Tensor | None, *, on_copy: bool) -> Forward:
    """A product that runs many times with one weight."""
    if not (on_copy and is_faster(weight.device, weight.dtype) and _is_small(weight.nbytes)):
        return lambda inputs: linear(inputs, weight, bias)
    reordered = _reordered(weight.detach())
    return lambda inputs: _product(inputs, reordered, bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`inputs` (..., in) times a frozen `weight` (out, in), by oneDNN where that is faster; without gradients."""
    if not is_faster(inputs.device, inputs.dtype):
        return functional.linear(inputs, weight, bias)
    return _product(inputs, weight, bias)


def with_gelu(module: nn.Module) -> Forward:
    """A linear layer and GELU by tanh behind it, in one; without gradients."""
    weight, bias = _weights(module)
    return lambda inputs: _product(inputs, weight, bias, "gelu", "tanh")


def _product(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", algorithm: str = ""
) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], algorithm)
    return output


def _reordered(weight: Tensor) -> Tensor:
    """A copy of `weight` (out, in) in the order that oneDNN needs."""
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
    """Whether oneDNN is faster in fp32: 2.0 to 2.4 times MKL's speed at 64 to 2,560 rows; on Intel 0.8 to 1.0 times."""
    known = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return known and cpu_fact("vendor_id") == "AuthenticAMD"


@functools.cache
def _has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is not slower than torch's own choice."""
    if device.type != "cpu":
        return False
    return _has_bf16() if dtype == torch.bfloat16 else dtype == torch.float32 and _is_amd_with_avx512()


def _may_copy(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether a copy of the weights in this dtype is faster and fits into memory."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    is_known = _has_bf16() if dtype == torch.bfloat16 else dtype == torch.float32
    return is_known and _is_small(sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize)


def _is_small(num_bytes: int) -> bool:
    """Whether a copy of so many bytes may be made; by the machine's whole memory, so that the answer never changes."""
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
    reordered, bias = _reordered(weight.to(dtype)), None if bias is None else bias.to(dtype)
    return lambda inputs: _product(inputs.to(dtype), reordered, bias)
