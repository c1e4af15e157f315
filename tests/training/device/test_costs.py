"""What follows for a pack from two measured steps."""

import pytest

from prefixray.planning.slots import num_slots
from prefixray.training.device.costs import MeasuredStep, costs_of

GIB = 1 << 30


def test_a_wide_base_has_cheap_pieces_and_memory_decides_how_large_they_are() -> None:
    """A launch-bound step of 8 ms; 2.6 us and 1 MiB a token."""
    small, large = MeasuredStep(64, 8e-3, GIB), MeasuredStep(64 + 16384, 8e-3 + 16384 * 2.6e-6, GIB + 16384 * 2**20)
    roomy = costs_of(small, large, width=1024, free_bytes=78 * GIB)
    assert (roomy.token_budget, roomy.piece, roomy.group) == (16384, 2048, 2048)  # 8, 1 and 1.28 times 3,077
    assert roomy.step_bytes == 17 * GIB
    tight = costs_of(small, large, width=1024, free_bytes=22 * GIB)
    assert (tight.token_budget, tight.piece) == (8192, 2048)
    assert tight.step_bytes == 9 * GIB


def test_where_more_tokens_take_no_longer_they_run_as_one() -> None:
    small = MeasuredStep(64, 3e-3, GIB)
    for seconds in (3e-3, 2.9e-3):  # launches alone; noise
        costs = costs_of(small, MeasuredStep(16448, seconds, GIB + 16384), width=384, free_bytes=78 * GIB)
        assert (costs.token_budget, costs.piece, costs.group) == (1 << 16,) * 3


def test_noise_in_the_times_seldom_changes_the_cut() -> None:
    cuts = set()
    for noise in (0.9, 0.95, 1.0, 1.05, 1.1):
        small, large = MeasuredStep(64, noise * 8e-3, GIB), MeasuredStep(16448, 50e-3, 17 * GIB)
        costs = costs_of(small, large, width=768, free_bytes=78 * GIB)
        cuts.add((costs.token_budget, costs.piece, costs.group))
    assert len(cuts) == 1


@pytest.mark.parametrize(("free", "expected"), [(24 * GIB, 12), (80 * GIB, 63), (9 * GIB, 1)])
def test_trials_get_the_memory_beside_measured_activations(free: int, expected: int) -> None:
    assert num_slots(free, GIB, step_bytes=10 * GIB) == expected
    assert num_slots(free, GIB) == int(0.6 * free / GIB), "where nothing was measured"
