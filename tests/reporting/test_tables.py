"""Tables from a results record: what is printed, and what is written."""

import csv
import math
from pathlib import Path

import pytest
from support.quickstart_results import interval, quickstart_sweep

from prefixray.reporting.figures import difference_figure, size_figure
from prefixray.reporting.tables import (
    WIDTH,
    csv_rows,
    csv_text,
    group_grid,
    render_latex,
    render_markdown,
    render_text,
    search_table,
    seed_grid,
)
from prefixray.results.record import GroupResult, Results


@pytest.fixture
def results() -> Results:
    return quickstart_sweep()


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


def test_of_a_single_source_nothing_follows(results: Results) -> None:
    results["num_sources"] = 1
    text = render_text(results)
    assert "58.3 [-inf,  inf]" in text and "one source tells nothing apart." in text
    row = csv_rows(results)[1]
    assert [row[name] for name in ("bleu_low", "bleu_high", "difference_low")] == [-math.inf, math.inf, -math.inf]
    for figure in (difference_figure(results), size_figure(results, results["arms"][1:])):
        assert figure.numbers.rows[0][-2:] in (["-inf", "+inf"], ["-inf", "inf"]), "a figure says the same"
        assert "[-inf, " in figure.chart and "whisker" not in figure.chart and '"inf' not in figure.chart


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


def test_each_seeds_scores_have_a_table_of_their_own(results: Results) -> None:
    assert seed_grid(results) is None, "the final table has the scores of a single seed"
    for one in results["arms"][1:]:
        scores = {"bleu": 50.0, "nist": 5.0, "rouge_l_coco": 60.0, "cider": 1.0}
        one["seeds"] = [
            {"seed": 7, "scores": scores, "dev_loss": 1.5, "folder": "a"},
            {"seed": 8, "scores": {**scores, "bleu": 52.25}, "dev_loss": None, "folder": "b"},
        ]
    grid = seed_grid(results)
    assert grid is not None and grid.text() in render_text(results) and grid.markdown() in render_markdown(results)
    assert [line.split() for line in grid.text().splitlines()[:3]] == [
        ["arm", "seed", "BLEU", "NIST", "COCO", "R-L", "CIDEr", "dev/loss"],
        ["prefix", "7", "50.0", "5.00", "60.0", "1.00", "1.500"],
        ["prefix", "8", "52.2", "5.00", "60.0", "1.00", "-"],
    ]


def test_latex_has_the_final_table_with_its_notes_as_comments(results: Results) -> None:
    results["arms"][1]["arm"] = "prefix_5 & more"
    lines = render_latex(results).splitlines()
    assert lines[0] == "% E2E test, 40 of 630 sources, beam 5, 1 seed"
    start = lines.index(r"\begin{tabular}{lrrrrrrrrrr}")
    assert lines[start + 1 : start + 4] == [
        r"\toprule",
        r"arm & BLEU {[}95 \%] & vs finetune {[}95 \%] & p (Holm) & NIST & COCO R-L & CIDEr & trained (\%) "
        r"& stored (\%) & trials & min \\",
        r"\midrule",
    ]
    assert lines[start + 4].startswith(r"untuned & 2.1 {[} 1.4,  3.0] & -54.0 {[}-57.1, -51.0] & $<$0.001 * &")
    assert lines[start + 5].startswith(r"prefix\_5 \& more & 58.3")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


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


def test_markdown_shows_a_source_as_it_is(results: Results) -> None:
    results["examples"][0]["source"] = "a `code` with\n\na *blank* line"
    assert "\n\n**a \\`code\\` with a \\*blank\\* line**\n\n" in render_markdown(results)


def test_csv_holds_the_numbers_unrounded(results: Results, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(csv_text(csv_rows(results)))
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["untuned", "prefix", "adapter", "finetune"]
    assert float(rows["prefix"]["bleu"]) == 58.31
    assert float(rows["prefix"]["difference_high"]) == 10.1
    assert rows["finetune"]["difference"] == "" and rows["untuned"]["method"] == ""
    assert rows["finetune"]["trained_parameters"] == "134515008"


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
    (tmp_path / "results.csv").write_text(csv_text(csv_rows(results)))
    header, first, *_ = csv.reader((tmp_path / "results.csv").read_text(encoding="utf-8").splitlines())
    row = dict(zip(header, first, strict=True))
    assert (float(row["bleu[seen]"]), float(row["bleu[unseen]"])) == pytest.approx((6.13, -1.87))


def test_a_group_takes_no_column_of_another_number(results: Results) -> None:
    plain = csv_rows(results)
    for each in results["arms"]:
        part: GroupResult = {"num_sources": 9, "scores": dict(each["scores"]), "difference": None}
        each["groups"] = {name: part for name in ("low", "high", "sd")}
    assert [{key: row[key] for key in before} for row, before in zip(csv_rows(results), plain, strict=True)] == plain
    assert len(csv_rows(results)[0]) == len(plain[0]) + 3 * len(results["metrics"])
