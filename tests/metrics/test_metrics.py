"""The metrics, held against numbers from the programs that define them.

Where numbers come from, all computed on 2026-11-24:
- NIST: `NISTScore` of the E2E challenge's scorer with its own tokenizer, transcribed from `metrics/pymteval.py` as it
  stands in the fork lxuechen/e2e-metrics, commit 11099e3.
- ROUGE-L and CIDEr: pycocoevalcap 1.2 behind its PTBTokenizer (CoreNLP 3.4.1, Java), as the E2E scorer calls them.
- METEOR: pycocoevalcap 1.2 behind the same tokenizer; METEOR 1.5 itself, in Java.
- the BLEU of a real output: `BLEUScore` of the E2E challenge's scorer, transcribed likewise. Elsewhere BLEU, chrF and
  TER are held against sacrebleu itself, called here; ROUGE-1, -2 and -L against rouge-score itself, called here.
- tokens: the same PTBTokenizer with its list of punctuation removed.
"""

import csv
import gzip
from importlib import metadata, resources
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator

from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.metrics import METRICS, Scored, higher_is_better, is_of_likelihoods, label, of_likelihoods, score
from prefixray.metrics.coco import _longest_common_subsequence
from prefixray.metrics.meteor import meteor_problem
from prefixray.metrics.tokenization import coco_words

HYPOTHESES = [
    "The Eagle is a cheap coffee shop in the riverside area.",
    "A family-friendly pub, the Mill serves Italian food for less than £20.",
    "It isn't kid friendly (but it's near Café Rouge).",
    "They're located in the city centre, near Burger King and serve Indian food.",
]
REFERENCES = [
    [
        "The Eagle is a cheap coffee shop located in the riverside area.",
        "In the riverside area there is a cheap coffee shop called The Eagle.",
        "The Eagle: cheap coffee near the river!",
    ],
    ["The Mill is a family friendly Italian pub with prices below £20."],
    ["It is not kid-friendly, but it's near Café Rouge.", "Near Café Rouge (not kid friendly)."],
    [
        "Near Burger King in the city centre, you'll find Indian food at The Vaults.",
        "They serve Indian food.",
        "An Indian restaurant, located in the city centre near Burger King, isn't cheap.",
        "The Vaults serves Indian food.",
    ],
]
IN_PYTHON = [metric for metric in METRICS if metric != "meteor_1_5" and not is_of_likelihoods(metric)]
needs_meteor = pytest.mark.skipif(meteor_problem() is not None, reason=str(meteor_problem()))
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
TOKENS = {
    "It isn't kid friendly (but it's near Café Rouge).": "it is n't kid friendly -lrb- but it 's near café rouge -rrb-",
    "The Eagle's prices are £20-25; they're \"moderate\".": "the eagle 's prices are # 20-25 they 're moderate",
    "5-star Indian food, served by the river - don't miss it!": "5-star indian food served by the river do n't miss it",
    "You cannot book... St. John's, 10:30 pm, for 1,000 people.": (
        "you can not book st. john 's 10:30 pm for 1,000 people"
    ),
    "It'll cost more than £30, and you'd like the hors d'oeuvres.": (
        "it 'll cost more than # 30 and you 'd like the hors d'oeuvres"
    ),
    "William Anders was born in the U.S. on October 17, 1933.": (
        "william anders was born in the u.s. on october 17 1933"
    ),
    "Runway 14L/32R is 4,349.0 m long and/or paved.": "runway 14l/32r is 4,349.0 m long and/or paved",
    "The \u201cPunter\u201d \u2013 a child-friendly café \u2013 serves B&B guests\u2026": (
        "the punter a child-friendly café serves b&b guests"
    ),
}


@pytest.fixture(scope="module")
def e2e() -> list[list[str]]:
    """The references of the E2E test set's 616 sources that have several."""
    raw = resources.files("prefixray").joinpath("data/e2e/test.csv.gz").read_bytes()
    grouped: dict[str, list[str]] = {}
    for row in csv.DictReader(gzip.decompress(raw).decode("utf-8-sig").splitlines(keepends=True)):
        grouped.setdefault(row["mr"], []).append(row["ref"])
    return [several for several in grouped.values() if len(several) > 1]


@pytest.fixture(scope="module")
def output() -> tuple[list[str], list[list[str]]]:
    """What a prefix made of 40 sources (`tests/data/README.md` says how), and their references."""
    lines = (Path(__file__).parent / "e2e_prefix.hyp").read_text(encoding="utf-8").splitlines()
    sources = load_task(TaskConfig(name="e2e", num_test=40)).test_sources
    return lines, [list(sourced.references) for sourced in sources]


