"""Scores of what a model makes of the references' tokens, each given those before it: no hypothesis is read.

The statistics of a source are a sum over the tokens of its first reference, the end token included, and their number.
Nothing needs to be written well to tell two models apart by them.
"""

import numpy as np
from numpy.typing import NDArray

SIGNATURE = "tokens:the base's|refs:first|mean over tokens"


def perplexity(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponential of the mean loss, from summed negative log-likelihoods and numbers of tokens (R, 2) -> (R,)."""
    score: NDArray[np.float64] = np.exp(sums[:, 0] / np.maximum(sums[:, 1], 1))
    return score
