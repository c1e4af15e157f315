"""The report: its numbers are those of the record, it needs nothing besides itself, and older records give one too."""

import copy
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.example_results import finished_sweep

from prefixray.reporting.figures import loss_limits
from prefixray.reporting.page import render_html, render_page_markdown, write_page
from prefixray.reporting.plots import (
    Axis,
    Dot,
    Groups,
    Line,
    Series,
    bars,
    curves,
    forest,
    scatter,
    strips,
    upper_limit,
)
from prefixray.reporting.sections import Section, rank_correlation, sections
from prefixray.results.compare import NUM_EXTREMES, _extremes
from prefixray.results.record import Results

VOID = {"meta", "br"}
FOLDER = Path("runs/tiny")
BAD = "<script>alert('x')</script> & \"quoted\" | a_b*c"


class Page(HTMLParser):
    """Reads a page: its tables, its charts, the tags that were not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.charts: list[list[str]] = []  # of each, the classes of its texts
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts = 0
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "svg":
            self.charts.append([])
        elif tag == "text":
            self.charts[-1].append(dict(attrs).get("class") or "")
        self.scripts += tag == "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


@pytest.fixture
def results() -> Results:
    return finished_sweep()


def older(results: Results) -> Results:
    """The record as it was before curves, scores of examples, rungs and importance stood in it."""
    record: Any = copy.deepcopy(results)
    del record["rungs"], record["importance"], record["budget"]
    for one in record["search"]:
        del one["curve"]
    for one in record["examples"]:
        one.pop("scores")
        one.pop("arm", None)
    old: Results = record
    return old


def section(results: Results, key: str) -> Section:
    return next(one for one in sections(results, FOLDER) if one.key == key)


def test_the_numbers_of_the_first_table_are_those_of_the_record(results: Results) -> None:
    head, *rows = Page(render_html(results, FOLDER)).tables[0]
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(shown) == [one["arm"] for one in results["arms"]]
    for one in results["arms"]:
        row, score, difference = shown[one["arm"]], one["scores"]["bleu"], one["difference"]
        assert row["BLEU [95 %]"] == f"{score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"
        assert row["vs finetune [95 %]"] == (
            "reference"
            if difference is None
            else f"{difference['value']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        )
        assert row["p (Holm)"] == ("-" if one["p_holm"] is None else f"{one['p_holm']:.3f}")
        assert row["min"] == ("-" if one["method"] is None else f"{one['minutes']:.1f}")


def test_groups_of_sources_have_their_table_where_the_task_names_some(results: Results) -> None:
    assert "groups" not in {one.key for one in sections(results, FOLDER)}
    for one in results["arms"]:
        scores = {"bleu": {"value": 41.5, "low": 40.0, "high": 43.0}}
        one["groups"] = {name: {"num_sources": 1234, "scores": scores, "difference": None} for name in ("seen", "new")}
    tables = Page(render_html(results, FOLDER)).tables
    head, *rows = next(table for table in tables if "group" in table[0])
    assert head[:4] == ["arm", "group", "sources", "BLEU [95 %]"]
    assert rows[3][:4] == ["prefix", "new", "1,234", "41.5 [40.0, 43.0]"]
    assert "| prefix | new | 1,234 |" in render_page_markdown(results, FOLDER)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "without a final stage"])
@pytest.mark.parametrize("old", [True, False], ids=["older", "now"])
def test_the_page_is_well_formed_and_needs_nothing_besides_itself(results: Results, old: bool, finished: bool) -> None:
    record: Any = older(results) if old else results
    if not finished:
        record = {key: record[key] for key in ("search", "rungs", "importance") if key in record}
    text = render_html(record, FOLDER)
    page = Page(text)
    assert page.wrong == [] and page.open == []
    assert "http" not in text
    loads = {(tag, name) for tag, name, _ in page.attributes if name in ("src", "srcset", "data", "xlink:href")}
    assert loads == set()
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not re.search(r"@import|url\(|@font-face", text)
    assert page.scripts == 1
    assert page.charts
    assert not re.search(r"\b(nan|inf)\b", text)


def test_every_chart_names_its_axes_and_what_it_shows(results: Results) -> None:
    text = render_html(results, FOLDER)
    charts = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(charts) == 2 + 1 + 4 + 1, "differences, sizes; curves; four searched values; importance"
    for chart in charts:
        assert 'class="name x-name"' in chart
        assert 'class="name y-name"' in chart or 'class="bar"' in chart or 'class="zero"' in chart, "rows have names"
        assert re.match(r'<svg viewBox="0 0 420 \d+" role="img" aria-label="[^"]+">', chart)
        assert "<title>" in chart
    labels = " ".join(re.findall(r'class="name[^"]*">([^<]*)<', text))
    for label in ("(points, 95 % interval)", "(count, log scale)", "(nats per token)", "(optimiser updates)"):
        assert label in labels
    assert "preseqlen (positions)" in labels and "mid_dim (units; flat: no network)" in labels


def test_what_comes_from_data_is_escaped_everywhere(results: Results) -> None:
    record: Any = copy.deepcopy(results)
    record["sweep"] = record["machine"]["name"] = BAD
    record["examples"][5]["source"] = record["examples"][5]["outputs"]["prefix"] = BAD
    record["examples"][5]["references"] = [BAD, BAD]
    for one in record["search"]:
        one["config"]["init_token"] = BAD if one["number"] % 2 else "plain"
        one["arm"] = "<b>"
    record["arms"][1]["arm"] = "<b>"
    record["importance"][0]["arm"] = "<b>"
    for one in record["examples"]:
        one["outputs"]["<b>"], one["scores"]["<b>"] = one["outputs"].pop("prefix"), one["scores"].pop("prefix")
        if "arm" in one:
            one["arm"] = "<b>"
    text = render_html(record, FOLDER)
    page = Page(text)
    assert page.wrong == [] and page.scripts == 1
    assert "alert(" in page.text and "<b>" not in text and "<script>alert" not in text
    assert html.escape(BAD) in text
    markdown = render_page_markdown(record, FOLDER)
    prose = re.sub(r"```.*?```", "", markdown, flags=re.S)
    assert "<script>" not in prose.replace("\\<", ""), "angle brackets are escaped"


def test_the_markdown_has_the_same_tables_and_all_rows_have_their_cells(results: Results) -> None:
    markdown = render_page_markdown(results, FOLDER)
    assert "| prefix | 58.3 \\[55.1, 60.7\\] | \\+2.2 \\[-1.8, \\+7.2\\] |" in markdown
    for heading in re.findall(r"<h2>(.*?)</h2>", render_html(results, FOLDER)):
        assert f"## {html.unescape(heading)}" in markdown
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    assert "@inproceedings{li-liang-2021-prefix," in markdown and "@software{prefixray," in markdown


def test_flat_and_random_are_called_so_and_come_first(results: Results) -> None:
    figures = {figure.title: figure for figure in section(results, "values").figures}
    flat = figures["prefix: Flat, or behind a network?"]
    assert [row[0] for row in flat.numbers.rows] == ["flat", "512", "flat", "512"]
    assert ">flat</text>" in flat.chart and ">random (finished)</text>" in flat.chart
    longer = figures["prefix: Do longer prefixes help here?"]
    assert longer.numbers.rows[0] == ["5", "finished", "1.600", "2"]
    assert "has preseqlen 5 (dev loss 1.600)" in longer.caption and "6 of 12 trials finished" in longer.caption
    assert "too few" in longer.caption


def test_rungs_are_correlated_with_the_end_over_finished_trials_only(results: Results) -> None:
    grid = section(results, "early").grid
    assert grid is not None
    assert [list(row) for row in grid.rows] == [["prefix", "1", "8", "+1.00", "6"], ["prefix", "2", "16", "+1.00", "6"]]
    assert "missing by design" in " ".join(section(results, "early").text)


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([(1, 10), (2, 20), (3, 300)]) == pytest.approx(1.0)
    assert rank_correlation([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert rank_correlation([(1, 1), (1, 2), (2, 3), (3, 4)]) == pytest.approx(0.9486833, abs=1e-6)  # scipy's
    assert rank_correlation([(1, 2), (2, 1)]) is None
    assert rank_correlation([(1, 2), (1, 1), (1, 3)]) is None


def test_outputs_stand_worst_first_then_best(results: Results) -> None:
    shown = section(results, "outputs").examples
    assert len(shown) == 20
    assert shown[0].why == "prefix 7.0 BLEU behind finetune"
    assert shown[0].source == "name : Place 3", "the first three of the split were not chosen"
    places = [one.why.split()[3] for one in shown]
    assert places == sorted(places, reverse=True), "behind, then ahead"
    ahead = [float(one.why.split()[1]) for one in shown if "ahead" in one.why]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] == 19.0


def test_an_older_record_says_what_it_lacks(results: Results) -> None:
    old = older(results)
    for key, lacking in (("search", "learning curves"), ("values", "importance"), ("early", "losses at the rungs")):
        assert any("does not hold" in text and lacking in text for text in section(old, key).text)
    assert [one.source for one in section(old, "outputs").examples][:2] == ["name : Place 0", "name : Place 1"]
    assert len(section(old, "outputs").examples) == 20


def test_a_sweep_that_is_not_finished_says_so(results: Results) -> None:
    found = sections({"search": results["search"], "rungs": [8, 16]}, FOLDER)
    assert [one.key for one in found] == ["result", "search", "values", "early", "records"]
    assert found[0].text[0] == "The final stage has not been reached yet."


def test_a_sweep_without_a_search_has_its_table(results: Results) -> None:
    results["search"] = []
    keys = [one.key for one in sections(results, FOLDER)]
    assert keys == ["result", "outputs", "cost", "use", "records"]
    assert Page(render_html(results, FOLDER)).wrong == []


def test_files_are_written_where_the_results_are(results: Results, tmp_path: Path) -> None:
    assert write_page(results, tmp_path) == [tmp_path / "report.html", tmp_path / "report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_extremes_of_each_arm_are_chosen_in_turn_among_all_sources() -> None:
    reference = np.full(200, 50.0)
    first, second = reference.copy(), reference.copy()
    first[[150, 160]] = [10.0, 90.0]
    second[[170, 180, 150]] = [30.0, 80.0, 0.0]
    scores = {"untuned": np.zeros(200), "prefix": first, "adapter": second, "finetune": reference}
    chosen = _extremes(scores, "finetune", 1.0)
    assert chosen == {150: "prefix", 160: "prefix", 170: "adapter", 180: "adapter"}, "150 is shown once"
    scores["prefix"] = np.linspace(0, 100, 200)
    chosen = _extremes(scores, "finetune", 1.0)
    assert len(chosen) == NUM_EXTREMES and {0, 199} <= set(chosen)


def test_charts_hold_single_and_equal_values() -> None:
    dot = Dot(1000, 3.0, "tip", "name")
    axis = Axis("x (unit)", log=True)
    drawn = [
        scatter([dot, dot], axis, Axis("y (unit)"), title="t"),
        forest([Dot(0.0, 0, "tip", "name", (0.0, 0.0))], Axis("x (unit)"), title="t", zero="reference"),
        curves([Line([(8, 2.0)], "tip")], Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(2.0, 2.1), rungs=[8]),
        strips([Series("s", [dot])], axis, Axis("y (unit)"), title="t", limits=(3.0, 3.1)),
        strips([Series("s", [Dot(0, 9.0, "tip")])], Groups("x", ["a"]), Axis("y (unit)"), title="t", limits=(1.0, 2.0)),
        bars([("name", 0.0)], Axis("x (share)"), title="t"),
    ]
    for chart in drawn:
        assert Page(chart).wrong == []
        assert "nan" not in chart and "inf" not in chart
    assert 'class="beyond"' in drawn[4], "what lies above the limit has an arrow"


def test_a_line_that_leaves_the_axis_comes_back_in_a_piece_of_its_own() -> None:
    line = Line([(0, 1.0), (1, 9.0), (2, 9.5), (3, 1.0), (4, 1.5)], "tip")
    chart = curves([line], Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(1.0, 2.0), rungs=[])
    pieces = [piece.split() for piece in re.findall(r'<polyline points="([^"]+)"', chart)]
    assert [len(piece) for piece in pieces] == [2, 3]
    assert chart.count('class="beyond"') == 2


def test_arrows_that_lie_on_one_another_are_counted() -> None:
    lines = [Line([(1, height)], "tip", cut=True) for height in (1.5, 7.0, 8.0, 9.0)]
    chart = curves(lines, Axis("x (unit)"), Axis("y (unit)"), title="t", limits=(1.0, 2.0), rungs=[1])
    assert chart.count('class="beyond"') == 3 and 'class="tick">3</text>' in chart


def test_a_trial_that_went_wrong_does_not_take_the_axis() -> None:
    assert upper_limit([1.5, 1.6], [1.5, 1.6, 1.8, 2.0, 15.0]) == pytest.approx(2.1)
    assert upper_limit([5.0], [1.5, 1.6, 5.0]) == 5.0, "what is settled always fits"
    assert loss_limits([], [2.0]) == (2.0, 2.1)
