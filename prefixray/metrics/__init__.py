"""Hypotheses and references in, scores out: pure text and numpy.

The one idea: a metric is a table of statistics per source and a formula over their sum, so the corpus score of any
resampling of the sources costs one row of a matrix product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefixray.errors import UserError
from prefixray.metrics import coco, meteor, nist, rouge
from prefixray.metrics import sacrebleu_counts as sacre

Floats = NDArray[np.float64]  # N sources, K statistics, R resamplings


@dataclass(frozen=True)
class Metric:
    """How one metric is computed and shown."""

    label: str
    count: Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[Floats, str]]  # the statistics (N, K), a signature
    formula: Callable[[Floats], Floats]  # sums of statistics (R, K) -> scores (R,)
    higher_is_better: bool = True


METRICS: Mapping[str, Metric] = {
    "bleu": Metric("BLEU", sacre.count_bleu, sacre.bleu),
    "nist": Metric("NIST", nist.count_nist, nist.nist),
    "rouge_l_coco": Metric("COCO R-L", coco.count_rouge_l, coco.mean),
    "cider": Metric("CIDEr", coco.count_cider, coco.mean),
    "chrf": Metric("chrF", sacre.count_chrf, sacre.chrf),
    "ter": Metric("TER", sacre.count_ter, sacre.ter, higher_is_better=False),
    "meteor_1_5": Metric("METEOR", meteor.count_meteor, meteor.meteor),
    "rouge_1": Metric("ROUGE-1", partial(rouge.count_rouge, "rouge1"), coco.mean),
    "rouge_2": Metric("ROUGE-2", partial(rouge.count_rouge, "rouge2"), coco.mean),
    "rouge_l": Metric("ROUGE-L", partial(rouge.count_rouge, "rougeL"), coco.mean),
}
"""Percentages, but for NIST and CIDEr, which have scales of their own. There are two ROUGE-L, which
give the same output different numbers: rouge_l is that of summarisation, rouge_l_coco that of captions and of E2E."""


@dataclass(frozen=True)
class Scored:
    """One output's statistics for one metric: all that any resampling of its sources needs."""

    metric: str
    statistics: Floats  # (N, K)
    signature: str

    def corpus(self) -> float:
        """The metric over all sources."""
        return float(self.of_sums(self.statistics.sum(axis=0, keepdims=True))[0])

    def resampled(self, weights: NDArray[np.integer] | Floats) -> Floats:
        """The metric for each row of weights (R, N), which say how often each source is drawn -> (R,)."""
        return self.of_sums(weights.astype(np.float64, copy=False) @ self.statistics)

    def of_sums(self, sums: Floats) -> Floats:
        """The metric for sums of statistics (R, K) -> (R,)."""
        return METRICS[self.metric].formula(sums)


def score(metric: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """One hypothesis per source against all its references, whose number may differ between sources.

    Raises a UserError for a metric that does not exist.
    """
    assert len(hypotheses) == len(references) > 0, f"{len(hypotheses)} hypotheses for {len(references)} sources"
    assert all(references), "a source has no reference"
    statistics, signature = _find(metric).count(hypotheses, references)
    return Scored(metric, statistics, signature)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value is the better one."""
    return _find(metric).higher_is_better


def label(metric: str) -> str:
    """The metric's name in a table."""
    return _find(metric).label


def _find(metric: str) -> Metric:
    if metric not in METRICS:
        raise UserError(f"metric: {metric!r} does not exist; metrics are {', '.join(METRICS)}")
    return METRICS[metric]


DECIMALS: Mapping[str, int] = {"nist": 2, "cider": 2}  # one for all other metrics
