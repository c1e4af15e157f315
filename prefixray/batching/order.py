"""The order in which a trial sees its examples."""

from collections.abc import Sequence

import torch

from prefixray.system.seeds import derive_seed


class Order:
    """The order in which a trial sees its examples: a permutation per epoch, a function of the seed and the step."""

    def __init__(self, groups: Sequence[Sequence[int]], seed: int) -> None:
        """Groups of examples, each of which stays together."""
        assert groups, "there is something to train on"
        self._groups, self._seed = groups, seed
        self._num_rows = sum(map(len, groups))
        self._epoch, self._permutation = -1, list[int]()

    def at(self, start: int, count: int) -> list[int]:
        """Indices of the examples `start` to `start + count` of the endless sequence of epochs."""
        return [self._index(position) for position in range(start, start + count)]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self._num_rows)
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(derive_seed(self._seed, epoch, "epoch"))
            shuffled = torch.randperm(len(self._groups), generator=draw).tolist()
            self._epoch, self._permutation = epoch, [index for group in shuffled for index in self._groups[group]]
        return self._permutation[offset]
