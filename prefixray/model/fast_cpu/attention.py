"""Attention on a CPU: the faster of products and sdpa, and products of its own for a long prefix."""

# B rows of one group, H query heads, K key/value heads, G = H / K, S queries, S' keys, P prefix positions, D head dim

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.plain import RowGroup

LONG_PREFIX = 64  # positions: a prefix of so many or more is worth products of its own


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Attention of queries (B, H, S, D) to keys (B, K, S', D) under a mask that is added to scores: (B, S, H, D)."""
    if _is_slow_for_sdpa(query.dtype) and not dropout:
        return _attend_in_products(query, key, value, mask, scaling)
    output = functional.scaled_dot_product_attention(  # needs no copy of keys and values for each query head
        query, key, value, mask, dropout, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous()


def has_long_prefix(num_positions: int, dtype: torch.dtype) -> bool:
    """Whether `attend_to_long_prefix` is faster for rows of one trial; only with gradients."""
    return num_positions >= LONG_PREFIX and _is_slow_for_sdpa(dtype)


def attend_to_long_prefix(groups: Sequence[RowGroup], prefix: Tensor, scaling: float | None) -> Sequence[Tensor]:
    """Attention in groups of rows of one trial, (B, S, H, D) each, all to one copy of its prefix, (2, K, P, D).

    Masks, (B, 1 or H, S, S'), are those of the rows' own keys, and get no gradient.
    """
    masks = [mask for *_, mask in groups]
    tokens = [tensor for query, key, value, _ in groups for tensor in (query, key, value)]
    outputs: tuple[Tensor, ...] = _LongPrefixAttention.apply(prefix, scaling, masks, *tokens)  # type: ignore[no-untyped-call]
    return outputs


class _LongPrefixAttention(torch.autograd.Function):
    """Products with the prefix and products with a row's own tokens, around one softmax over both.

    All tensors begin with the heads, so that all rows of a group stand one behind another for the prefix. Products take
    longer on a part of a tensor, since they copy it each time: so the two parts of the softmax' result are copied once
    before.
    """

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, scaling: float | None, masks: list[Tensor], *tokens: Tensor) -> Any:  # noqa: ANN401
        ctx.scaling = scaling or prefix.shape[3] ** -0.5
        prefix_key, prefix_value = prefix[0].transpose(1, 2).contiguous(), prefix[1]  # (K, D, P), (K, P, D)
        num_kv, _, num_positions = prefix_key.shape
        saved, outputs = [prefix], []
        for by_row, key, value, mask in zip(tokens[::3], tokens[1::3], tokens[2::3], masks, strict=True):
            num_rows, num_heads, length, dim = by_row.shape
            groups, num_columns = num_heads // num_kv, num_positions + key.shape[2]

            # Heads first: scaled queries as (K, B * G * S, D), the rows' own keys and values as (K * B, S', D).
            by_head = by_row.new_empty(num_kv, num_rows, groups, length, dim)
            torch.mul(by_row.unflatten(1, (num_kv, groups)).transpose(0, 1), ctx.scaling, out=by_head)
            query = by_head.view(num_kv, -1, dim)
            own_key, own_value = (own.transpose(0, 1).flatten(0, 1) for own in (key, value))

            # Scores of the prefix and of the own tokens side by side, under the mask; one softmax over both.
            weights = query.new_empty(num_kv, num_rows, groups, length, num_columns)
            of_prefix, of_own = _parts(weights, num_positions)
            torch.bmm(query, prefix_key, out=of_prefix)
            torch.bmm(query.view(len(own_key), -1, dim), own_key.transpose(1, 2), out=of_own)
            masked = weights[..., num_positions:]
            masked += mask.unflatten(1, (-1, 1) if mask.shape[1] == 1 else (num_kv, groups)).transpose(0, 1)
            torch.softmax(weights, 4, out=weights)

            # Weighted sums of both kinds of values, back in the order (B, S, H, D).
            of_prefix, of_own = of_prefix.contiguous(), of_own.contiguous()
            output = torch.bmm(of_own, own_value).view_as(query).baddbmm_(of_prefix, prefix_value)
            outputs.append(output.view_as(by_head).permute(1, 3, 0, 2, 4).reshape(num_rows, length, num_heads, dim))
            saved += [query, own_key, own_value, weights, of_prefix, of_own]
        ctx.save_for_backward(*saved)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        prefix, *saved = ctx.saved_tensors
        prefix_value, num_positions = prefix[1].transpose(1, 2).contiguous(), prefix.shape[2]  # (K, D, P)
        prefix_gradient = torch.zeros_like(prefix)
        token_gradients: list[Tensor] = []
        for start, by_row in zip(range(0, len(saved), 6), gradients, strict=True):
            query, key, value, weights, of_prefix, of_own = saved[start : start + 6]
            num_kv, num_rows, groups, _, _ = weights.shape

            # The gradient of the output, heads first; and, like the queries, cut by rows.
            by_head = by_row.unflatten(2, (num_kv, groups)).permute(2, 0, 3, 1, 4).contiguous()  # (K, B, G, S, D)
            given = by_head.view_as(query)
            own_query, own_given = (tensor.view(len(key), -1, tensor.shape[2]) for tensor in (query, given))

            # Values: the softmax' weights times the output's gradient.
            prefix_gradient[1].baddbmm_(of_prefix.transpose(1, 2), given)
            value_gradient = torch.bmm(of_own.transpose(1, 2), own_given)

            # Weights: the output's gradient times the values, side by side; then back through the softmax.
            scores = torch.empty_like(weights)
            of_prefix, of_own = _parts(scores, num_positions)
            torch.bmm(given, prefix_value, out=of_prefix)
            torch.bmm(own_given, value.transpose(1, 2), out=of_own)
            torch._softmax_backward_data(scores, weights, 4, weights.dtype, grad_input=scores)

            # Queries and both kinds of keys; the saved queries are scaled, the keys are not.
            of_prefix, of_own = of_prefix.contiguous(), of_own.contiguous()
            query_gradient = torch.bmm(of_own, key).view_as(query).baddbmm_(of_prefix, prefix[0]).mul_(ctx.scaling)
            prefix_gradient[0].baddbmm_(of_prefix.transpose(1, 2), query)
            key_gradient = torch.bmm(of_own.transpose(1, 2), own_query)

            # Rows first again.
            token_gradients.append(query_gradient.view_as(by_head).transpose(0, 1).flatten(1, 2))
            for gradient in (key_gradient, value_gradient):
                token_gradients.append(gradient.unflatten(0, (num_kv, num_rows)).transpose(0, 1))
        return prefix_gradient, None, None, *token_gradients


def _parts(scores: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """Views of (K, B, G, S, P + S'): the prefix' (K, B * G * S, P), and the rows' own (K * B, G * S, S')."""
    of_prefix, of_own = scores.flatten(1, 3), scores.flatten(0, 1).flatten(1, 2)
    return of_prefix[..., :num_positions], of_own[..., num_positions:]


def _is_slow_for_sdpa(dtype: torch.dtype) -> bool:
    """Whether products are faster than sdpa: in bf16 with gradients (see `attention in products` in the ablation)."""
    return dtype == torch.bfloat16 and torch.is_grad_enabled()


def _attend_in_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention as two matrix products around a softmax, (B, S, H, D)."""
    num_rows, num_heads, length, dim = query.shape
    num_kv = key.shape[1]
    scaled = query.reshape(num_rows, num_kv, -1, dim) * (scaling or dim**-0.5)  # (B, K, G * S, D)
    scores = (scaled @ key.transpose(2, 3)).view(num_rows, num_heads, length, -1)
    weights = torch.softmax(scores + mask, dim=3)
    output: Tensor = weights.view(num_rows, num_kv, -1, key.shape[2]) @ value
    return output.view(num_rows, num_heads, length, dim).transpose(1, 2).contiguous()
