"""Draws: transformers' own nucleus, and the model's own distribution."""

import pytest
import torch
from transformers import TopPLogitsWarper

from prefixray.serving.drawing import Sampling, draw, nucleus


@pytest.mark.parametrize("spread", [0.1, 3.0])  # flat: more than the likeliest 256 are needed
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95])
def test_the_nucleus_is_that_of_transformers(spread: float, top_p: float) -> None:
    logits = spread * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].isfinite().nonzero()[:, 0]
    assert sorted(nucleus(logits.softmax(0), top_p).tolist()) == kept.tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.7, 1e-50), (1e-40, 0.9), (1e-40, 1.0), (1e-50, 0.9), (1e-50, 1.0)]
)
def test_a_nucleus_or_a_temperature_that_is_nothing_in_fp32_leaves_the_likeliest(
    temperature: float, top_p: float
) -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert draw(logits, Sampling(temperature, top_p), torch.Generator().manual_seed(1)) == 1


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, float("-inf")])
    generator = torch.Generator().manual_seed(1)
    for sampling, expected in (
        (Sampling(temperature=2.0), (logits / 2).softmax(0)),
        (Sampling(temperature=1.0, top_p=0.8), torch.tensor([0.0, 0.7311, 0.2689, 0.0, 0.0])),
    ):
        drawn = [draw(logits, sampling, generator) for _ in range(4000)]
        shares = torch.bincount(torch.tensor(drawn), minlength=5) / len(drawn)
        assert (shares - expected).abs().max() < 0.03  # four standard deviations of a share of one half