def first_against_rest(e2e: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return [several[0] for several in e2e], [several[1:] for several in e2e]


def first_of_the_next_source(e2e: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return [e2e[(i + 1) % len(e2e)][0] for i in range(len(e2e))], e2e


def by_sacrebleu(metric: str, hypotheses: list[str], references: list[list[str]]) -> float:
    most = max(map(len, references))
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    match metric:
        case "bleu":
            return float(sacrebleu.corpus_bleu(hypotheses, streams, lowercase=True).score)  # type: ignore[arg-type]
        case "chrf":
            return float(sacrebleu.corpus_chrf(hypotheses, streams).score)  # type: ignore[arg-type]
        case _:
            return float(sacrebleu.corpus_ter(hypotheses, streams).score)  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "expected"), [
    ("bleu", 48.56242407213742), ("nist", 6.403833760373312),  # the E2E challenge's scorer
    ("rouge_l_coco", 59.61138052973827), ("cider", 1.4107786872733872),  # pycocoevalcap
    pytest.param("meteor_1_5", 35.08387409042817, marks=needs_meteor),  # pycocoevalcap, METEOR 1.5
])  # fmt: skip
def test_a_real_output_scores_as_with_the_scorer_that_defines_the_metric(
    metric: str, expected: float, output: tuple[list[str], list[list[str]]]
) -> None:
    assert score(metric, *output).corpus() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_a_real_output_scores_as_with_sacrebleu(metric: str, output: tuple[list[str], list[list[str]]]) -> None:
    assert score(metric, *output).corpus() == pytest.approx(by_sacrebleu(metric, *output), abs=1e-9)


@pytest.mark.parametrize("metric", ROUGE)
def test_a_real_output_scores_as_with_rouge_score(metric: str, output: tuple[list[str], list[list[str]]]) -> None:
    scorer, kind = RougeScorer([ROUGE[metric]], use_stemmer=True), ROUGE[metric]
    scores = [100 * scorer.score_multi(several, text)[kind].fmeasure for text, several in zip(*output, strict=True)]
    assert score(metric, *output).corpus() == pytest.approx(np.mean(scores), abs=1e-9)


@pytest.mark.parametrize(("metric", "expected"), [
    ("nist", 8.898831365878737), ("rouge_l_coco", 63.81129068662674), ("cider", 1.8572240685162773),
])  # fmt: skip
def test_a_human_against_the_other_humans_scores_as_with_the_e2e_scorer(
    metric: str, expected: float, e2e: list[list[str]]
) -> None:
    assert score(metric, *first_against_rest(e2e)).corpus() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("metric", "expected"), [
    ("nist", 5.974827755344477), ("rouge_l_coco", 49.09478855443256), ("cider", 1.1008391341124564),
])  # fmt: skip
def test_a_description_of_another_restaurant_scores_as_with_the_e2e_scorer(
    metric: str, expected: float, e2e: list[list[str]]
) -> None:
    assert score(metric, *first_of_the_next_source(e2e)).corpus() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("metric", "expected"), [
    ("nist", 5.039428458279144), ("rouge_l_coco", 70.27487620547707), ("cider", 3.0836725933148177),
])  # fmt: skip
def test_punctuation_contractions_and_currency_score_as_with_the_e2e_scorer(metric: str, expected: float) -> None:
    assert score(metric, HYPOTHESES, REFERENCES).corpus() == pytest.approx(expected, abs=1e-9)


def test_each_source_scores_as_with_the_coco_scorer() -> None:
    rouge_l = [94.9080622347949, 38.461538461538464, 71.24087591240876, 76.48902821316614]
    cider = [5.062678028427828, 1.7050002433134352, 3.2307442301643086, 2.3362678713536984]
    assert score("rouge_l_coco", HYPOTHESES, REFERENCES).statistics[:, 0] == pytest.approx(rouge_l, abs=1e-9)
    assert score("cider", HYPOTHESES, REFERENCES).statistics[:, 0] == pytest.approx(cider, abs=1e-9)


@pytest.mark.parametrize("text", TOKENS)
def test_words_are_those_of_the_java_tokenizer(text: str) -> None:
    assert " ".join(coco_words(text)) == TOKENS[text]


@pytest.mark.parametrize(("metric", "num_sources"), [("bleu", 616), ("chrf", 100), ("ter", 20)])
def test_sacrebleus_metrics_equal_sacrebleu(metric: str, num_sources: int, e2e: list[list[str]]) -> None:
    for make in (first_against_rest, first_of_the_next_source):
        hypotheses, references = make(e2e[:num_sources])
        expected = by_sacrebleu(metric, hypotheses, references)
        assert score(metric, hypotheses, references).corpus() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", ROUGE)
