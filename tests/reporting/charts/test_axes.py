"""Where an axis of losses ends."""

import pytest

from prefixray.reporting.charts.axes import upper_limit
from prefixray.reporting.figures import loss_limits


def test_a_trial_that_went_wrong_does_not_take_the_axis() -> None:
    assert upper_limit([1.5, 1.6], [1.5, 1.6, 1.8, 2.0, 15.0]) == pytest.approx(2.1)
    assert upper_limit([5.0], [1.5, 1.6, 5.0]) == 5.0, "what is settled always fits"
    assert loss_limits([], [2.0]) == (2.0, 2.1)
