"""BLEU, chrF and TER: sacrebleu counts per source, and formulas here turn sums of counts into scores.

The formulas score many resamplings at once. BLEU and TER are lower-cased like the E2E challenge's scorer, whose BLEU is
the same number. chrF keeps the case, as its authors do. All three are percentages. BLEU of words is that of the script
multi-bleu: it splits no text, counts at most three references, and smoothes nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

Floats = NDArray[np.float64]  # N sources, R resamplings
_LOG_OF_ZERO = -9999999999.0  # sacrebleu's value
_MOST_REFERENCES = 3  # files of references that the scripts of WebNLG and DART hand to multi-bleu


def count_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Floats, str]:
    """Per source: words of the hypothesis, of the nearest reference, n-gram matches, n-grams (N, 10); the signature."""
    return _count(BLEU(lowercase=True, force=True), hypotheses, references)


def bleu(sums: Floats) -> Floats:
    """BLEU of summed statistics (R, 10), with sacrebleu's exponential smoothing -> (R,)."""
    hypothesis, reference = sums[:, 0], sums[:, 1]
    matches, totals = np.split(sums[:, 2:], 2, axis=1)  # (R, 4) each
    missed = (matches == 0) & (totals > 0)
    smoothed = np.where(
        missed, 0.5 ** np.cumsum(missed, axis=1), matches
    )  # 1/2 for the first missed order, then 1/4 ..
    return np.where(matches.any(axis=1), _bleu(hypothesis, reference, 100 * smoothed / np.maximum(totals, 1)), 0.0)


def count_bleu_of_words(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Floats, str]:
    """The statistics of `count_bleu` for texts that are words already, against the first three references (N, 10)."""
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    statistics, signature = _count(metric, hypotheses, [several[:_MOST_REFERENCES] for several in references])
    return statistics, f"{signature}|most_refs:{_MOST_REFERENCES}"


def bleu_of_words(sums: Floats) -> Floats:
    """BLEU of summed statistics (R, 10) without smoothing -> (R,); 0 where an order has no match."""
    matches, totals = np.split(sums[:, 2:], 2, axis=1)  # (R, 4) each
    return np.where(matches.all(axis=1), _bleu(sums[:, 0], sums[:, 1], 100 * matches / np.maximum(totals, 1)), 0.0)


def _bleu(hypothesis: Floats, reference: Floats, precisions: Floats) -> Floats:
    """From lengths in words (R,) and precisions of the orders in percent (R, 4)."""
    logs = np.where(precisions > 0, np.log(np.where(precisions > 0, precisions, 1.0)), _LOG_OF_ZERO)
    brevity = np.where(hypothesis < reference, np.exp(1 - reference / np.maximum(hypothesis, 1)), 1.0)
    score: Floats = brevity * np.exp(logs.mean(axis=1))
    return score


def count_chrf(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Floats, str]:
    """Per source, for each character order: n-grams of the hypothesis, of the best reference, matches (N, 18)."""
    return _count(CHRF(), hypotheses, references)


def chrf(sums: Floats) -> Floats:
    """chrF2 of summed statistics (R, 18): F of the mean precision and the mean recall over the orders -> (R,)."""
    hypothesis, reference, matches = (sums[:, i::3] for i in range(3))  # (R, 6) each
    counted = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counted.sum(axis=1), 1)
    precision = np.where(counted, matches / np.maximum(hypothesis, 1), 0.0).sum(axis=1) / orders
    recall = np.where(counted, matches / np.maximum(reference, 1), 0.0).sum(axis=1) / orders
    weight = CHRF.BETA**2
    denominator = weight * precision + recall
    score: Floats = 100 * (1 + weight) * precision * recall / np.where(denominator > 0, denominator, 1.0)
    return score


def count_ter(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Floats, str]:
    """Per source: edits to the nearest reference, mean length of the references in words (N, 2); the signature."""
    return _count(TER(), hypotheses, references)


def ter(sums: Floats) -> Floats:
    """TER of summed statistics (R, 2) -> (R,); 100 where there is no reference word but there are edits."""
    edits, length = sums[:, 0], sums[:, 1]
    rate = np.where(length > 0, edits / np.where(length > 0, length, 1.0), edits > 0)
    return 100 * rate


def _count(
    metric: BLEU | CHRF | TER, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Floats, str]:
    most = max(len(several) for several in references)
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    # private, because sacrebleu's public functions give counts per source for BLEU and TER only
    rows = metric._extract_corpus_statistics(hypotheses, streams)  # type: ignore[arg-type]  # it takes None
    return np.array(rows, dtype=np.float64), str(metric.get_signature())