def test_each_source_scores_as_with_rouge_score_and_its_best_reference(metric: str) -> None:
    scorer = RougeScorer([ROUGE[metric]], use_stemmer=True)
    alone = [
        [100 * scorer.score(reference, text)[ROUGE[metric]].fmeasure for reference in several]
        for text, several in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    scored = score(metric, HYPOTHESES, REFERENCES)
    assert scored.statistics[:, 0] == pytest.approx([max(several) for several in alone], abs=1e-12)
    assert scored.corpus() == pytest.approx(np.mean([max(several) for several in alone]), abs=1e-12)


def test_each_kind_of_rouge_has_its_own_best_reference() -> None:
    several = ["b a d c", "a b x y z"]  # of the first all words are there, of the second a pair
    scores = {metric: score(metric, ["a b c d"], [several]).corpus() for metric in ROUGE}
    assert scores == pytest.approx({"rouge_1": 100.0, "rouge_2": 100 * 2 / 7, "rouge_l": 50.0}, abs=1e-9)


def test_rouge_is_what_the_packages_bootstrap_varies_about(e2e: list[list[str]]) -> None:
    hypotheses, references = first_against_rest(e2e[:200])
    np.random.seed(1)  # the package draws from numpy's global generator
    aggregator, scorer = BootstrapAggregator(), RougeScorer(list(ROUGE.values()), use_stemmer=True)
    for text, several in zip(hypotheses, references, strict=True):
        aggregator.add_scores(scorer.score_multi(several, text))
    middle = {metric: 100 * aggregator.aggregate()[kind].mid.fmeasure for metric, kind in ROUGE.items()}
    ours = {metric: score(metric, hypotheses, references).corpus() for metric in ROUGE}
    assert ours == pytest.approx(middle, abs=0.1)


def test_rouge_stems_words_and_ignores_case_and_punctuation() -> None:
    assert score("rouge_2", ["SUMMARISING, the talks!"], [["summarised the talk"]]).corpus() == pytest.approx(100)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize(
    "hypothesis", ["", "zebra", "the", "the cheap", "near the river", "the eagle near cheap pubs", "the the the the"]
)
def test_hardly_matching_outputs_equal_sacrebleu(metric: str, hypothesis: str) -> None:
    references = [["The Eagle is a cheap pub near the river.", "The Eagle is cheap."]]
    expected = by_sacrebleu(metric, [hypothesis], references)
    assert score(metric, [hypothesis], references).corpus() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("metric", "hypothesis"), list(product(IN_PYTHON, ["", " ", ".", "xy xy xy"])))
def test_an_empty_output_is_worth_nothing_and_does_no_harm(metric: str, hypothesis: str) -> None:
    alone = score(metric, [hypothesis], [["Eagle"]]).corpus()
    assert alone == (0.0 if higher_is_better(metric) else pytest.approx(100.0 * max(1, len(hypothesis.split()))))
    among = score(metric, [*HYPOTHESES, hypothesis], [*REFERENCES, ["Eagle"]])
    assert np.isfinite(among.corpus()) and np.isfinite(among.statistics).all()


@pytest.mark.parametrize("metric", IN_PYTHON)
def test_an_empty_reference_is_no_error(metric: str) -> None:
    assert np.isfinite(score(metric, ["", "Eagle"], [[""], ["", "The Eagle"]]).corpus())


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter", "rouge_l_coco", "rouge_1", "rouge_2", "rouge_l"])
def test_a_resampling_scores_like_its_sources_written_out(metric: str) -> None:
    draws = np.random.default_rng(1).integers(0, 4, size=(5, 4))
    weights = np.stack([np.bincount(draw, minlength=4) for draw in draws])
    fast = score(metric, HYPOTHESES, REFERENCES).resampled(weights)
    slow = [score(metric, [HYPOTHESES[i] for i in d], [REFERENCES[i] for i in d]).corpus() for d in draws]
    assert fast == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("metric", ["nist", "cider"])
def test_a_resampling_keeps_the_weights_of_the_full_reference_set(metric: str) -> None:
    scored = score(metric, HYPOTHESES, REFERENCES)
    drawn = Scored(metric, scored.statistics[[0, 0, 2, 3]], scored.signature)
    assert scored.resampled(np.array([[2, 0, 1, 1]])) == pytest.approx([drawn.corpus()], abs=1e-9)


@pytest.mark.parametrize("metric", IN_PYTHON)
def test_the_order_of_references_is_irrelevant(metric: str) -> None:
    turned = [several[::-1] for several in REFERENCES]
    assert score(metric, HYPOTHESES, turned).corpus() == pytest.approx(
        score(metric, HYPOTHESES, REFERENCES).corpus(), abs=1e-9
    )


