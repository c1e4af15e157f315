"""The next token of each row: the likeliest one, or one that is drawn with the request's own random numbers.

A row's draws depend on its logits, its settings and its seed alone, not on the rows beside it.
"""

# V vocabulary

from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_LIKELY = 256  # entries that are looked at before the whole vocabulary is sorted
_LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # below it fp32 has few numbers, and 0


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """What logits are divided by; 0: the likeliest token is taken."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that together have this probability."""
    seed: int = 0


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token drawn by its logits (V,), in fp32; the generator is one of the CPU."""
    temperature = max(sampling.temperature, _LEAST_TEMPERATURE)
    probabilities = torch.softmax((logits - logits.max()) / temperature, dim=0)
    ids = None
    if sampling.top_p < 1.0:
        ids = nucleus(probabilities, sampling.top_p)
        probabilities = probabilities[ids]
    sums = probabilities.double().cumsum(0)
    place = torch.rand((), generator=generator, dtype=torch.float64).to(sums.device) * sums[-1]
    index = torch.searchsorted(sums, place, right=True).clamp(max=len(sums) - 1)
    return int(index if ids is None else ids[index])


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The ids of the fewest tokens that together have the probability `top_p`, likeliest first (Holtzman et al. 2020).

    `probabilities` are (V,).
    """
    values, ids = probabilities.topk(min(_MOST_LIKELY, len(probabilities)))
    if values.sum() < top_p:
        values, ids = probabilities.sort(descending=True)
    kept = values.cumsum(0) - values < top_p
    kept[0] = True  # also where `top_p` is 0 in fp32
    return ids[kept]
