"""NIST (Doddington 2002): n-gram matches weighted by how informative the n-gram is in the references, n up to 5.

It is computed as in mteval-v13a, which the E2E challenge's scorer follows. The information of an n-gram is log2 of the
number of times that its first n - 1 words occur in all references together, divided by its own number. Matches are
counted up to the n-gram's largest count in one reference. The length penalty compares with the mean length of a
source's references. The information weights are those of the whole reference set, in a resampling too, so the
statistics of sources can be added.

The E2E scorer counts the 5-grams of an output of two words as -2; here, as in mteval-v13a, they are 0.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixray.metrics.tokenization import mteval_words

_ORDER = 5
_BETA = -math.log(0.5) / math.log(1.5) ** 2  # the penalty is 1/2 where the output has 2/3 of the words
_SIGNATURE = "case:lc|tok:13a|order:5|info:all references|reflen:mean"
_Words = tuple[str, ...]


def count_nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], str]:
    """Per source: information of the matches by order, n-grams by order, mean reference length (N, 11); a signature."""
    tokenized = [[mteval_words(text) for text in several] for several in references]
    seen = Counter(gram for several in tokenized for words in several for gram in _ngrams(words).elements())
    num_words = sum(len(words) for several in tokenized for words in several)
    rows = []
    for text, several in zip(hypotheses, tokenized, strict=True):
        words = mteval_words(text)
        limits: Counter[_Words] = Counter()
        for reference in several:
            limits |= _ngrams(reference)  # the largest count in one reference
        information = [0.0] * _ORDER
        for gram, count in (_ngrams(words) & limits).items():
            prefix = seen[gram[:-1]] if len(gram) > 1 else num_words
            information[len(gram) - 1] += count * math.log2(prefix / seen[gram])
        totals = [max(len(words) - order, 0) for order in range(_ORDER)]
        rows.append([*information, *totals, sum(map(len, several)) / len(several)])
    return np.array(rows, dtype=np.float64), _SIGNATURE


def nist(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """NIST of summed statistics (R, 11) -> (R,)."""
    information, totals, reference = sums[:, :_ORDER], sums[:, _ORDER : 2 * _ORDER], sums[:, -1]
    gain = (information / np.maximum(totals, 1)).sum(axis=1)
    ratio = np.minimum(totals[:, 0] / np.where(reference > 0, reference, 1.0), 1.0)
    penalty = np.where(ratio > 0, np.exp(-_BETA * np.log(np.where(ratio > 0, ratio, 1.0)) ** 2), 0.0)
    score: NDArray[np.float64] = gain * penalty
    return score


def _ngrams(words: _Words) -> Counter[_Words]:
    """All n-grams up to the order, with their counts."""
    return Counter(words[i : i + n] for n in range(1, _ORDER + 1) for i in range(len(words) - n + 1))
