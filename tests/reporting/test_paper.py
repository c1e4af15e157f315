"""The paper's numbers and ours beside them: which row, which version, what is called no reproduction."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from prefixray import report
from prefixray.config.load import load_sweep
from prefixray.errors import UserError
from prefixray.reporting.paper import paper_list, paper_text
from prefixray.reporting.published import FIGURES, TABLES
from prefixray.results.record import ArmResult, Interval, Results

PAPER = Path(__file__).parents[2] / "sweeps" / "paper"


def interval(value: float) -> Interval:
    return {"value": value, "low": value - 1, "high": value + 1}


def arm(name: str, **scores: float) -> ArmResult:
    own = {metric: interval(value) for metric, value in scores.items()}
    return {
        "arm": name,
        "method": "prefix",
        "config": {},
        "seeds": [],
        "scores": own,
        "sd": {},
        "difference": None,
        "p": None,
        "p_holm": None,
        "trained_parameters": 1,
        "stored_parameters": 1,
        "num_trials": 1,
        "minutes": 1.0,
        "searched": False,
    }


def results(base: str, task: str, arms: list[ArmResult], num_sources: int = 630) -> Results:
    return {
        "sweep": "e2e",
        "base": base,
        "base_digest": "",
        "task": task,
        "split": "test",
        "num_sources": num_sources,
        "num_sources_total": 630,
        "metric": next(iter(arms[0]["scores"])),
        "reference": arms[0]["arm"],
        "metrics": list(arms[0]["scores"]),
        "signatures": {},
        "evaluation": "paper",
        "decoding": {"num_beams": 5},
        "precision": "bf16",
        "num_parameters": 1,
        "versions": {},
        "machine": {},
        "seed": 1,
        "arms": arms,
        "resolution": 1.0,
        "examples": [],
        "search": [],
    }


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_an_arm_of_the_file_that_makes_it_and_has_every_column(name: str) -> None:
    table = TABLES[name]
    config = load_sweep(PAPER / f"{table.sweep}.yaml", _data(table.sweep))
    assert config.task.name == table.task and config.base == next(iter(table.rows))
    for rows in table.rows.values():
        assert set(rows) <= {one.name for one in config.arms}
        for row in [*rows.values(), *table.quoted.values()]:
            assert {len(numbers) for numbers in (row.arxiv, row.acl) if numbers is not None} == {len(table.columns)}


def _data(sweep: str) -> list[str]:
    """XSum's list of addresses is not here: any file stands in for it."""
    return [f"task.urls={__file__}"] if sweep in ("xsum_news", "xsum_sport") else []


def test_every_file_of_the_paper_is_measured_as_the_paper_did() -> None:
    for file in PAPER.glob("*.yaml"):
        config = load_sweep(file, _data(file.stem))
        assert config.evaluation == "paper" and config.task.tokenised == (config.task.name == "e2e")


def test_every_figure_has_a_file_and_every_file_is_listed() -> None:
    made = {entry.sweep for entry in (*TABLES.values(), *FIGURES.values())}
    assert made == {file.stem for file in PAPER.glob("*.yaml")}
    assert all(f"sweeps/paper/{sweep}.yaml" in paper_list() for sweep in made)


def test_ours_stand_beside_both_versions_with_the_differences() -> None:
    mine = [arm("finetune", bleu=68.9, nist=8.0), arm("prefix", bleu=67.0, nist=8.81)]
    assert paper_text(results("gpt2-medium", "e2e", mine), "table1").splitlines()[:9] == [
        "Li & Liang 2021, Table 1, E2E; gpt2-medium",
        "arm               metric          ours [95 %]  arXiv v1  ours - arXiv  ACL 2021  ours - ACL",
        "finetune          BLEU      68.9 [67.9, 69.9]      68.2        +0.7 ~      68.8      +0.1 ~",
        "                  NIST      8.00 [7.00, 9.00]      8.62       -0.62 ~      8.71     -0.71 ~",
        "                  METEOR                    -      46.2             -      46.1           -",
        "                  COCO R-L                  -      71.0             -      71.1           -",
        "                  CIDEr                     -      2.47             -      2.43           -",
        "finetune_top2     BLEU                      -      68.1             -      68.1           -",
        "                  NIST                      -      8.59             -      8.59           -",
    ]
    text = paper_text(results("gpt2-medium", "e2e", mine), "table1")
    assert "prefix            BLEU      67.0 [66.0, 68.0]      69.7        -2.7        70.3      -3.3" in text
    assert "Shen et al. 2019  BLEU                      -      68.6" in text
    assert "--set 'final.more_metrics=[test/meteor_1_5, test/rouge_l_coco, test/cider]'" in text
    assert "ANOTHER" not in text and "Ours on" not in text


def test_the_row_is_that_of_the_base() -> None:
    text = paper_text(results("gpt2-large", "e2e", [arm("prefix", bleu=70.0)]), "table1")
    assert "gpt2-large" in text.splitlines()[0] and "70.0 [69.0, 71.0]      70.3" in text and "adapter_3" not in text


def test_another_base_a_part_of_the_sources_and_another_task_are_called_so_first() -> None:
    text = paper_text(results("a/small-one", "e2e", [arm("prefix", bleu=50.0)], 60), "table1")
    assert text.splitlines()[1:3] == [
        "ANOTHER BASE, a/small-one: not a reproduction; the differences are between two models.",
        "Ours on 60 of 630 test sources.",
    ]
    other = paper_text(results("a/small-one", "dialogsum", [arm("prefix_2", rouge_1=30.0)], 60), "table2")
    assert "ANOTHER TASK, dialogsum: not a reproduction; no difference is told." in other
    (line,) = [line for line in other.splitlines() if line.startswith("prefix_2")]
    assert line.split() == ["prefix_2", "ROUGE-1", "30.00", "[29.00,", "31.00]", "43.80", "-", "43.80", "-"]


