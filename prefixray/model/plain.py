"""The plain backend: a model as stock torch runs it.

It is the reference that every faster backend must agree with, and it declares what a backend may do in another way.
"""

# B rows, H query heads, K key/value heads, S queries, S' keys, P prefix positions, D head dim
# n tokens, W width of the model, V vocabulary; N tokens of a line, M keys of all spans

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Product = Callable[[Tensor], Tensor]
RowGroup = tuple[Tensor, Tensor, Tensor, Tensor]  # queries, keys, values and mask of rows of like length


@dataclass(frozen=True)
class Spans:
    """Which keys the queries of a line look at: those of a span at the keys of the same span, and at no others."""

    query_starts: Tensor  # (spans + 1,) int32: where each span's queries start, and the end of the last
    key_starts: Tensor  # the same of the keys
    most_queries: int  # of a span
    most_keys: int
    key_tokens: Tensor | None = None  # (M,) the line's token at each key; None: the keys stand in this order already


LinePrefix = tuple[Tensor, Tensor, Spans]  # keys and values, (P of all trials, K, D), and which tokens see which


class PlainBackend:
    """Stock torch."""

    stacks_trials = False
    """Whether the tensors of trials of one method are stacked, so that one product serves all of them."""
    updates_together = False
    """Whether all trials of a pack are updated at once; else one by one, and one network at a time has gradients."""
    lays_ahead = False
    """Whether the next step is laid out while the device works on this one."""
    mask_multiple = 1
    """The rows of a mask lie apart in memory by a multiple of so many numbers."""
    reads_at_once = False
    """Whether the host has a value without waiting for the device, so that what is done may depend on it."""
    reads_late = False
    """Whether decoding reads what a step has found behind the launch of the next one, so that the device has work."""

    def frozen(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Run a frozen model, in training or in an evaluation.

        Gradients flow to its inputs, to prefixes and to what hooks add, not to its weights.
        """
        return nullcontext()

    def evaluation(self, model: PreTrainedModel, *, has_hooks: bool) -> AbstractContextManager[None]:
        """Run a frozen model without gradients; with `has_hooks`, hooks use the outputs of single layers."""
        return self.frozen(model)

    def decoding(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Run a model without gradients, many times, with few rows each time."""
        return nullcontext()

    def serving(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """As `decoding`, with any number of rows, often one."""
        return nullcontext()

    def attend(
        self,
        module: nn.Module,
        query: Tensor,  # (B, H, S, D)
        key: Tensor,  # (B, K, S', D)
        value: Tensor,
        mask: Tensor,  # (B, 1 or H, S, S'), added to the scores
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        """The output of an attention module, (B, S, H, D), with the options that transformers calls it with."""
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]

    def has_long_prefix(self, num_positions: int, dtype: torch.dtype) -> bool:
        """Whether rows of a trial with so many prefix positions should go through `attend_to_long_prefix`.

        The answer is for the current mode of gradients.
        """
        return False

    def attend_to_long_prefix(
        self, groups: Sequence[RowGroup], prefix: Tensor, scaling: float | None
    ) -> Sequence[Tensor]:
        """Attention in groups of rows of one trial, (B, S, H, D) each, to one copy of its prefix, (2, K, P, D).

        A group's mask, (B, 1 or H, S, S'), covers the rows' own keys, and gets no gradient.
        """
        raise NotImplementedError("this backend has no attention of its own to long prefixes")

    def attends_unpadded(self, query: Tensor) -> bool:
        """Whether tokens of a line with such queries should go through `attend_unpadded`."""
        return False

    def attend_unpadded(
        self,
        query: Tensor,  # (N, H, D)
        key: Tensor,  # (N, K, D)
        value: Tensor,
        own: Spans,
        prefix: LinePrefix | None,
        scaling: float | None,
    ) -> Tensor:
        """Attention of a line's tokens without padding, (N, H, D).

        A token looks at its own span up to itself, the ends of queries and keys being one, and at all of its trial's
        prefix.
        """
        raise NotImplementedError("this backend has no attention of its own without padding")

    def head_products(self, weight: Tensor, bias: Tensor | None) -> tuple[Product, Product]:
        """Products with a frozen head, (V, W): hidden states (n, W) -> logits (n, V), and gradients (n, V) -> (n, W).

        Neither records gradients.
        """
        return lambda hidden: functional.linear(hidden, weight, bias), lambda slopes: functional.linear(
            slopes, weight.t()
        )
