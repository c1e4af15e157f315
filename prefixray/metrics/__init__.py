"""Hypotheses and references in, scores out: pure text and numpy.

A metric is a table of statistics, one row per source, and a formula over the sum of the rows. So the corpus score of
any resampling of the sources costs one row of a matrix product. `score` takes the texts as they are, or in the form
in which the scripts of a challenge compare them (`challenge_words.py`). Two metrics read no hypotheses: the model has
computed their statistics, sums over the references' tokens (`of_likelihoods`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prefixray.errors import UserError
from prefixray.metrics import answers, coco, likelihoods, meteor, nist, rouge
from prefixray.metrics import sacrebleu_counts as sacre
from prefixray.metrics.challenge_words import WORD_FORMS, WordForm
from prefixray.metrics.mean import mean
from prefixray.metrics.own import count_own, is_own, own_label

Floats = NDArray[np.float64]  # N sources, K statistics, R resamplings


@dataclass(frozen=True)
class Metric:
    """How one metric is computed and shown."""

    label: str
    count: Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[Floats, str]] | None
    """Hypotheses and references -> the statistics (N, K), a signature; None: the model's likelihoods give them."""
    formula: Callable[[Floats], Floats]  # sums of statistics (R, K) -> scores (R,)
    higher_is_better: bool = True


METRICS: Mapping[str, Metric] = {
    "bleu": Metric("BLEU", sacre.count_bleu, sacre.bleu),
    "nist": Metric("NIST", nist.count_nist, nist.nist),
    "rouge_l_coco": Metric("COCO R-L", coco.count_rouge_l, mean),
    "cider": Metric("CIDEr", coco.count_cider, mean),
    "chrf": Metric("chrF", sacre.count_chrf, sacre.chrf),
    "ter": Metric("TER", sacre.count_ter, sacre.ter, higher_is_better=False),
    "meteor_1_5": Metric("METEOR", meteor.count_meteor, meteor.meteor),
    "rouge_1": Metric("ROUGE-1", partial(rouge.count_rouge, "rouge1"), mean),
    "rouge_2": Metric("ROUGE-2", partial(rouge.count_rouge, "rouge2"), mean),
    "rouge_l": Metric("ROUGE-L", partial(rouge.count_rouge, "rougeL"), mean),
    "exact_match": Metric("exact match", answers.count_exact_match, mean),
    "token_f1": Metric("token F1", answers.count_token_f1, mean),
    "accuracy": Metric("accuracy", answers.count_accuracy, mean),
    "divergence": Metric("divergence", None, mean, higher_is_better=False),
    "perplexity": Metric("perplexity", None, likelihoods.perplexity, higher_is_better=False),
}
"""Scores are percentages; NIST and CIDEr have scales of their own, and a divergence is in nats. Two ROUGE-L give the
same output different numbers: rouge_l is that of summarisation, rouge_l_coco that of image captions and of E2E."""


_OF_WORDS: Mapping[str, Metric] = {
    **METRICS,
    "bleu": Metric("BLEU", sacre.count_bleu_of_words, sacre.bleu_of_words),
    "meteor_1_5": Metric("METEOR", partial(meteor.count_meteor, are_words=True), meteor.meteor),
}


@dataclass(frozen=True)
class Scored:
    """The statistics of one model's hypotheses for one metric, from which any resampling of the sources is scored."""

    metric: str
    statistics: Floats  # (N, K)
    signature: str
    form: WordForm | None = None  # in which texts were compared

    def corpus(self) -> float:
        """The score over all sources."""
        return float(self.of_sums(self.statistics.sum(axis=0, keepdims=True))[0])

    def resampled(self, weights: NDArray[np.integer] | Floats) -> Floats:
        """The score of each resampling (R,), from weights (R, N): how often each source is drawn."""
        return self.of_sums(weights.astype(np.float64, copy=False) @ self.statistics)

    def of_sums(self, sums: Floats) -> Floats:
        """The scores (R,) for sums of statistics (R, K)."""
        return _find(self.metric, self.form).formula(sums)


def score(
    metric: str,
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    form: WordForm | None = None,
) -> Scored:
    """Score one hypothesis per source against all references of that source, whose number may differ.

    A metric may be a user's own function, `package.module:function` (`own.py`).

    `form` is that in which texts are compared; None: as they are, split by each metric in its own way. Raises
    `UserError` for a metric that does not exist.
    """
    assert len(hypotheses) == len(references) > 0, f"{len(hypotheses)} hypotheses for {len(references)} sources"
    assert all(references), "a source has no reference"
    count = _find(metric, form).count
    assert count is not None, f"{metric} reads no hypotheses"
    if form is None:
        return Scored(metric, *count(hypotheses, references))
    to_words = WORD_FORMS[form]
    split = [[to_words(text) for text in several] for several in references]
    statistics, signature = count([to_words(text) for text in hypotheses], split)
    return Scored(metric, statistics, f"{signature}|texts:{form}", form)


def is_of_likelihoods(metric: str) -> bool:
    """Whether the metric is computed from a model's likelihoods of the references, and from no hypothesis."""
    return _find(metric).count is None


def of_likelihoods(metric: str, sums: Sequence[float], num_tokens: Sequence[int]) -> Scored:
    """Score the sums over each source's first reference, its end token included: `is_of_likelihoods` metrics alone.

    The sums are of the divergence from the teacher, or of the negative log-likelihood.
    """
    assert is_of_likelihoods(metric), f"{metric} reads hypotheses"
    return Scored(metric, np.column_stack([sums, num_tokens]).astype(np.float64), likelihoods.SIGNATURE)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric is better."""
    return _find(metric).higher_is_better


def label(metric: str) -> str:
    """The metric's name in a table."""
    return _find(metric).label


def _find(metric: str, form: WordForm | None = None) -> Metric:
    if is_own(metric):
        return Metric(own_label(metric), partial(count_own, metric), mean)
    if metric not in METRICS:
        raise UserError(f"metric: {metric!r} does not exist; metrics are {', '.join(METRICS)}")
    return METRICS[metric] if form is None else _OF_WORDS[metric]


def decimals(metric: str) -> int:
    """Digits behind the point in a table; a user's own metric has a scale that nobody here knows."""
    return 3 if is_own(metric) else {"nist": 2, "cider": 2, "perplexity": 2, "divergence": 3}.get(metric, 1)


def unit(metric: str) -> str:
    """What a score is counted in."""
    return "nats" if metric == "divergence" else "points"
