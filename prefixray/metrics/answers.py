"""Scores of short answers and labels: accuracy, and SQuAD's exact match and token F1 (Rajpurkar et al. 2016).

Of several references the best counts. Accuracy compares the texts as they are, but for white space. SQuAD's two compare
them in lower case, without ASCII punctuation and without the words a, an and the.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prefixray.metrics.mean import count_one_by_one

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_Compare = Callable[[str, str], float]  # hypothesis, reference -> 0 to 1


def count_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], str]:
    """Per source: 100 or 0, and a one (N, 2); a signature."""
    return _best(
        hypotheses, references, lambda text, reference: text.split() == reference.split()
    ), "text:as is|refs:best"


def count_exact_match(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], str]:
    """Per source: 100 or 0, and a one (N, 2); a signature."""
    return _best(hypotheses, references, lambda text, reference: _words(text) == _words(reference)), _SQUAD


def count_token_f1(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], str]:
    """Per source: its F1 of words in percent, and a one (N, 2); a signature."""
    return _best(hypotheses, references, lambda text, reference: _f1(_words(text), _words(reference))), _SQUAD


_SQUAD = "text:squad v1.1|refs:best"


def _best(hypotheses: Sequence[str], references: Sequence[Sequence[str]], compare: _Compare) -> NDArray[np.float64]:
    pairs = zip(hypotheses, references, strict=True)
    scores = [100.0 * max(compare(text, reference) for reference in several) for text, several in pairs]
    return count_one_by_one(scores)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(words: list[str], reference: list[str]) -> float:
    """Twice the words in common by all words; 0 where no word is in common, even if both have none, as in v1.1."""
    num_common = (Counter(words) & Counter(reference)).total()
    return 2.0 * num_common / (len(words) + len(reference)) if num_common else 0.0