def test_the_longest_common_subsequence_equals_the_textbooks_table() -> None:
    draw = np.random.default_rng(2)
    for _ in range(200):
        left, right = (tuple(map(str, draw.integers(0, 4, size=draw.integers(0, 12)))) for _ in range(2))
        table = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
        for i, j in product(range(len(left)), range(len(right))):
            table[i + 1, j + 1] = table[i, j] + 1 if left[i] == right[j] else max(table[i, j + 1], table[i + 1, j])
        assert _longest_common_subsequence(left, right) == table[-1, -1]


def test_a_signature_says_how_rouge_was_computed() -> None:
    expected = f"rouge-score:{metadata.version('rouge-score')}|rougeL|stemmer:porter|F1|refs:best"
    assert score("rouge_l", HYPOTHESES, REFERENCES).signature == expected


def test_a_signature_says_how_bleu_was_computed() -> None:
    assert score("bleu", HYPOTHESES, REFERENCES).signature == (
        f"nrefs:var|case:lc|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )


def test_errors_and_distances_are_better_when_lower() -> None:
    labels = ["BLEU", "NIST", "COCO R-L", "CIDEr", "chrF", "TER", "METEOR", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    labels += ["exact match", "token F1", "accuracy", "divergence", "perplexity"]
    assert [label(metric) for metric in METRICS] == labels
    assert [metric for metric in METRICS if not higher_is_better(metric)] == ["ter", "divergence", "perplexity"]


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    known = "bleu, nist, rouge_l_coco, cider, chrf, ter, meteor_1_5, rouge_1, rouge_2, rouge_l, "
    known += "exact_match, token_f1, accuracy, divergence, perplexity"
    with pytest.raises(UserError, match=f"'blue' does not exist; metrics are {known}"):
        score("blue", HYPOTHESES, REFERENCES)


# METEOR: each test starts Java, which takes seconds


@needs_meteor
def test_meteor_sums_up_resamples_and_takes_empty_texts() -> None:
    """An output that is its reference counts as whole, in a sum too; as in METEOR's own sums."""
    several = [*REFERENCES, ["The Mill is a pub."], ["Eagle"], [""]]
    scored = score("meteor_1_5", [*HYPOTHESES, "The mill is a pub", "", "Eagle"], several)
    each = scored.of_sums(scored.statistics)
    assert each[4:] == pytest.approx([100.0, 0.0, 0.0], abs=1e-9)
    drawn = Scored("meteor_1_5", scored.statistics[[0, 0, 2, 4]], scored.signature)
    assert scored.resampled(np.array([[2, 0, 1, 0, 1, 0, 0]])) == pytest.approx([drawn.corpus()], abs=1e-9)
    assert scored.signature == "case:lc|tok:coco|meteor:1.5|en|norm|java"


@pytest.mark.slow
@needs_meteor
def test_each_source_and_their_sum_score_as_with_pycocoevalcaps_meteor(e2e: list[list[str]]) -> None:
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    hypotheses, references = first_against_rest(e2e)
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": text} for text in several] for i, several in enumerate(references)})
    output = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
    corpus, each = Meteor().compute_score(truth, output)
    scored = score("meteor_1_5", hypotheses, references)
    assert scored.corpus() == pytest.approx(100 * corpus, abs=1e-9)
    assert scored.of_sums(scored.statistics) == pytest.approx([100 * one for one in each], abs=1e-9)


def test_without_java_or_without_the_jar_meteor_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefixray.metrics.meteor.find_spec", lambda name: None)
    monkeypatch.setattr("prefixray.metrics.meteor.shutil.which", lambda name: "/usr/bin/java")
    assert meteor_problem() == (
        "METEOR 1.5 comes with pycocoevalcap, which is not installed (pip install 'prefixray[meteor]')"
    )
    monkeypatch.setattr("prefixray.metrics.meteor.shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"is a Java program, and there is no java on the PATH \(apt-get install"):
        score("meteor_1_5", HYPOTHESES, REFERENCES)


def test_likelihoods_are_scored_by_token_and_resampled_by_source() -> None:
    sums, num_tokens = [2.0, 9.0, 0.0], [2, 3, 1]
    draws = np.array([[1, 1, 1], [0, 2, 0], [3, 0, 1]])
    found = {metric: of_likelihoods(metric, sums, num_tokens) for metric in ("divergence", "perplexity")}
    assert found["divergence"].corpus() == pytest.approx(11 / 6)
    assert found["divergence"].resampled(draws) == pytest.approx([11 / 6, 3.0, 6 / 7])
    assert found["perplexity"].resampled(draws) == pytest.approx(np.exp([11 / 6, 3.0, 6 / 7]))
