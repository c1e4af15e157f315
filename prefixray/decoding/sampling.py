"""Sampling: each token is drawn from the model's own distribution, as transformers' `generate` draws it."""

# N sources, V vocabulary

from collections.abc import Sequence

import torch
from pydantic import PositiveFloat
from torch import Tensor

from prefixray.config.schema import DecodingSettings
from prefixray.decoding.beam_search import BeamSearch, GreedySearch, start_search


class SampledSettings(DecodingSettings):
    """Settings under which tokens are drawn. No sweep has them: its hypotheses do not depend on chance."""

    temperature: PositiveFloat
    """What logits are divided by: below 1 likely tokens become likelier."""


class SampledSearch(GreedySearch):
    """One drawn token of each source, step by step, by torch's own generator of random numbers."""

    def __init__(self, last: Tensor, decoding: SampledSettings, eos_id: int, *, banned: Sequence[int] = ()) -> None:
        super().__init__(last, decoding, eos_id, banned=banned)
        self._temperature = decoding.temperature

    def _choose(self, allowed: Tensor) -> Tensor:
        """The next ids, (N,), drawn by logits in which forbidden ids are -inf, (N, V)."""
        return torch.multinomial(torch.softmax(allowed / self._temperature, dim=1), 1)[:, 0]


def search_for(
    last: Tensor, decoding: DecodingSettings, eos_id: int, prompt_lengths: Tensor, banned: Sequence[int] = ()
) -> BeamSearch | GreedySearch:
    """As `start_search`; under `SampledSettings` the search draws."""
    if isinstance(decoding, SampledSettings):
        return SampledSearch(last, decoding, eos_id, banned=banned)
    return start_search(last, decoding, eos_id, prompt_lengths, banned)
