r"""Splits texts into words as the E2E challenge's scorer does: for BLEU and NIST as mteval-v13a, else as COCO's scorer.

COCO's words are those of Stanford's PTBTokenizer, lower-cased and without punctuation (`-preserveLines -lowerCase`,
CoreNLP 3.4.1). That is a Java program; here is the part that English descriptions need, with the program's oddities: a
pound sign is `#`, brackets remain as `-lrb-` and `-rrb-`, an abbreviation keeps its full stop. Compared with the
program, 4 of E2E's 49,789 different references are split differently (typing errors), and about 1 % of WebNLG 2017's
25,214 (mostly abbreviations, whose full stop the program judges by long lists).
"""

import re
from functools import lru_cache

from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_RENAMED = {"£": "#", "€": "$", "¢": "cents", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-"}
_PLAIN = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--", "\u2026": "..."}
)  # typographic quotes, dashes and dots
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|rev|gen|col|capt|lt|sgt|gov|sen|rep|jr|sr|st|rd|ave|blvd|inc|ltd|co|corp|bros|etc|vs|al|univ"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
_TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)\S*[^\s.,;:!?)'"]                                      # addresses
    | can(?=not\b) | gon(?=na\b) | got(?=ta\b) | wan(?=na\b)                    # can not, gon na
    | [^\W\d_](?:\.[^\W\d_])+(?![^\W_])\.? | \b[^\W\d_]\.(?=\s+\S)              # u.s. f.c, j. (but not a last letter)
    | \b(?:{_ABBREVIATIONS})\.(?![^\W\d_]) | \bno\.(?=\s*\d) | [^\W\d_]+\.(?=,)  # st. no. 5
    | n't\b | '(?:s|re|ve|ll|d|m|n|em)\b                                        # is n't, they 're
    | (?:(?<!\S)-)?\.?\d+(?:[.,]\d+)*(?=(?:[cmk]?m|k?g|[ap]m)\b)                # 3.5 kg, 10 pm
    | (?:(?<![^\W_])-)?\.?\d+(?:[.,:/-]\d+)*[^\W_]*(?:[-/][^\W_]+)*             # 20-25, 1,000, 5-star, 10l/28r
    | [^\W_]+?(?=n't\b)                                                         # the "is" of is n't
    | [^\W\d_]+'(?!(?:s|re|ve|ll|d|m|t)\b)[^\W\d_]{{3,}}                        # d'oeuvres
    | [^\W_]+(?:[-/&_.][^\W_]+)*                                               # family-friendly, and/or, b&b
    | \.{{3}} | -- | !+ | \?+ | \*+ | \S
    """,
    re.VERBOSE,
)
_split_13a = Tokenizer13a()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=2**16)
def mteval_words(text: str) -> tuple[str, ...]:
    """The lower-cased words and punctuation marks of mteval-v13a."""
    return tuple(str(_split_13a(text.lower())).split())


@lru_cache(maxsize=2**16)
def coco_words(text: str) -> tuple[str, ...]:
    """The lower-cased words of the COCO caption scorer, without punctuation."""
    tokens = _TOKEN.findall(text.lower().translate(_PLAIN))
    return tuple(_RENAMED.get(token, token) for token in tokens if token not in _PUNCTUATION)
