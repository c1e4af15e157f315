"""BLEU and TER as the scripts of the WebNLG challenge and of DART compute them.

The scripts are multi-bleu.perl on at most three references and tercom 0.7.25, on texts split at every character that is
no letter, digit or underscore. Their own numbers for a human against other humans on WebNLG 2017 are 46.56 and 46.3.
`PREFIXRAY_WEBNLG` names the folder of the challenge's files for the test that needs them.
"""

import math
import os
import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from prefixray.metrics import score
from prefixray.metrics.challenge_words import WORD_FORMS
from prefixray.metrics.meteor import meteor_problem

HYPOTHESES = [
    "Ab Klink was born in Stellendam (Netherlands), in 1958.",
    "The A-Rosa Luna's 125.8m long; it is powered by MTU engines.",
    "Aleksandra Kovač \u2013 a solo singer \u2013 performs soul_music.",
]
REFERENCES = [
    ["Ab Klink was born in Stellendam, Netherlands.", "Stellendam is where Ab Klink was born in 1958."],
    [
        "The A-Rosa Luna is 125.8m long.",
        "The A-Rosa Luna's length is 125.8m.",
        "The A-Rosa Luna is powered by MTU.",
        "The A-Rosa Luna's 125.8m long; it is powered by MTU engines.",  # a fourth: the scripts' BLEU does not read it
    ],
    ["Aleksandra Kovac - a solo singer - performs soul_music.", "Soul music is what Aleksandra Kovač performs."],
]


def multi_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU written down from its definition: clipped matches, no smoothing, the closest reference's length."""
    matches, totals, length, closest = [0] * 4, [0] * 4, 0, 0
    for text, several in zip(hypotheses, references, strict=True):
        words, read = text.split(), [reference.split() for reference in several[:3]]
        length += len(words)
        closest += min((abs(len(each) - len(words)), len(each)) for each in read)[1]
        for order in range(1, 5):
            grams = Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
            for gram, count in grams.items():
                most = max(
                    sum(tuple(each[i : i + order]) == gram for i in range(len(each) - order + 1)) for each in read
                )
                matches[order - 1] += min(count, most)
            totals[order - 1] += sum(grams.values())
    if not all(matches):
        return 0.0
    mean = sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / 4
    return 100 * math.exp(min(0.0, 1 - closest / length) + mean)


def test_texts_are_split_at_every_character_that_is_no_letter_digit_or_underscore() -> None:
    assert WORD_FORMS["words"](HYPOTHESES[1]) == "the a - rosa luna ' s 125 . 8m long ; it is powered by mtu engines ."
    assert WORD_FORMS["words"](HYPOTHESES[2]) == "aleksandra kovač \u2013 a solo singer \u2013 performs soul_music ."


def test_webnlgs_form_replaces_characters_outside_ascii_as_unidecode_does() -> None:
    """The expected characters are unidecode 1.4.0's, lower-cased: those of WebNLG's texts that are no plain accents."""
    text = "Ægir, Bjørn Straße Diyarbak\u0131r Azərbaycan \u2013 d\u2019Or Kovač Ñandú Łódź"
    expected = "aegir , bjorn strasse diyarbakir az @ rbaycan - d ' or kovac nandu lodz"
    assert WORD_FORMS["ascii_words"](text) == expected


@pytest.mark.parametrize("form", WORD_FORMS)
def test_bleu_of_words_is_multi_bleus(form: str) -> None:
    to_words = WORD_FORMS[form]
    split = [[to_words(text) for text in several] for several in REFERENCES]
    expected = multi_bleu([to_words(text) for text in HYPOTHESES], split)
    assert 20 < expected < 90
    assert score("bleu", HYPOTHESES, REFERENCES, form).corpus() == pytest.approx(expected, abs=1e-9)


def test_bleu_of_words_smooths_nothing_and_its_resamplings_are_those_of_the_sources() -> None:
    scored = score("bleu", [*HYPOTHESES, "Nothing of it."], [*REFERENCES, ["Some other words"]], "words")
    each = scored.of_sums(scored.statistics)
    alone = [
        score("bleu", [text], [several], "words").corpus() for text, several in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert each == pytest.approx([*alone, 0.0], abs=1e-9)
    assert scored.resampled(np.array([[1, 1, 1, 0]])) == pytest.approx(
        [score("bleu", HYPOTHESES, REFERENCES, "words").corpus()], abs=1e-9
    )


def test_ter_of_words_counts_edits_between_words_that_the_scripts_see() -> None:
    """By hand: "b ." for "c ." is one edit of five words; as they are, "b." for "c." is one edit of three."""
    assert score("ter", ["A-b."], [["a-c."]], "words").corpus() == pytest.approx(100 / 4)
    assert score("ter", ["A b."], [["a c."]]).corpus() == pytest.approx(100 / 2)


def test_a_signature_says_in_which_form_texts_were_compared() -> None:
    signature = score("bleu", HYPOTHESES, REFERENCES, "ascii_words").signature
    assert signature.startswith("nrefs:var|case:mixed|eff:no|tok:none|smooth:none|")
    assert signature.endswith("|most_refs:3|texts:ascii_words")


@pytest.mark.skipif(meteor_problem() is not None, reason=str(meteor_problem()))
def test_meteor_of_words_counts_punctuation_too() -> None:
    scored = score("meteor_1_5", ["it is long ; (very)."], [["It is long; (very)."]], "words")
    assert scored.statistics[0, 0] == len(WORD_FORMS["words"]("it is long ; (very).").split())
    assert scored.corpus() == pytest.approx(100.0)


@pytest.mark.slow
@pytest.mark.skipif("PREFIXRAY_WEBNLG" not in os.environ, reason="PREFIXRAY_WEBNLG names no folder of WebNLG 2017")
def test_humans_on_webnlg_score_as_with_the_challenges_scripts() -> None:
    """The TER of sacrebleu is not tercom's: they differ by 0.1 at most on texts split so."""
    file = Path(os.environ["PREFIXRAY_WEBNLG"], "test", "testdata_with_lex.xml")
    entries = [[text.text or "" for text in entry.iterfind("lex")] for entry in ET.parse(file).getroot().iter("entry")]
    several = random.Random(0).sample([texts for texts in entries if len(texts) > 1], 600)
    hypotheses, references = [texts[0] for texts in several], [texts[1:4] for texts in several]
    assert score("bleu", hypotheses, references, "words").corpus() == pytest.approx(46.56, abs=0.005)
    assert score("ter", hypotheses, references, "words").corpus() == pytest.approx(46.3, abs=0.15)
