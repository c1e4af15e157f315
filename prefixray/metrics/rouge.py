"""ROUGE-1, ROUGE-2 and ROUGE-L as papers on summarisation report them: F1 by the package `rouge-score`, stemmed.

A source's score is its best reference's score, chosen for each kind of ROUGE by itself. The corpus score is the mean
over sources, in percent; the package's own bootstrap scatters around it. ROUGE-L takes a summary as one sentence
(`rougeL`); published numbers for CNN/DailyMail are often the package's `rougeLsum`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from prefixray.metrics.mean import count_one_by_one

_CACHED_TEXTS = 2**16  # hypotheses and references are split into words once, not once for each kind


def count_rouge(
    kind: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], str]:
    """Per source: the F1 of its best reference and a one (N, 2); a signature. `kind` is rouge1, rouge2 or rougeL."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]  # imports nltk: seconds

    scorer = RougeScorer([kind], tokenizer=_Words())
    scores = [
        100 * scorer.score_multi(several, text)[kind].fmeasure
        for text, several in zip(hypotheses, references, strict=True)
    ]
    signature = f"rouge-score:{version('rouge-score')}|{kind}|stemmer:porter|F1|refs:best"
    return count_one_by_one(scores), signature


class _Words:
    """The package's own tokenizer, with a cache that all kinds of ROUGE share."""

    def tokenize(self, text: str) -> tuple[str, ...]:
        """The stemmed words of a text."""
        return _words(text)


@lru_cache(maxsize=_CACHED_TEXTS)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_tokenizer()(text))


@lru_cache(maxsize=1)
def _tokenizer() -> Callable[[str], list[str]]:
    from rouge_score.tokenizers import DefaultTokenizer  # type: ignore[import-untyped]

    tokenize: Callable[[str], list[str]] = DefaultTokenizer(use_stemmer=True).tokenize
    return tokenize
