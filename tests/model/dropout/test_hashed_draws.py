"""Draws that are hashes: as often as they should, independent of each other, and the same in parts."""

import pytest
import torch
from torch import Tensor

from prefixray.model.dropout.hashed_draws import draws_of, key_of, least_kept

CPU = torch.device("cpu")
SHAPE = (300, 300)


def dropped(p: float, key: int, index: int = 0) -> Tensor:
    return (draws_of(key, SHAPE, index=index, device=CPU) < least_kept(p)).double()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_elements_are_dropped_as_often_as_they_should_in_each_row_and_channel(p: float) -> None:
    mask = dropped(p, key_of(7, 3))
    assert float(mask.mean()) == pytest.approx(p, abs=5 * (p * (1 - p) / mask.numel()) ** 0.5)
    for axis in (0, 1):
        assert float((mask.mean(axis) - p).abs().max()) < 5 * (p * (1 - p) / SHAPE[axis]) ** 0.5


def test_steps_seeds_places_and_neighbours_are_independent() -> None:
    mask = dropped(0.3, key_of(7, 3)) - 0.3
    others = [dropped(0.3, key_of(*numbers), index) - 0.3 for *numbers, index in [(7, 4, 0), (8, 3, 0), (7, 3, 1)]]
    for other in [*others, mask.t(), mask.roll(1, 0), mask.roll(1, 1), mask.flip(0)]:
        assert abs(float((mask * other).mean())) < 5 * 0.3 * 0.7 / SHAPE[0]


def test_the_draws_of_a_part_and_of_stacked_keys_are_the_same() -> None:
    keys = [key_of(7, step) for step in (1, 2)]
    stacked = draws_of(torch.tensor(keys, dtype=torch.int32)[:, None], (5, 8), index=2, device=CPU)
    for key, drawn in zip(keys, stacked, strict=True):
        assert torch.equal(draws_of(key, (600, 8), index=2, device=CPU)[:5], drawn)
