"""The learning rate of each step, and the seeds of each trial."""

import math

import pytest
from support.packs import FLAT, SEEDS, trial_of

from prefixray.training.member import Seeds, learning_rate


def test_learning_rates_are_the_hand_worked_ones() -> None:
    def rates(schedule: str, warmup_steps: int) -> list[float]:
        trial = trial_of(FLAT.method, 8.0, num_steps=6, warmup_steps=warmup_steps, schedule=schedule)
        return [learning_rate(trial, step) for step in range(6)]

    assert rates("linear", 2) == pytest.approx([4, 8, 8, 6, 4, 2])
    assert rates("linear", 0) == pytest.approx([8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6])
    half = 8 * (1 + math.sqrt(0.5)) / 2
    assert rates("cosine", 2) == pytest.approx([4, 8, 8, half, 4, 8 - half])
    assert rates("constant", 4) == pytest.approx([2, 4, 6, 8, 8, 8])
    assert rates("linear", 5) == pytest.approx([1.6, 3.2, 4.8, 6.4, 8, 8])


def test_the_seeds_of_a_replicate_are_shared_and_each_has_its_purpose() -> None:
    assert Seeds.derive(1, 0) == SEEDS
    all_of_them = [Seeds.derive(seed, replicate) for seed in (1, 2) for replicate in (0, 1)]
    assert len({number for seeds in all_of_them for number in (seeds.data, seeds.init, seeds.dropout)}) == 12