def test_the_papers_dev_scores_are_not_compared_with_ours_of_test() -> None:
    text = paper_text(results("gpt2-large", "dart", [arm("prefix", bleu=50.0)]), "acl9-dart")
    assert text.splitlines()[:2] == [
        "Li & Liang 2021, Table 9 of ACL, DART, dev; gpt2-large",
        "THE PAPER'S ARE OF dev, ours of test: no difference is told.",
    ]
    (line,) = [line for line in text.splitlines() if line.startswith("prefix")]
    assert line.split() == ["prefix", "BLEU", "50.0", "[49.0,", "51.0]", "-", "-", "50.84", "-"]


def test_groups_are_compared_with_the_papers_seen_and_unseen() -> None:
    mine = arm("prefix", bleu=55.0, ter=40.0)
    mine["groups"] = {
        name: {"num_sources": 9, "scores": {"bleu": interval(bleu), "ter": interval(30.0)}, "difference": None}
        for name, bleu in {"seen": 62.0, "unseen": 40.0}.items()
    }
    lines = paper_text(results("gpt2-medium", "webnlg", [mine]), "table1-webnlg").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("prefix"))
    shown = [line.removeprefix("prefix").split() for line in lines[first : first + 9]]
    assert shown[0] == ["BLEU", "seen", "62.0", "[61.0,", "63.0]", "62.9", "-0.9", "~", "62.9", "-0.9", "~"]
    assert shown[1] == ["BLEU", "unseen", "40.0", "[39.0,", "41.0]", "45.6", "-5.6", "45.3", "-5.3"]
    assert shown[2][:2] == ["BLEU", "55.0"] and shown[3] == ["METEOR", "seen", "-", "44", "-", "44", "-"]
    assert shown[8] == ["TER", "40.0", "[39.0,", "41.0]", "41", "-1.0", "~\u2020", "42", "-2.0", "\u2020"]
    assert "\u2020 TER: by sacrebleu, 0.1 from tercom on such text (docs/paper/deviations.md)." in lines


def test_what_was_not_measured_as_the_paper_did_has_a_mark_and_the_remedy() -> None:
    own = results("gpt2-medium", "e2e", [arm("prefix", bleu=67.0)])
    assert "\u2020" not in paper_text(own, "table1")
    own["evaluation"] = "own"
    lines = paper_text(own, "table1").splitlines()
    (bleu,) = [line for line in lines if line.startswith("prefix")]
    assert bleu.split()[5:] == ["69.7", "-2.7", "\u2020", "70.3", "-3.3", "\u2020"]
    remedy = "as the paper did: --set evaluation=paper (docs/paper/deviations.md)."
    assert f"\u2020 measured in prefixray's own way; {remedy}" in lines
    own |= {"evaluation": "paper", "decoding": {"length_with_prompt": False, "ban_line_breaks": True}}
    assert "as the paper did: --set final.length_with_prompt=true (docs" in paper_text(own, "table1")
    summaries = results("facebook/bart-large", "xsum", [arm("prefix_2", rouge_1=43.0)])
    assert "\u2020 ROUGE-1, ROUGE-2, ROUGE-L: over all summaries and whole references" in paper_text(
        summaries, "table2"
    )


def test_of_a_figure_the_papers_words_are_printed_with_ours_below() -> None:
    text = paper_text(results("a/small-one", "e2e", [arm("random", bleu=40.0), arm("banana", bleu=55.0)]), "figure5")
    assert "The paper: Random initialisation is low" in text and "Ours: a/small-one" in text
    assert "banana  55.0 [54.0, 56.0]" in text


def test_what_the_paper_does_not_have_is_answered_with_what_it_has() -> None:
    with pytest.raises(UserError, match=r"^--paper: tabel1: no such table or figure \(did you mean 'table1'\?\)$"):
        paper_text(results("gpt2-medium", "e2e", [arm("prefix", bleu=1.0)]), "tabel1")


def test_the_list_needs_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--paper", "list"]) == 0
    assert "table1-webnlg" in capsys.readouterr().out
    assert report.main(["--paper", "table1"]) == 2
    assert capsys.readouterr().err.startswith("prefixray report: which sweep? ")


@pytest.fixture
def _no_process_is_left() -> Iterator[None]:
    yield
    for process in psutil.Process().children(recursive=True):
        process.kill()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_no_process_is_left")
def test_a_file_of_the_paper_runs_at_its_scale_to_its_figure(tmp_path: Path, base_folders: Mapping[str, Path]) -> None:
    """The shipped file for low data, its base and steps alone made smaller still."""

    def run(*arguments: str) -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    smaller = (f"base={base_folders['llama']}", "task.num_test=4", "final.num_beams=2", "final.max_new_tokens=6")
    file, recipe = str(PAPER / "lowdata_e2e.yaml"), "train={num_steps: 4, batch_size: 2, eval_every: 2}"
    overrides = [word for one in (*smaller, recipe) for word in ("--set", one)]
    run("prefixray.sweep", file, "--scale", "laptop", *overrides)
    record = json.loads((tmp_path / "runs/lowdata_e2e-laptop/results.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["untuned", "prefix", "random", "finetune"]
    assert all(len({seed["dev_loss"] for seed in arm["seeds"]}) == 5 for arm in record["arms"][1:])
    shown = run("prefixray.report", "lowdata_e2e-laptop", "--paper", "figure3-e2e")
    assert "ahead of fine-tuning by 2.9 BLEU" in shown and "random" in shown
    assert shown == run("prefixray.report", file, "--scale", "laptop", "--paper", "figure3-e2e")
