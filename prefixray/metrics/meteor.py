"""METEOR 1.5 (Denkowski & Lavie 2014) by its authors' Java program, which pycocoevalcap's wheel carries.

The program aligns a hypothesis with each reference by words, stems, synonyms and paraphrases, and prints its counts for
the best alignment. The score is a formula over the sum of such counts, which is computed here. Texts are split into
words as the E2E challenge's scorer does before it calls the program, unless they are words already. nltk's METEOR is
another metric.
"""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefixray.errors import UserError
from prefixray.metrics.tokenization import coco_words

Floats = NDArray[np.float64]  # N sources, R resamplings

_NUM_COUNTS = 23  # lengths, function words, matches by kind and by kind of word, chunks, matched words
_CHUNKS = 20
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # the program's values for English
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of matches by word, stem, synonym, paraphrase
_MOST_OF_LOG = 500  # characters of Java's output in a message


def meteor_problem() -> str | None:
    """Why METEOR cannot run on this machine, with the remedy; None where it can."""
    if shutil.which("java") is None:
        return "METEOR 1.5 is a Java program, and there is no java on the PATH (apt-get install default-jre-headless)"
    if _jar() is None:
        return "METEOR 1.5 comes with pycocoevalcap, which is not installed (pip install 'prefixray[meteor]')"
    return None


def count_meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, are_words: bool = False
) -> tuple[Floats, str]:
    """Per source: the program's counts for its best reference (N, 23); a signature."""
    if problem := meteor_problem():
        raise UserError(f"metric: {problem}")
    split = _without_separator if are_words else _words
    lines = [
        " ||| ".join(("SCORE", *map(split, several), split(text)))
        for text, several in zip(hypotheses, references, strict=True)
    ]
    command = ["java", "-Xmx2G", "-jar", str(_jar()), "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(command, input="".join(f"{line}\n" for line in lines), capture_output=True, encoding="utf-8")
    rows = [[float(count) for count in line.split()] for line in done.stdout.splitlines()]
    if len(rows) != len(lines) or any(len(row) != _NUM_COUNTS for row in rows):
        raise UserError(f"metric: METEOR's program failed: {done.stderr.strip()[-_MOST_OF_LOG:] or done.returncode}")
    counts = np.array(rows)
    counts[_identical(counts), _CHUNKS] = (
        0  # as in the program's sums: a hypothesis equal to its reference has no chunk
    )
    return counts, f"case:lc|tok:{'none' if are_words else 'coco'}|meteor:1.5|en|norm|java"


def meteor(sums: Floats) -> Floats:
    """METEOR of summed counts (R, 23) -> (R,), a percentage."""
    ours, theirs = _weighed(sums, side=0), _weighed(sums, side=1)
    precision, recall = (matches / np.where(length > 0, length, 1.0) for matches, length in (ours, theirs))
    denominator = _ALPHA * precision + (1 - _ALPHA) * recall
    mean = precision * recall / np.where(denominator > 0, denominator, 1.0)
    matched = sums[:, 21:].mean(axis=1)  # words, in the hypothesis and in the reference
    fragmentation = sums[:, _CHUNKS] / np.where(matched > 0, matched, 1.0)
    score: Floats = 100 * mean * (1 - _GAMMA * fragmentation**_BETA)
    return score


def _identical(counts: Floats) -> NDArray[np.bool_]:
    """Whether every word of a hypothesis and of its reference is matched, in one chunk (N,)."""
    matches = [(counts[:, 4 + side : 20 : 4] + counts[:, 6 + side : 20 : 4]).sum(axis=1) for side in (0, 1)]
    all_matched = (matches[0] == counts[:, 0]) & (matches[1] == counts[:, 1])
    identical: NDArray[np.bool_] = all_matched & (counts[:, _CHUNKS] == 1)
    return identical


def _weighed(sums: Floats, *, side: int) -> tuple[Floats, Floats]:
    """Weighted matches and weighted length (R,) of the hypotheses (side 0) or the references (side 1)."""
    length, function = sums[:, side], sums[:, 2 + side]
    content_matches, function_matches = sums[:, 4 + side : 20 : 4], sums[:, 6 + side : 20 : 4]  # (R, 4) each
    matches = (_DELTA * content_matches + (1 - _DELTA) * function_matches) @ _WEIGHTS
    return matches, _DELTA * (length - function) + (1 - _DELTA) * function


def _words(text: str) -> str:
    return _without_separator(" ".join(coco_words(text)))


def _without_separator(text: str) -> str:
    return text.replace("|||", "")


def _jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    folders = [] if package is None else package.submodule_search_locations or []
    jars = [Path(folder, "meteor", "meteor-1.5.jar") for folder in folders]
    return next((jar for jar in jars if jar.is_file()), None)
