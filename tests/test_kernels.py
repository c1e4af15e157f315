"""Attention is the same whichever way it is computed."""

import pytest
import torch

from prefixray.kernels import _attend_in_products


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
