"""The order in which a trial sees its examples."""

import torch

from prefixray.system.seeds import derive_seed


class Order:
    """A new permutation of all examples in each epoch, which depends on the seed and the epoch alone."""

    def __init__(self, num_examples: int, seed: int) -> None:
        assert num_examples > 0, "there is something to train on"
        self._num_examples, self._seed = num_examples, seed
        self._epoch, self._permutation = -1, list[int]()

    def at(self, start: int, count: int) -> list[int]:
        """Indices of the examples `start` to `start + count` of the endless sequence of epochs."""
        return [self._index(position) for position in range(start, start + count)]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self._num_examples)
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(derive_seed(self._seed, epoch, "epoch"))
            self._epoch, self._permutation = epoch, torch.randperm(self._num_examples, generator=draw).tolist()
        return self._permutation[offset]
