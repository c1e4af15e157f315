"""A metric of the user's own: what it returns is scored per source, what is wrong with it is said with its place."""

from pathlib import Path

import pytest
from support.sweep_files import changed, complaint, load

from prefixray.config.schema import SweepConfig
from prefixray.errors import UserError
from prefixray.metrics import decimals, higher_is_better, label, score
from prefixray.planning.estimate import plan_sweep
from prefixray.results.hypotheses import check_data

HYPOTHESES, REFERENCES = ["a b", "c"], [["a b", "x"], ["d"]]
MODULE = """
import math
def share(hypotheses, references):
    return [sum(h == r for r in several) / len(several) for h, several in zip(hypotheses, references)]
def short(hypotheses, references): return [1.0]
def nothing(hypotheses, references): return None
def text(hypotheses, references): return ["good" for _ in hypotheses]
def nan(hypotheses, references): return [1.0, *(math.nan for _ in hypotheses[1:])]
def raises(hypotheses, references): return [1 / len(text) for text in hypotheses]
number = 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_of_test.py").write_text(MODULE)
    (tmp_path / "broken_of_test.py").write_text("1 / 0\n")
    (tmp_path / "script_of_test.py").write_text("import sys\nsys.exit('usage: script FILE')\n")
    (tmp_path / "typo_of_test.py").write_text("def f(:\n")
    (tmp_path / "other_of_test.py").write_text("def share(hypotheses, references): return [1.0 for _ in hypotheses]\n")


def test_its_scores_are_per_source_and_the_score_is_their_mean() -> None:
    scored = score("mine_of_test:share", HYPOTHESES, REFERENCES)
    assert scored.statistics.tolist() == [[0.5, 1.0], [0.0, 1.0]] and scored.corpus() == 0.25
    assert scored.signature == "mine_of_test:share|mean over sources"
    name = scored.metric
    assert (label(name), decimals(name), higher_is_better(name)) == ("share", 3, True)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("short", "returned 1 scores for 2 sources; it must return one number for each source, in their order"),
        ("nothing", "cannot score 2 sources: TypeError: 'NoneType' object is not iterable"),
        ("text", "returned 'good' for source 1 (hypothesis ''); it must be a finite number"),
        ("nan", "returned nan for source 2 (hypothesis 'c'); it must be a finite number"),
        ("raises", "cannot score 2 sources: ZeroDivisionError: division by zero ("),
        ("number", "mine_of_test has no function number ("),
        ("other", "mine_of_test has no function other ("),
    ],
)
def test_a_bad_return_value_is_an_error_with_its_place(function: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        score(f"mine_of_test:{function}", ["", "c"], REFERENCES)
    assert str(caught.value).startswith(f"mine_of_test:{function}: {problem}")
    assert "raises" not in function or str(caught.value).endswith("mine_of_test.py:9)")
    assert function not in ("number", "other") or str(caught.value).endswith("mine_of_test.py)")  # which of that name


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("nowhere.at_all:f", "No module named 'nowhere' (modules are looked for where python looks"),
        ("broken_of_test:f", "broken_of_test cannot be imported: ZeroDivisionError: division by zero ("),
        ("script_of_test:f", "script_of_test cannot be imported: SystemExit: usage: script FILE ("),
        ("typo_of_test:f", "typo_of_test cannot be imported: SyntaxError: invalid syntax (typo_of_test.py, line 1)\n"),
        ("test/bleu:f", "must be package.module:function"),
        ("mine_of_test:shar", "mine_of_test has no function shar"),
    ],
)
def test_a_sweep_file_that_names_no_function_is_refused_with_its_line(metric: str, problem: str) -> None:
    told = complaint(changed("test/bleu", metric))
    assert f"{told}\n".startswith(f"x.yaml:16: final.metric: {metric}: {problem}")


def test_two_functions_of_one_name_are_refused_since_tables_could_not_tell_them_apart() -> None:
    both = "mine_of_test:share, more_metrics: [other_of_test:share, mine_of_test:share]"
    problem = "tables call two metrics share: give one of the functions another name"
    assert complaint(changed("test/bleu", both)).count(problem) == 3
    assert load(changed("test/bleu", both.replace("other_of_test", "mine_of_test"))).final.more_metrics


def test_a_function_named_like_a_column_of_the_tables_is_refused() -> None:
    Path("named_of_test.py").write_text("def BLEU(hypotheses, references): return [1.0 for _ in hypotheses]\n")
    told = complaint(changed("test/bleu", "named_of_test:BLEU"))
    assert told.endswith("tables have a column BLEU already: give the function another name")


def test_a_function_that_cannot_score_is_found_before_anything_starts() -> None:
    def config(function: str) -> SweepConfig:
        return load(changed("metric: test/bleu", f"metric: mine_of_test:{function}"))

    def check(config: SweepConfig) -> None:
        check_data(config.task, config.final.named_metrics)

    check(config("share"))
    with pytest.raises(UserError, match="mine_of_test:raises: cannot score 8 sources: ZeroDivisionError"):
        check(config("raises"))
    with pytest.raises(UserError, match="json:dumps: cannot score 8 sources: TypeError"):
        plan_sweep(config("share"), overrides=["final.metric=json:dumps"])
