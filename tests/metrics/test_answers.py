"""Scores of short answers: accuracy, and SQuAD's exact match and token F1."""

import numpy as np
import pytest

from prefixray.metrics import score

REFERENCES = [["The Denver Broncos"], ["1850", "in 1850"], ["positive"], ["a"]]


@pytest.mark.parametrize(
    ("metric", "hypotheses", "scores"),
    [
        ("accuracy", ["The  Denver Broncos ", "in 1850", "Positive", "a"], [100, 100, 0, 100]),
        ("exact_match", ["denver broncos!", "in 1850.", "Positive", "the"], [100, 100, 100, 100]),
        ("exact_match", ["", "18 50", "not positive", "b"], [0, 0, 0, 0]),
        # SQuAD's script: 2 of 3 words in common; the best reference; 1 of 2; no word on both sides is no match
        ("token_f1", ["Carolina Denver Broncos", "year 1850", "very positive", "the"], [80, 200 / 3, 200 / 3, 0]),
        ("token_f1", ["", "x", "positive positive", "b"], [0, 0, 200 / 3, 0]),
    ],
)
def test_a_source_has_the_score_of_its_best_reference(metric: str, hypotheses: list[str], scores: list[float]) -> None:
    scored = score(metric, hypotheses, REFERENCES)
    assert scored.statistics[:, 0] == pytest.approx(scores) and scored.corpus() == pytest.approx(sum(scores) / 4)
    half = scored.resampled(np.array([[2, 0, 2, 0]]))
    assert half[0] == pytest.approx((scores[0] + scores[2]) / 2)
