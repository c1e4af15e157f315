r"""Texts as the scripts of the WebNLG challenge of 2017 and of DART compare them.

Both scripts score words that are separated by blanks: every character that is no letter, digit or underscore is a word
(`\W` splits), and case is ignored. WebNLG's script also replaces characters outside ASCII by those of the package
unidecode. That package stands under the GPL; the table here, after Unicode's own decomposition, gives the same
characters for every text of the challenge's files. Elsewhere a character without a decomposition stays as it is.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

WordForm = Literal["words", "ascii_words"]
"""words: DART's; ascii_words: WebNLG's."""

_SPLIT = re.compile(r"(\W)")
_WITHOUT_DECOMPOSITION = str.maketrans({
    "æ": "ae", "ø": "o", "ß": "ss", "\u0131": "i", "ə": "@", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "œ": "oe",
    "\u2013": "-", "\u2014": "--", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
})  # fmt: skip


def _words(text: str) -> str:
    return " ".join(" ".join(_SPLIT.split(text.lower())).split())


def _ascii_words(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower().translate(_WITHOUT_DECOMPOSITION))
    return _words("".join(character for character in decomposed if not unicodedata.combining(character)))


WORD_FORMS: Mapping[WordForm, Callable[[str], str]] = {"words": _words, "ascii_words": _ascii_words}
"""From a text to its words, each apart by a blank."""
