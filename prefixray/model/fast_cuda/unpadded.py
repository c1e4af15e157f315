"""Attention of a line's tokens without padding, by flash attention over spans.

A token looks at two sets of keys: those of its own row, up to itself, and all positions of its trial's prefix, of which
there is one copy. Flash attention gives the output over each set and the logarithm of the sum of the exponentials of
its scores (`lse`). The two merge into the output over both: weighted means, with shares of the sums as weights. Flash's
backward recomputes the weights of the softmax from an `lse`. With the merged one they are those of the softmax over
both sets, so each part gives its keys' and values' gradients, and the queries' are the sum.

These are the operators beneath `torch.nn.attention.varlen`, whose own backward merges nothing.
"""

# N tokens, M keys, H query heads, K key/value heads, P prefix positions of all trials, D head dim

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefixray.model.plain import LinePrefix, Spans

DTYPES = (torch.bfloat16, torch.float16)


def knows(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether flash attention is there, and knows such tensors."""
    return dtype in DTYPES and head_dim % 8 == 0 and head_dim <= _widest_head()


@cache
def _widest_head() -> int:
    """The widest head for which this device has flash attention with gradients; 0 without it."""
    has_flash = torch.cuda.is_available() and torch.backends.cuda.is_flash_attention_available()
    if not has_flash or torch.cuda.get_device_capability() < (8, 0):
        return 0
    return 192 if (8, 6) <= torch.cuda.get_device_capability() <= (8, 9) else 256  # cards with less shared memory


def attend(
    query: Tensor, key: Tensor, value: Tensor, own: Spans, prefix: LinePrefix | None, scaling: float | None
) -> Tensor:
    """Attention of queries (N, H, D) to keys (N, K, D) of their own spans and to their trials' prefixes: (N, H, D)."""
    scale = query.shape[2] ** -0.5 if scaling is None else scaling
    output: Tensor = _Unpadded.apply(query, key, value, *(prefix or (None, None, None)), own, scale)  # type: ignore[no-untyped-call]
    return output


class _Unpadded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor | None,  # (P, K, D)
        prefix_value: Tensor | None,
        of_prefix: Spans | None,
        own: Spans,
        scale: float,
    ) -> Tensor:
        if own.key_tokens is not None:
            key, value = key.index_select(0, own.key_tokens), value.index_select(0, own.key_tokens)  # (M, K, D)
        output, lse = _flash(query, key, value, own, scale, is_causal=True)
        if prefix_key is not None and prefix_value is not None and of_prefix is not None:
            over_prefix, prefix_lse = _flash(query, prefix_key, prefix_value, of_prefix, scale, is_causal=False)
            share = torch.sigmoid(prefix_lse - lse, out=output.new_empty(lse.shape))  # (H, N)
            output = torch.lerp(output, over_prefix, share.t()[:, :, None])
            lse = torch.logaddexp(lse, prefix_lse)
        ctx.save_for_backward(query, key, value, prefix_key, prefix_value, output, lse)
        ctx.own, ctx.of_prefix, ctx.scale = own, of_prefix, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        query, key, value, prefix_key, prefix_value, output, lse = ctx.saved_tensors
        given = slope, query, output, lse
        of_query: Tensor | None = None
        of_own: Sequence[Tensor | None] = (None, None)  # keys and values
        of_prefix: Sequence[Tensor | None] = (None, None)
        if any(ctx.needs_input_grad[:3]):  # not in the first layer of a frozen base
            of_query, *copies = _flash_back(given, key, value, ctx.own, ctx.scale, is_causal=True)
            of_own = [_of_tokens(of_keys, ctx.own, len(query)) for of_keys in copies]
        if prefix_key is not None:
            over_prefix, *of_prefix = _flash_back(
                given, prefix_key, prefix_value, ctx.of_prefix, ctx.scale, is_causal=False
            )
            of_query = over_prefix if of_query is None else of_query.add_(over_prefix)
        return of_query, *of_own, *of_prefix, None, None, None


def _of_tokens(of_keys: Tensor, spans: Spans, num_tokens: int) -> Tensor:
    """The gradient of each token, (N, K, D), from those of the keys that are its copies, (M, K, D)."""
    if spans.key_tokens is None:
        return of_keys
    return of_keys.new_zeros(num_tokens, *of_keys.shape[1:]).index_add_(0, spans.key_tokens, of_keys)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The output, (N, H, D), and the logarithms of the sums, (H, N)."""
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *_places(spans), 0.0, is_causal, return_debug_mask=False, scale=scale
    )
    return output, lse


def _flash_back(
    given: tuple[Tensor, Tensor, Tensor, Tensor],
    key: Tensor,
    value: Tensor,
    spans: Spans,
    scale: float,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values, given that of the output, the queries, the output and its `lse`."""
    slope, query, output, lse = given
    no_dropout = _no_dropout(query.device)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        slope, query, key, value, output, lse, *_places(spans), 0.0, is_causal, *no_dropout, scale=scale
    )
    return gradients


def _places(spans: Spans) -> tuple[Tensor, Tensor, int, int]:
    return spans.query_starts, spans.key_starts, spans.most_queries, spans.most_keys


@cache
def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """The state of a generator, which the backward asks for and does not read."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.empty(0, device=device)
