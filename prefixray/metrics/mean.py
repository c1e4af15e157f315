"""Metrics that score each source by itself: their statistics and their formula."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def count_one_by_one(scores: Sequence[float]) -> NDArray[np.float64]:
    """Per source: its score and a one (N, 2)."""
    return np.column_stack([scores, np.ones(len(scores))])


def mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over sources, from the summed scores and the number of sources (R, 2) -> (R,)."""
    score: NDArray[np.float64] = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return score
