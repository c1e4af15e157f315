"""ROUGE-L and CIDEr as the COCO caption scorer defines them, and as the E2E challenge reports them.

This ROUGE-L is not that of summarisation (`rouge.py`): for each source it joins the best precision and the best recall
over the references, which may be of two references, with beta 1.2; a percentage. CIDEr is the scorer's CIDEr-D: clipped
tf-idf cosines of n-grams up to 4, with a Gaussian penalty on the difference in length, times 10. Its document
frequencies are those of the whole reference set, in a resampling too. Both are means over sources, so the statistics of
a source are its score and a 1.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefixray.metrics.mean import count_one_by_one
from prefixray.metrics.tokenization import coco_words

_BETA = 1.2
_ORDER = 4
_SIGMA = 6.0
_Words = tuple[str, ...]


def count_rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], str]:
    """Per source: its ROUGE-L and a one (N, 2); a signature."""
    scores = [
        100 * _rouge_l(coco_words(text), [coco_words(reference) for reference in several])
        for text, several in zip(hypotheses, references, strict=True)
    ]
    return count_one_by_one(scores), "case:lc|tok:coco|beta:1.2|best precision and recall apart"


def count_cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], str]:
    """Per source: its CIDEr-D and a one (N, 2); a signature."""
    tokenized = [[coco_words(text) for text in several] for several in references]
    frequencies = Counter(gram for several in tokenized for gram in {g for words in several for g in _ngrams(words)})
    logarithms = {gram: math.log(frequency) for gram, frequency in frequencies.items()}
    most = math.log(len(tokenized))
    scores = []
    for text, several in zip(hypotheses, tokenized, strict=True):
        hypothesis = _weigh(coco_words(text), logarithms, most)
        similarities = [_similarity(hypothesis, _weigh(words, logarithms, most)) for words in several]
        scores.append(10 * sum(similarities) / len(similarities))
    return count_one_by_one(scores), "case:lc|tok:coco|CIDEr-D|n:4|sigma:6|df:references"


def _rouge_l(hypothesis: _Words, references: Sequence[_Words]) -> float:
    common = [_longest_common_subsequence(hypothesis, reference) for reference in references]
    precision = max(common) / max(len(hypothesis), 1)
    recall = max(length / max(len(words), 1) for length, words in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common_subsequence(left: _Words, right: _Words) -> int:
    """Its length. A row of the usual table is one number here, with a bit per word of `left` (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for i, word in enumerate(left):
        positions[word] = positions.get(word, 0) | 1 << i
    mask = (1 << len(left)) - 1
    row = mask  # a zero bit: here the subsequence grows by one
    for word in right:
        match = row & positions.get(word, 0)
        row = ((row + match) | (row - match)) & mask
    return len(left) - row.bit_count()


@dataclass(frozen=True)
class _Weighed:
    """One sentence's tf-idf vectors, one per order, and their norms."""

    vectors: tuple[dict[_Words, float], ...]
    norms: tuple[float, ...]
    num_pairs: int  # words minus one: the scorer counts bigrams where it says length


def _weigh(words: _Words, logarithms: dict[_Words, float], most: float) -> _Weighed:
    vectors: tuple[dict[_Words, float], ...] = tuple({} for _ in range(_ORDER))
    for gram, count in _ngrams(words).items():
        vectors[len(gram) - 1][gram] = count * (most - logarithms.get(gram, 0.0))
    norms = tuple(math.sqrt(sum(weight * weight for weight in vector.values())) for vector in vectors)
    return _Weighed(vectors, norms, max(len(words) - 1, 0))


def _similarity(hypothesis: _Weighed, reference: _Weighed) -> float:
    """The mean over orders of the clipped cosines, times the penalty on length."""
    total = 0.0
    norms = [ours * theirs for ours, theirs in zip(hypothesis.norms, reference.norms, strict=True)]
    for ours, theirs, norm in zip(hypothesis.vectors, reference.vectors, norms, strict=True):
        if norm > 0:
            total += sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs) / norm
    delta = hypothesis.num_pairs - reference.num_pairs
    return total / _ORDER * math.exp(-(delta**2) / (2 * _SIGMA**2))


def _ngrams(words: _Words) -> Counter[_Words]:
    """All n-grams up to the order, with their counts."""
    return Counter(words[i : i + n] for n in range(1, _ORDER + 1) for i in range(len(words) - n + 1))
