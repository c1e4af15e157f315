"""The order in which a trial sees its examples: in each epoch a new permutation, determined by seed and epoch alone."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from prefixray.config.seeds import derive_seed


def example_indices(start: int, count: int, *, num_examples: int, seed: int) -> list[int]:
    """Indices of the examples `start` to `start + count` of the endless sequence of epochs."""
    assert num_examples > 0, "there is something to train on"
    positions = (divmod(position, num_examples) for position in range(start, start + count))
    return [int(_permutation(num_examples, seed, epoch)[offset]) for epoch, offset in positions]


@functools.lru_cache(maxsize=64)  # trials of one replicate share a seed, and stand in few epochs
def _permutation(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    draw = torch.Generator().manual_seed(derive_seed(seed, epoch, "epoch"))
    permutation: NDArray[np.int64] = torch.randperm(num_examples, generator=draw).numpy()
    return permutation
