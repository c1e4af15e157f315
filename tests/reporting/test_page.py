"""The report: its numbers are those of the record, it needs nothing besides itself, and all its text is escaped."""

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.example_results import example, finished_sweep, older_sweep, trial
from support.html_page import Page

from prefixray.reporting.page import render, write_page
from prefixray.reporting.sections.whole import sections
from prefixray.results.outputs import read_outputs, write_outputs
from prefixray.results.record import Results

FOLDER = Path("runs/tiny")
BAD = "<script>alert('x')</script> & \"quoted\" | a_b*c"


@pytest.fixture
def results() -> Results:
    return finished_sweep()


def test_the_numbers_of_the_first_table_are_those_of_the_record(results: Results) -> None:
    head, *rows = Page(render(results, FOLDER)["report.html"]).tables[0]
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
    tables = Page(render(results, FOLDER)["report.html"]).tables
    head, *rows = next(table for table in tables if "group" in table[0])
    assert head[:4] == ["arm", "group", "sources", "BLEU [95 %]"]
    assert rows[3][:4] == ["prefix", "new", "1,234", "41.5 [40.0, 43.0]"]
    assert "| prefix | new | 1,234 |" in render(results, FOLDER)["report.md"]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "without a final stage"])
@pytest.mark.parametrize("old", [True, False], ids=["older", "now"])
def test_the_page_is_well_formed_and_needs_nothing_besides_itself(results: Results, old: bool, finished: bool) -> None:
    record: Any = older_sweep(results) if old else results
    if not finished:
        record = {key: record[key] for key in ("search", "rungs", "importance") if key in record}
    text = render(record, FOLDER)["report.html"]
    page = Page(text)
    assert page.wrong == [] and page.open == []
    assert "http" not in text
    loads = {(tag, name) for tag, name, _ in page.attributes if name in ("src", "srcset", "data", "xlink:href")}
    assert loads == set()
    links = [value for _, name, value in page.attributes if name == "href" and not value.startswith("#")]
    assert all(value.startswith("data:text/csv;") for value in links) and len(links) == (2 if finished else 0)
    assert not re.search(r"@import|url\(|@font-face", text)
    assert page.scripts == 1
    assert page.charts
    assert not re.search(r"\b(nan|inf)\b", text)


def test_every_chart_names_its_axes_and_what_it_shows(results: Results) -> None:
    text = render(results, FOLDER)["report.html"]
    charts = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(charts) == 2 + 1 + 4 + 2, "differences, sizes; curves; four searched values, all of them; importance"
    for chart in charts:
        assert 'class="name x-name"' in chart
        assert 'class="name y-name"' in chart or 'class="bar"' in chart or 'class="zero"' in chart, "rows have names"
        assert re.match(r'<svg viewBox="0 0 420 \d+" role="img" aria-label="[^"]+">', chart)
        assert "<title>" in chart
    labels = " ".join(re.findall(r'class="name[^"]*">([^<]*)<', text))
    for label in ("(points, 95 % interval)", "(count, log scale)", "(nats per token)", "(optimiser updates)"):
        assert label in labels
    assert "preseqlen (positions)" in labels and "mid_dim (units; flat: no network)" in labels


def test_the_headline_is_the_verdict_and_before_it_how_far_the_search_is(results: Results) -> None:
    verdict = "No winner: prefix and finetune are 2.2 BLEU apart, which may be chance."
    assert f"<h1>{verdict}</h1>" in render(results, FOLDER)["report.html"]
    assert render(results, FOLDER)["report.md"].startswith(f"# {verdict}\n\ntiny: prefix, finetune for model.gguf on ")
    assert all(page.count("which may be chance") == 1 for page in render(results, FOLDER).values()), "said once"
    running: Any = {"search": results["search"], "rungs": [8, 16], "importance": []}
    head = "No verdict yet: 12 trials, 6 finished, 6 stopped early. prefix/0 leads with a dev loss of 1.600."
    assert f"<h1>{head}</h1>" in render(running, FOLDER)["report.html"]
    distilled: Any = {**trial("lora", 0, {"rank": 8}, [0.9, 0.7, 0.4]), "is_divergence": True}
    mixed: Any = {**running, "search": [*results["search"], distilled]}
    leads = "prefix/0 leads with a dev loss of 1.600. lora/0 leads with a divergence of 0.400."
    assert f"{leads}</h1>" in render(mixed, FOLDER)["report.html"], "losses of two kinds are not compared"


def test_every_output_is_on_the_page_for_its_script_and_in_the_file(results: Results, tmp_path: Path) -> None:
    every = [example(number) for number in range(40)]
    every[7]["source"] = every[7]["outputs"]["prefix"] = "</script>" + BAD
    write_outputs(tmp_path / "outputs.csv", every, "bleu")
    assert read_outputs(tmp_path / "outputs.csv", results) == every
    text = render(results, tmp_path)["report.html"]
    page = Page(text)
    assert page.wrong == [] and page.open == [] and page.scripts == 2
    found = re.search(r'<script type="application/json" id="all-outputs">(.*?)</script>', text, re.S)
    assert found is not None
    stored = json.loads(found[1])
    assert (stored["arms"], stored["reference"]) == (["untuned", "prefix", "finetune"], "finetune")
    assert (stored["metric"], stored["sign"], len(stored["rows"])) == ("BLEU", 1, 40)
    source, references, outputs = stored["rows"][7]
    assert source == "</script>" + BAD and references == every[7]["references"]
    assert outputs == [["", "0.0"], [source, "47.0"], ["Full 7.", "50.0"]]
    assert "**name : Place 8**" in render(results, tmp_path)["report.md"], "Markdown has those farthest apart"


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
    text = render(record, FOLDER)["report.html"]
    page = Page(text)
    assert page.wrong == [] and page.scripts == 1
    assert "alert(" in page.text and "<b>" not in text and "<script>alert" not in text
    assert html.escape(BAD) in text
    markdown = render(record, FOLDER)["report.md"]
    prose = re.sub(r"```.*?```", "", markdown, flags=re.S)
    assert "<script>" not in prose.replace("\\<", ""), "angle brackets are escaped"


def test_the_markdown_has_the_same_tables_and_all_rows_have_their_cells(results: Results) -> None:
    markdown = render(results, FOLDER)["report.md"]
    assert "| prefix | 58.3 \\[55.1, 60.7\\] | \\+2.2 \\[-1.8, \\+7.2\\] |" in markdown
    for heading in re.findall(r"<h2>(.*?)</h2>", render(results, FOLDER)["report.html"]):
        assert f"## {html.unescape(heading)}" in markdown
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    assert "@inproceedings{li-liang-2021-prefix," in markdown and "@software{prefixray," in markdown


def test_a_sweep_without_a_search_has_its_table(results: Results) -> None:
    results["search"] = []
    keys = [one.key for one in sections(results, FOLDER)]
    assert keys == ["result", "outputs", "cost", "use", "records"]
    assert Page(render(results, FOLDER)["report.html"]).wrong == []


def test_files_are_written_where_the_results_are(results: Results, tmp_path: Path) -> None:
    assert write_page(results, tmp_path) == [tmp_path / "report.html", tmp_path / "report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
