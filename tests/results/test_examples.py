"""The sources that a report shows: extremes of all arms, each once."""

import numpy as np

from prefixray.results.examples import NUM_EXTREMES, choose_extremes


def test_the_extremes_of_each_arm_are_chosen_in_turn_among_all_sources() -> None:
    reference = np.full(200, 50.0)
    first, second = reference.copy(), reference.copy()
    first[[150, 160]] = [10.0, 90.0]
    second[[170, 180, 150]] = [30.0, 80.0, 0.0]
    scores = {"untuned": np.zeros(200), "prefix": first, "adapter": second, "finetune": reference}
    chosen = choose_extremes(scores, "finetune", 1.0)
    assert chosen == {150: "prefix", 160: "prefix", 170: "adapter", 180: "adapter"}, "150 is shown once"
    scores["prefix"] = np.linspace(0, 100, 200)
    chosen = choose_extremes(scores, "finetune", 1.0)
    assert len(chosen) == NUM_EXTREMES and {0, 199} <= set(chosen)
