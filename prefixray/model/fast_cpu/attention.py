"""Attention itself, once prefixes stand before keys and values: the fastest of the ways there are to compute it."""

# B rows, T trials, H query heads, K key/value heads, G = H / K, S queries, S' keys, P prefix positions, D head dim

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.plain import RowGroup

LONG_PREFIX = 64  # positions, from which on a prefix is worth products of its own
VECTOR = 32  # columns: a softmax and its backward take longer over 272 columns than over 288


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
    tokens = [one for query, key, value, _ in groups for one in (query, key, value)]
    outputs: tuple[Tensor, ...] = _LongPrefixAttention.apply(prefix, scaling, masks, *tokens)  # type: ignore[no-untyped-call]
    return outputs


class _LongPrefixAttention(torch.autograd.Function):
    """Products with the prefix and others with a row's own tokens, around one softmax over both.

    All tensors begin with the heads, so that the rows stand one behind another for the prefix. The softmax' columns are
    filled up. Its two parts are copied before products: these take longer on a part, since they copy it each time.
    """

    @staticmethod
    def forward(ctx: Any, prefix: Tensor, scaling: float | None, masks: list[Tensor], *tokens: Tensor) -> Any:  # noqa: ANN401
        ctx.scaling = scaling or prefix.shape[3] ** -0.5
        turned, prefix_value = prefix[0].transpose(1, 2).contiguous(), prefix[1]
        num_kv, _, num_positions = turned.shape
        kept, outputs = [prefix], []
        for by_row, key, value, mask in zip(tokens[::3], tokens[1::3], tokens[2::3], masks, strict=True):
            num_rows, num_heads, length, dim = by_row.shape
            groups, end = num_heads // num_kv, num_positions + key.shape[2]
            by_head = by_row.new_empty(num_kv, num_rows, groups, length, dim)
            torch.mul(by_row.unflatten(1, (num_kv, groups)).transpose(0, 1), ctx.scaling, out=by_head)
            query = by_head.view(num_kv, -1, dim)  # (K, B * G * S, D)
            own_key, own_value = (own.transpose(0, 1).flatten(0, 1) for own in (key, value))  # (K * B, S', D)
            weights = query.new_empty(num_kv, num_rows, groups, length, _rounded_up(end))
            of_prefix, of_own, fillers = _parts(weights, num_positions, end)
            torch.bmm(query, turned, out=of_prefix)
            torch.bmm(query.view(len(own_key), -1, dim), own_key.transpose(1, 2), out=of_own)
            fillers.fill_(float("-inf"))
            masked = weights[..., num_positions:end]
            masked += mask.unflatten(1, (-1, 1) if mask.shape[1] == 1 else (num_kv, groups)).transpose(0, 1)
            torch.softmax(weights, 4, out=weights)
            of_prefix, of_own = of_prefix.contiguous(), of_own.contiguous()
            output = torch.bmm(of_own, own_value).view_as(query).baddbmm_(of_prefix, prefix_value)
            outputs.append(output.view_as(by_head).permute(1, 3, 0, 2, 4).reshape(num_rows, length, num_heads, dim))
            kept += [query, own_key, own_value, weights, of_prefix, of_own]
        ctx.save_for_backward(*kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        prefix, *kept = ctx.saved_tensors
        turned, num_positions = prefix[1].transpose(1, 2).contiguous(), prefix.shape[2]
        of_prefixes = torch.zeros_like(prefix)
        of_tokens: list[Tensor] = []
        for start, by_row in zip(range(0, len(kept), 6), gradients, strict=True):
            query, key, value, weights, of_prefix, of_own = kept[start : start + 6]
            num_kv, num_rows, groups, _, _ = weights.shape
            by_head = by_row.unflatten(2, (num_kv, groups)).permute(2, 0, 3, 1, 4).contiguous()  # (K, B, G, S, D)
            given = by_head.view_as(query)
            own_query, own_given = (one.view(len(key), -1, one.shape[2]) for one in (query, given))
            of_prefixes[1].baddbmm_(of_prefix.transpose(1, 2), given)
            of_value = torch.bmm(of_own.transpose(1, 2), own_given)
            scores = torch.empty_like(weights)
            of_prefix, of_own, fillers = _parts(scores, num_positions, num_positions + key.shape[1])
            torch.bmm(given, turned, out=of_prefix)
            torch.bmm(own_given, value.transpose(1, 2), out=of_own)
            fillers.zero_()
            torch._softmax_backward_data(scores, weights, 4, weights.dtype, grad_input=scores)
            of_prefix, of_own = of_prefix.contiguous(), of_own.contiguous()
            of_query = torch.bmm(of_own, key).view_as(query).baddbmm_(of_prefix, prefix[0]).mul_(ctx.scaling)
            of_prefixes[0].baddbmm_(of_prefix.transpose(1, 2), query)
            of_key = torch.bmm(of_own.transpose(1, 2), own_query)
            of_tokens.append(of_query.view_as(by_head).transpose(0, 1).flatten(1, 2))
            of_tokens += [own.unflatten(0, (num_kv, num_rows)).transpose(0, 1) for own in (of_key, of_value)]
        return of_prefixes, None, None, *of_tokens


def _parts(scores: Tensor, num_positions: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of (K, B, G, S, columns): the prefix' (K, B * G * S, P), the rows' own (K * B, G * S, S'), fillers."""
    of_prefix, of_own = scores.flatten(1, 3), scores.flatten(0, 1).flatten(1, 2)
    return of_prefix[..., :num_positions], of_own[..., num_positions:end], scores[..., end:]


def _is_slow_for_sdpa(dtype: torch.dtype) -> bool:
    """Training in bf16: a step of a 6-layer GPT-2 takes 0.47 s without sdpa and 0.54 s with it (AMX: 0.70 and 0.90)."""
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


def _rounded_up(num_columns: int) -> int:
    return -(-num_columns // VECTOR) * VECTOR
