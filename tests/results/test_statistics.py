"""The intervals and tests, on simulated data whose right answer is known.

A simulated source has a difficulty that all arms share, and noise of its own in each arm and seed; the corpus score is
the mean. All draws are seeded, so nothing here is a matter of luck; the bounds are those that a right procedure would
miss once in a thousand other seeds.
"""

from itertools import pairwise

import numpy as np
import pytest

from prefixray.metrics import Scored, score
from prefixray.results import statistics
from prefixray.results.statistics import Estimate, compare, holm, intervals, resolution, sd

NUM_SOURCES = 100
NUM_WORLDS = 400


def mean_of(values: np.ndarray) -> Scored:
    """A metric that is the mean of these values, one per source."""
    return Scored("cider", np.column_stack([values, np.ones(len(values))]), "")


def world(draw: np.random.Generator, *, num_seeds: tuple[int, ...], gain: float = 0.0) -> dict[str, list[Scored]]:
    """Arms "0", "1", ... whose true score is 1, but for the first's, which is 1 + gain."""
    difficulty = draw.normal(size=NUM_SOURCES)
    return {
        str(arm): [
            mean_of(1 + gain * (arm == 0) + difficulty + 0.5 * draw.normal(size=NUM_SOURCES)) for _ in range(count)
        ]
        for arm, count in enumerate(num_seeds)
    }


