"""Attention is the same whichever way it is computed."""

import pytest
import torch
from torch import Tensor

from prefixray.model.fast_cpu.attention import _attend_in_products, attend_to_long_prefix


@pytest.mark.parametrize("num_heads", [1, 6], ids=["mask of all heads", "mask of each head"])
def test_attention_in_products_is_sdpas(num_heads: int) -> None:
    draw = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(size, generator=draw, dtype=torch.float64) for size in ((2, 6, 4, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    )
    mask = torch.randn(2, num_heads, 4, 7, generator=draw, dtype=torch.float64)
    mask = mask.masked_fill(mask > 1, float("-inf"))
    ours = _attend_in_products(query, key, value, mask, None)
    sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    assert (ours - sdpa.transpose(1, 2)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num_heads", [1, 6], ids=["mask of all heads", "mask of each head"])
@pytest.mark.parametrize("num_kv", [3, 6])
def test_attention_to_one_copy_of_a_prefix_is_that_to_copies(num_kv: int, num_heads: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)

    def leaf(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    prefix = leaf(2, num_kv, 40, 8)
    groups = []
    for num_rows, length in ((3, 5), (1, 9)):
        query, key, value = (leaf(num_rows, length, heads, 8) for heads in (6, num_kv, num_kv))
        mask = torch.randn(num_rows, num_heads, length, length, generator=draw, dtype=torch.float64)
        groups.append((query, key, value, mask.masked_fill(mask > 1, float("-inf")).to(dtype)))
    by_head = [(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask) for q, k, v, mask in groups]
    ours = attend_to_long_prefix(by_head, prefix, None)
    theirs = []
    for query, key, value, mask in by_head:
        copies = prefix[:, None].expand(-1, len(query), -1, -1, -1)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(copies, (key, value), strict=True))
        theirs.append(_attend_in_products(query, keys, values, torch.nn.functional.pad(mask, (40, 0)), None))
    wanted = [prefix, *(one for *tokens, _ in groups for one in tokens)]
    outer = [torch.randn(one.shape, generator=draw, dtype=torch.float64).to(dtype) for one in theirs]
    compared = [
        *zip(ours, theirs, strict=True),
        *zip(torch.autograd.grad(ours, wanted, outer), torch.autograd.grad(theirs, wanted, outer), strict=True),
    ]
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    assert all((one - other).abs().max() <= tolerance * other.abs().max() for one, other in compared)
