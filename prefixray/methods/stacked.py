"""Trials of one method whose products run as one, because their tensors are stacked.

Their tensors are copied into stacks, one for each place in the model, with zeros behind smaller ones. A product with a
stack is a product for each of its trials; a trial's gradient is its part of the stack's. A trial does not notice:
parameters, optimiser and checkpoints stay its own, and its numbers are those that it has alone.
"""

# T trials, n tokens of each

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefixray.methods.contract import Method
from prefixray.model.binding.insert import Insert, SharedUpdate, Slot


class StackableUpdates(Method):
    """A method that adds to the outputs of modules, and whose trials can share the products for it."""

    @property
    @abstractmethod
    def modules_changed(self) -> Sequence[str]:
        """The names of the modules that it adds to."""

    @property
    @abstractmethod
    def tensors(self) -> Sequence[nn.Parameter]:
        """The trained tensors in one order for all trials that can be stacked. They differ in sizes at most."""

    @classmethod
    @abstractmethod
    def shared_updates(
        cls, trials: Sequence[Self], stacks: Sequence[Tensor], steps: Sequence[int | None]
    ) -> Sequence[SharedUpdate]:
        """What the trials add to each of the modules, from their stacked tensors, (T, ...) each, at their steps."""

    @property
    def stack_key(self) -> Hashable:
        """Trials with equal keys can be stacked."""
        return type(self), tuple(self.modules_changed)


class Stacks:
    """The tensors of trials, stacked: a copy for one step, at which gradients arrive."""

    def __init__(self, trials: Sequence[Sequence[nn.Parameter]], *, train: bool, dtype: torch.dtype | None) -> None:
        """`trials[t][place]`: the tensors of trial t. The stacks have the dtype of these, or the given one."""
        self._own = list(zip(*trials, strict=True))
        shapes = [tuple(max(axis) for axis in zip(*(p.shape for p in own), strict=True)) for own in self._own]
        self._shapes = [(len(trials), *shape) for shape in shapes]
        example = trials[0][0]
        self._whole = torch.zeros(sum(map(math.prod, self._shapes)), dtype=example.dtype, device=example.device)
        stacks = zip(self._cut(self._whole), self._own, strict=True)
        with torch.no_grad():
            copies = [part for stack, own in stacks for part in _parts(stack, own)]
            torch._foreach_copy_(copies, [p for own in self._own for p in own])
        self._whole.requires_grad_(train)
        self.tensors = self._cut(self._whole.to(dtype or example.dtype))  # (T, ...) of each place

    def _cut(self, whole: Tensor) -> list[Tensor]:
        """The stacks, given all of them in one."""
        parts = whole.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def push_gradients(self) -> None:
        """Give each trial its part of the gradients. A part with gaps is copied, since AdamW wants it as the tensor."""
        gapped, dense = [], []
        if self._whole.grad is None:
            return
        for stack, own in zip(self._cut(self._whole.grad), self._own, strict=True):
            for parameter, part in zip(own, _parts(stack, own), strict=True):
                parameter.grad = part
                if not part.is_contiguous():
                    parameter.grad = torch.empty_like(parameter)
                    gapped.append(part)
                    dense.append(parameter.grad)
        if gapped:
            torch._foreach_copy_(dense, gapped)


def _parts(stack: Tensor, own: Sequence[nn.Parameter]) -> list[Tensor]:
    """Each trial's part of a stack."""
    parts = list(stack.unbind())
    for index, parameter in enumerate(own):
        for axis, size in enumerate(parameter.shape):
            if parts[index].shape[axis] != size:
                parts[index] = parts[index].narrow(axis, 0, size)
    return parts


@dataclass(frozen=True)
class Inserts:
    """What trials put into the base in one step."""

    of_trials: Sequence[Insert]
    stacks: Sequence[Stacks] = ()

    def push_gradients(self) -> None:
        """Give trials the gradients that arrived at their stacks; the others have theirs."""
        for stack in self.stacks:
            stack.push_gradients()


def insert_all(
    methods: Sequence[Method], steps: Sequence[int | None], *, stacked: bool, dtype: torch.dtype | None = None
) -> Inserts:
    """The inserts of trials at their steps, None in an evaluation; with `stacked`, those that can share products do.

    Shared products are in `dtype`, or else in that of the trained tensors.
    """
    inserts = [Insert()] * len(methods)
    stacks = []
    groups: dict[Hashable, list[int]] = {}
    for index, method in enumerate(methods):
        if stacked and isinstance(method, StackableUpdates):
            groups.setdefault(method.stack_key, []).append(index)
        else:
            inserts[index] = method.insert(steps[index])
    for group in groups.values():
        trials: list[Any] = [methods[index] for index in group]
        own_steps = [steps[index] for index in group]
        stack = Stacks([trial.tensors for trial in trials], train=own_steps[0] is not None, dtype=dtype)
        shared = type(trials[0]).shared_updates(trials, stack.tensors, own_steps)
        for slot, index in enumerate(group):
            names = trials[0].modules_changed
            inserts[index] = Insert(functions={n: Slot(update, slot) for n, update in zip(names, shared, strict=True)})
        stacks.append(stack)
    return Inserts(inserts, stacks)


def each_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of each trial: (T, n, in), (T, out, in), (T, out) -> (T, n, out)."""
    product: Tensor = _EachLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


class _EachLinear(torch.autograd.Function):
    """Batched products whose gradients come in the layout of the weights, so that nobody has to transpose them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        transposed = weight.transpose(1, 2)
        return torch.bmm(x, transposed) if bias is None else torch.baddbmm(bias[:, None], x, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.bmm(slope, weight) if wanted[0] else None,
            torch.bmm(slope.transpose(1, 2), x) if wanted[1] else None,
            slope.sum(1) if wanted[2] else None,
        )