def holds(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    return estimate.low <= truth <= estimate.high


def test_intervals_hold_the_truth_in_95_of_100_worlds() -> None:
    draw = np.random.default_rng(1)
    firsts = [
        intervals(world(draw, num_seeds=(1, 1), gain=0.1), "1", seed=i, num_resamples=400)[0] for i in range(NUM_WORLDS)
    ]
    # 3.1 standard errors (0.011) to either side, and 0.005 below for the percentile interval at 100 sources
    assert 0.911 < np.mean([holds(first.score, 1.1) for first in firsts]) < 0.984
    assert 0.911 < np.mean([holds(first.difference, 0.1) for first in firsts]) < 0.984


def seeded(draw: np.random.Generator, effects: np.ndarray) -> list[Scored]:
    """Runs whose true scores are these; their sources have noise of 0.5."""
    return [mean_of(effect + 0.5 * draw.normal(size=NUM_SOURCES)) for effect in effects]


def test_seeds_that_differ_are_in_the_interval_as_far_as_their_number_allows() -> None:
    draw = np.random.default_rng(12)
    for num_seeds, least, most in ((3, 0.80, 0.93), (8, 0.89, 0.97)):  # Student's t says 0.82 and 0.91 of them
        hits = []
        for i in range(NUM_WORLDS):
            arms = {arm: seeded(draw, draw.normal(size=num_seeds)) for arm in "ab"}
            hits.append(holds(intervals(arms, "b", seed=i, num_resamples=400)[0].difference, 0.0))
        assert least < np.mean(hits) < most


def test_runs_on_subsets_are_as_many_as_their_subsets_and_an_easy_subset_is_easy_for_all_arms() -> None:
    draw = np.random.default_rng(13)
    subsets = [k % 5 for k in range(10)]
    scores, differences, widths = [], [], []
    for i in range(NUM_WORLDS):
        easy = draw.normal(size=5)[subsets]
        arms = {arm: seeded(draw, easy + 0.2 * draw.normal(size=10)) for arm in "ab"}
        first = intervals(arms, "b", seed=i, subsets=dict.fromkeys("ab", subsets), num_subsets=5, num_resamples=400)[0]
        scores.append(holds(first.score, 0.0))
        differences.append(holds(first.difference, 0.0))
        assert first.difference is not None
        widths.append((first.difference.high - first.difference.low) / (first.score.high - first.score.low))
    assert 0.80 < np.mean(scores) < 0.95 and 0.85 < np.mean(differences) < 0.97
    assert np.median(widths) < 0.5, "what the subsets have in common is not in a difference"


def test_an_arm_that_lacks_a_subset_changes_nothing_for_others() -> None:
    arms = world(np.random.default_rng(14), num_seeds=(4, 4, 3))
    given = {"0": [0, 1, 2, 0], "1": [0, 1, 2, 0], "2": [0, 2, 0]}
    options = {"seed": 1, "num_subsets": 3, "num_resamples": 300}
    whole = intervals(arms, "1", subsets=given, **options)
    few = intervals({"0": arms["0"], "1": arms["1"]}, "1", subsets=given, **options)
    assert whole[:2] == few
    assert whole[2].score.low < whole[2].score.value < whole[2].score.high


def test_runs_on_a_single_subset_are_drawn_one_by_one() -> None:
    arms = world(np.random.default_rng(15), num_seeds=(3, 4))
    one = intervals(arms, "1", seed=1, subsets={"0": [0] * 3, "1": [0] * 4}, num_resamples=300)
    assert one == intervals(arms, "1", seed=1, num_resamples=300)


def test_intervals_of_bleu_hold_the_truth_in_95_of_100_worlds() -> None:
    draw = np.random.default_rng(2)
    words = ["the", "eagle", "is", "a", "cheap", "pub", "near", "river", "serving", "good", "food"]
    sentences = [" ".join(draw.choice(words, size=draw.integers(6, 14))) for _ in range(300)]
    noisy = [" ".join(w if draw.random() < 0.8 else "x" for w in sentence.split()) for sentence in sentences]
    everything = score("bleu", noisy, [[sentence] for sentence in sentences])
    truth = everything.corpus()
    hits = []
    for i in range(NUM_WORLDS):
        sample = everything.statistics[draw.integers(0, 300, size=NUM_SOURCES)]
        result = intervals({"a": [Scored("bleu", sample, "")]}, "a", seed=i, num_resamples=400)
        hits.append(holds(result[0].score, truth))
    assert 0.911 < np.mean(hits) < 0.984


@pytest.mark.parametrize("num_seeds", [(1, 1), (3, 3), (1, 3), (3, 5)])
def test_p_is_uniform_where_the_arms_are_equal(num_seeds: tuple[int, ...]) -> None:
    draw = np.random.default_rng(3)
    p_values = [
        compare(world(draw, num_seeds=num_seeds), "1", seed=i, num_resamples=199)[0].p for i in range(NUM_WORLDS)
    ]
    ranks = np.rint(200 * np.array(p_values, dtype=float)).astype(int)  # 1 .. 200, each equally likely
    counts = np.bincount((ranks - 1) // 20, minlength=10)
    chi_square = float(((counts - NUM_WORLDS / 10) ** 2 / (NUM_WORLDS / 10)).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, 0.001
    assert np.mean(ranks <= 10) < 0.084  # p <= 0.05; three standard errors


def test_a_real_difference_is_found() -> None:
    first = compare(world(np.random.default_rng(4), num_seeds=(3, 3), gain=0.3), "1", seed=1, num_resamples=999)[0]
    assert first.p == pytest.approx(0.001)
    assert first.difference is not None and first.difference.low > 0


def test_pairing_by_source_makes_a_difference_sharper_than_the_scores() -> None:
    first, other = intervals(world(np.random.default_rng(5), num_seeds=(1, 1)), "1", seed=1)
    assert first.difference is not None
    width = first.difference.high - first.difference.low
    # a source's values have variance 1.25 in an arm, their difference has 0.5
    assert width / (other.score.high - other.score.low) == pytest.approx((0.5 / 1.25) ** 0.5, rel=0.2)


def test_seeds_that_differ_widen_the_interval() -> None:
    values = np.random.default_rng(6).normal(size=NUM_SOURCES)
    same = intervals({"a": [mean_of(values)] * 3}, "a", seed=1)[0].score
    apart = intervals({"a": [mean_of(values + shift) for shift in (-1, 0, 1)]}, "a", seed=1)[0].score
    assert apart.value == pytest.approx(same.value)
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_a_score_is_the_mean_over_seeds_and_the_difference_is_that_of_the_scores() -> None:
    arms = world(np.random.default_rng(7), num_seeds=(2, 3))
    first, other = compare(arms, "1", seed=1, num_resamples=200)
    assert first.score.value == pytest.approx(np.mean([each.corpus() for each in arms["0"]]))
    assert first.difference is not None
    assert first.difference.value == pytest.approx(first.score.value - other.score.value)
    assert (other.difference, other.p, other.p_holm) == (None, None, None)


def test_swapped_outputs_score_as_if_they_had_been_swapped_as_texts() -> None:
    references = [["the eagle is a cheap pub"], ["the mill serves italian food"], ["it is near the river in the city"]]
    ours = ["the eagle is a pub", "the mill serves food", "it is near the river"]
    theirs = ["eagle is a cheap pub", "italian food in the mill", "it is in the city"]
    swaps = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    fast = statistics._swapped_difference(
        [score("bleu", ours, references)], [score("bleu", theirs, references)], swaps.astype(float)
    )
    for row, difference in zip(swaps, fast, strict=True):
        mixed = [[(a, b)[int(s)] for a, b, s in zip(ours, theirs, row ^ side, strict=True)] for side in (0, 1)]
        first, second = (score("bleu", texts, references).corpus() for texts in mixed)
        assert difference == pytest.approx(first - second, abs=1e-9)


def test_the_same_seed_gives_the_same_numbers_whatever_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = world(np.random.default_rng(8), num_seeds=(2, 3))
    whole = compare(arms, "1", seed=1, num_resamples=300)
    assert compare(arms, "1", seed=1, num_resamples=300) == whole
    assert compare(arms, "1", seed=2, num_resamples=300) != whole
    monkeypatch.setattr(statistics, "_CELLS_AT_ONCE", 7 * NUM_SOURCES)
    for one, other in zip(compare(arms, "1", seed=1, num_resamples=300), whole, strict=True):
        assert one.score.low == pytest.approx(other.score.low)
        assert one.p == other.p


def test_an_arms_numbers_do_not_depend_on_its_company() -> None:
    arms = world(np.random.default_rng(9), num_seeds=(2, 3, 2))
    few = compare({"0": arms["0"], "1": arms["1"]}, "1", seed=1, num_resamples=300)[0]
    many = compare(arms, "1", seed=1, num_resamples=300)[0]
    assert (few.score, few.difference, few.p) == (many.score, many.difference, many.p)


def test_holm_agrees_with_an_example_worked_by_hand() -> None:
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04; the last may not fall below the one before
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_p_is_corrected_for_the_number_of_arms_compared() -> None:
    results = compare(world(np.random.default_rng(10), num_seeds=(1, 1, 1, 1)), "3", seed=1, num_resamples=199)
    p_values = {each.arm: each.p for each in results if each.p is not None}
    assert {each.arm: each.p_holm for each in results if each.p_holm is not None} == holm(p_values)
    assert len(p_values) == 3


def test_the_resolution_is_the_longer_side_of_an_interval() -> None:
    assert resolution(low=-2.0, value=1.0, high=3.5) == 3.0
    assert resolution(low=-2.0, value=-1.0, high=0.5) == 1.5


def test_more_sources_tell_smaller_differences_apart() -> None:
    draw = np.random.default_rng(11)
    found = []
    for num_sources in (50, 200, 800):
        arms = {arm: [mean_of(draw.normal(size=num_sources))] for arm in "ab"}
        difference = intervals(arms, "b", seed=1, num_resamples=1000)[0].difference
        assert difference is not None
        found.append(resolution(difference.low, difference.value, difference.high))
    assert all(1.5 < coarse / fine < 2.7 for coarse, fine in pairwise(found))  # half for four times as many


def test_there_is_no_standard_deviation_of_one_seed() -> None:
    assert sd([1.0]) is None
    assert sd([1.0, 2.0, 3.0]) == pytest.approx(1.0)


def test_arms_with_other_sources_are_refused() -> None:
    with pytest.raises(AssertionError, match="differ in metric or number of sources"):
        intervals({"a": [mean_of(np.zeros(3))], "b": [mean_of(np.zeros(4))]}, "a", seed=1)
