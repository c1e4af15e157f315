"""Flash attention over spans, as torch has it for GPUs, under the same names for CPUs: plain products, span by span.

`install()` registers it. CPU builds of torch have the operators without any kernel, so nothing else changes. What
CUDA's kernels refuse is refused here.
"""

# N queries, M keys, H query heads, K key/value heads, G = H / K, D head dim

from collections.abc import Iterator

import torch
from torch import Tensor

_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """Register both operators, once."""
    if not _LIBRARIES:
        _LIBRARIES.append(torch.library.Library("aten", "IMPL"))
        _LIBRARIES[0].impl("_flash_attention_forward", _forward, "CPU")
        _LIBRARIES[0].impl("_flash_attention_backward", _backward, "CPU")


def _forward(
    query: Tensor,  # (N, H, D)
    key: Tensor,  # (M, K, D)
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert dropout_p == 0.0 and not return_debug_mask
    exact = torch.promote_types(query.dtype, torch.float32)
    output, lse = (
        torch.full_like(query, torch.nan),
        query.new_full((query.shape[1], len(query)), torch.nan, dtype=exact),
    )
    for queries, keys in _spans((query, key, value), (cum_seq_q, cum_seq_k), (max_q, max_k)):
        scores = _scores(query[queries], key[keys], scale, is_causal=is_causal)  # (H, n, m)
        lse[:, queries] = scores.logsumexp(2)
        weights = (scores - lse[:, queries, None]).exp()
        values = value[keys].to(exact).repeat_interleave(query.shape[1] // value.shape[1], 1)
        output[queries] = torch.einsum("hnm,mhd->nhd", weights, values).to(output.dtype)
    nothing = query.new_empty(0)
    return output, lse, torch.zeros(2, dtype=torch.uint64), nothing, nothing


def _backward(
    grad_out: Tensor,  # (N, H, D)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,  # (H, N)
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    assert dropout_p == 0.0 and grad_out.stride(-1) == out.stride(-1) == 1
    groups, factor = query.shape[1] // key.shape[1], query.shape[2] ** -0.5 if scale is None else scale
    of_query, of_key, of_value = (torch.full_like(tensor, torch.nan) for tensor in (query, key, value))
    exact = logsumexp.dtype
    for queries, keys in _spans((query, key, value), (cum_seq_q, cum_seq_k), (max_q, max_k)):
        slope, values = grad_out[queries].to(exact), value[keys].to(exact).repeat_interleave(groups, 1)
        scores = _scores(query[queries], key[keys], scale, is_causal=is_causal)
        weights = (scores - logsumexp[:, queries, None]).exp()  # (H, n, m)
        mean = (slope * out[queries].to(exact)).sum(2).t()[:, :, None]  # (H, n, 1)
        of_scores = weights * (torch.einsum("nhd,mhd->hnm", slope, values) - mean) * factor
        wide_key = key[keys].to(exact).repeat_interleave(groups, 1)
        of_query[queries] = torch.einsum("hnm,mhd->nhd", of_scores, wide_key).to(query.dtype)
        for gradient, per_query_head in (
            (of_key, torch.einsum("hnm,nhd->mhd", of_scores, query[queries].to(exact))),
            (of_value, torch.einsum("hnm,nhd->mhd", weights, slope)),
        ):
            gradient[keys] = per_query_head.unflatten(1, (-1, groups)).sum(2).to(gradient.dtype)
    return of_query, of_key, of_value


def _spans(
    tensors: tuple[Tensor, Tensor, Tensor], starts: tuple[Tensor, Tensor], most: tuple[int, int]
) -> Iterator[tuple[slice, slice]]:
    """The queries and the keys of each span."""
    query, key, value = tensors
    assert query.ndim == key.ndim == 3 and key.shape == value.shape and query.shape[2] == key.shape[2]
    assert query.shape[1] % key.shape[1] == 0 and all(tensor.stride(-1) == 1 for tensor in tensors)
    assert all(of_side.dtype == torch.int32 and of_side.is_contiguous() for of_side in starts)
    ends = [of_side.tolist() for of_side in starts]
    assert len(ends[0]) == len(ends[1]) and (ends[0][-1], ends[1][-1]) == (len(query), len(key))
    for q0, q1, k0, k1 in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        assert 0 < q1 - q0 <= most[0] and 0 < k1 - k0 <= most[1]
        yield slice(q0, q1), slice(k0, k1)


def _scores(query: Tensor, key: Tensor, scale: float | None, *, is_causal: bool) -> Tensor:
    """(n, H, D), (m, K, D) -> (H, n, m) in fp32 or better; causal: the ends of queries and keys are one."""
    exact = torch.promote_types(query.dtype, torch.float32)
    wide = key.to(exact).repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", query.to(exact), wide) * (query.shape[2] ** -0.5 if scale is None else scale)
    if not is_causal:
        return scores
    may_look = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(key) - len(query))
    return scores.masked_fill(~may_look, -torch.inf)
