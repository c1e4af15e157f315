"""Several sweeps side by side, over the records of two real ones: one correction, ranks, tables, figures, all forms."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.html_page import Page

from prefixray import compare
from prefixray.errors import UserError
from prefixray.reporting.several.figures import length_figures, size_figures, storage_figures
from prefixray.reporting.several.forms import render
from prefixray.reporting.several.grids import score_grid
from prefixray.reporting.several.side_by_side import OneOf, mean_ranks, num_comparisons, side_by_side

RECORDS = Path(__file__).parent / "records"  # of finished sweeps, without their trials and outputs
OLDER = Path(__file__).parents[2] / "written_before" / "sweep_0_1" / "runs" / "old"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Both sweeps as they lie under runs/."""
    monkeypatch.chdir(tmp_path)
    return [stored(json.loads(file.read_text()), file.stem) for file in sorted(RECORDS.glob("*.json"))]


def stored(record: dict[str, Any], name: str) -> Path:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({**record, "sweep": name}))
    return folder


def variants(name: str, change: Callable[[dict[str, Any], int], None], numbers: tuple[int, ...]) -> list[OneOf]:
    """The record of a sweep, changed once for each number."""
    folders = []
    for number in numbers:
        record = json.loads((RECORDS / f"{name}.json").read_text())
        change(record, number)
        folders.append(stored(record, f"{name}_{number}"))
    return side_by_side(folders)


def test_one_correction_goes_over_all_comparisons(folders: list[Path]) -> None:
    together, alone = side_by_side(folders), [side_by_side([folder])[0] for folder in folders]
    raw = sorted((arm["p"] or 0, sweep.name, arm["arm"]) for sweep in together for arm in sweep.tuned if arm["p"])
    assert num_comparisons(together) == len(raw) == 7
    corrected = {(sweep.name, arm["arm"]): arm["p_holm"] for sweep in together for arm in sweep.tuned}
    least, name, arm = raw[0]
    assert corrected[name, arm] == pytest.approx(7 * least)
    for sweep in alone:
        own = json.loads((RECORDS / f"{sweep.name}.json").read_text())["arms"]
        assert [one["p_holm"] for one in sweep.results["arms"]] == [one["p_holm"] for one in own]
        assert all((one["p_holm"] or 0) <= (corrected.get((sweep.name, one["arm"])) or 0) for one in own)


def test_ranks_are_of_the_arms_that_every_sweep_has(folders: list[Path]) -> None:
    sweeps = side_by_side(folders)
    assert mean_ranks(sweeps) == {"prefix": 4.0, "adapter": 3.0, "lora": 2.0, "finetune": 1.0}
    rows = {row[0]: row for row in score_grid(sweeps).rows}
    assert rows["flat"][1].startswith("55.1* [") and list(rows["flat"][2:]) == ["-", "-"]
    assert rows["untuned"][-1] == "-" and rows["lora"][-1] == "2.00"


def test_scores_are_drawn_over_the_size_of_the_data(folders: list[Path]) -> None:
    assert size_figures(side_by_side(folders)) == [], "nobody knows how many examples all are"

    def shrink(record: dict[str, Any], size: int) -> None:
        record["num_train"] = size
        record["arms"][1]["scores"]["bleu"] = {"value": size / 10, "low": size / 20, "high": size / 5}

    (figure,) = size_figures(variants("quickstart", shrink, (50, 100, 200)))
    assert figure.numbers.header[:2] == ["series", "training examples"]
    of_prefix = [row for row in figure.numbers.rows if row[0] == "prefix"]
    assert [row[1:] for row in of_prefix] == [
        [str(size), f"quickstart_{size}", "prefix", f"{size / 10:.1f}", f"{size / 20:.1f}", f"{size / 5:.1f}"]
        for size in (50, 100, 200)
    ]
    assert figure.chart.count('class="whisker"') == 3 * 3 * 4, "three sizes of four arms, an interval of three lines"
    assert figure.chart.count("<polyline") == 4, "each arm is a line"


def test_scores_are_drawn_over_the_length_of_prefixes_that_differ_in_it_alone(folders: list[Path]) -> None:
    def stretch(record: dict[str, Any], length: int) -> None:
        record["arms"][1]["config"]["method"]["preseqlen"] = length

    (figure,) = length_figures(variants("e2e_small", stretch, (1, 10, 40)))
    assert "preseqlen (positions, log scale)" in figure.chart
    assert [row[1] for row in figure.numbers.rows if row[3] == "prefix"] == ["1", "10", "40"]
    assert len({row[0] for row in figure.numbers.rows}) == 2, "the flat prefix differs in more: another line"
    assert figure.chart.count("<polyline") == 1


@pytest.mark.parametrize("key", ["num_steps", "batch_size"])
def test_no_line_joins_prefixes_of_which_one_was_trained_longer(folders: list[Path], key: str) -> None:
    def change(record: dict[str, Any], length: int) -> None:
        config = record["arms"][1]["config"]
        config["method"]["preseqlen"], config["learning_rate"] = length, length / 100
        config[key] = 400 if length == 40 else 40

    (figure,) = length_figures(variants("e2e_small", change, (1, 10, 40)))
    series = {row[1]: row[0] for row in figure.numbers.rows if row[3] == "prefix"}
    assert series["1"] == series["10"] != series["40"] and f"{key} 400" in series["40"]
    assert figure.chart.count("<polyline") == 1


def test_no_line_joins_scores_on_different_test_sources(folders: list[Path]) -> None:
    def change(record: dict[str, Any], number: int) -> None:
        record["num_train"], record["num_sources"] = number, number

    sweeps = variants("quickstart", change, (20, 40))
    assert size_figures(sweeps) == [], "of each line there is one point"


@pytest.mark.parametrize("what", ["signatures", "evaluation", "decoding", "examples"])
def test_no_line_joins_scores_that_were_measured_in_different_ways(folders: list[Path], what: str) -> None:
    changed = {
        "signatures": {"bleu": "case:mixed"},
        "evaluation": "paper",
        "decoding": {"num_beams": 1},
        "examples": [{"source": "Another data set.", "references": ["A text."], "outputs": {}}],
    }

    def change(record: dict[str, Any], number: int) -> None:
        record["num_train"] = 10 * number
        if number > 2:
            record[what] = changed[what]

    sweeps = variants("quickstart", change, (1, 2, 3, 4))
    (figure,) = size_figures(sweeps)
    assert figure.chart.count("<polyline") == 2 * 4, "two lines of each arm"
    assert {row[0] for row in figure.numbers.rows if row[3] == "prefix"} == {
        "prefix (quickstart_1)",
        "prefix (quickstart_3)",
    }
    assert size_figures([sweeps[0], sweeps[2]]) == []


def test_lines_join_records_of_versions_with_fewer_keys(folders: list[Path]) -> None:
    def change(record: dict[str, Any], number: int) -> None:
        record["num_train"], record["decoding"]["batch_size"] = number, number
        if number == 1:
            del record["evaluation"], record["decoding"]["length_with_prompt"]

    (figure,) = size_figures(variants("quickstart", change, (1, 2)))
    assert figure.chart.count("<polyline") == 4


def test_scores_are_drawn_over_what_is_stored(folders: list[Path]) -> None:
    sweeps = side_by_side(folders)
    (figure,) = storage_figures(sweeps)
    assert {row[0] for row in figure.numbers.rows} == {"e2e_small", "quickstart"} and len(figure.numbers.rows) == 9
    assert storage_figures(sweeps[:1]) == [], "the sweep's own report has it"


def test_every_form_says_the_same(folders: list[Path]) -> None:
    sweeps = side_by_side(folders)
    text, latex, markdown = render(sweeps, "text"), render(sweeps, "latex"), render(sweeps, "markdown")
    assert "No winner in any of 2 sweeps" in text.splitlines()[0]
    assert "prefix        54.2* [50.4, 57.6]       53.8* [49.6, 58.1]       4.00" in text
    assert r"prefix & 54.2* {[}50.4, 57.6] & 53.8* {[}49.6, 58.1] & 4.00 \\" in latex
    assert "| prefix | 54.2\\* \\[50.4, 57.6\\] | 53.8\\* \\[49.6, 58.1\\] | 4.00 |" in markdown
    assert "Holm's correction over all 7 comparisons" in text and "quickstart: one seed:" in text
    page = Page(render(sweeps, "html"))
    assert page.wrong == [] and page.open == [] and len(page.charts) == 3
    row = next(row for row in page.tables[0] if row[0] == "prefix")
    assert row == ["prefix", "54.2* [50.4, 57.6]", "53.8* [49.6, 58.1]", "4.00"]
    rows = list(csv.DictReader(io.StringIO(render(sweeps, "csv"))))
    assert len(rows) == 11 and {row["sweep"] for row in rows} == {"e2e_small", "quickstart"}
    first = next(row for row in rows if row["arm"] == "prefix")
    assert float(first["bleu"]) == pytest.approx(54.2, abs=0.05) and first["mean_rank"] == "4.0"
    assert first["preseqlen"] == "1" and float(first["p_holm"]) < 0.001


def test_a_record_of_an_older_version_is_compared_too(folders: list[Path]) -> None:
    text = render(side_by_side([OLDER, *folders]), "text")
    assert re.search(r"^old +E2E +\S+ +\d+ ", text, re.M), "how much it trained on stands in its sweep file"


def test_the_command_prints_and_writes_by_the_ending(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["quickstart", "runs/e2e_small"]) == 0
    printed = capsys.readouterr().out
    assert printed == render(side_by_side([folders[1], folders[0]]), "text")
    for ending, start in {"html": "<!DOCTYPE html>", "md": "# No winner", "csv": "sweep,base,", "tex": "% "}.items():
        assert compare.main(["quickstart", "e2e_small", "--out", f"both.{ending}"]) == 0
        assert Path(f"both.{ending}").read_text().startswith(start)
        assert capsys.readouterr().out == f"The comparison: both.{ending}\n"
    assert compare.main(["quickstart", "runs/e2e_small", "--format", "latex"]) == 0
    assert capsys.readouterr().out.startswith("% ")
    assert compare.main(["quickstart", "--paper", "figure4-dart"]) == 0
    assert "Figure 4" in capsys.readouterr().out
    assert compare.main(["quickstart", "--paper", "figure3-e2e", "--out", "figure.html"]) == 0
    assert "Li &amp; Liang 2021, Figure 3, low data, E2E: For 50, 100, 200" in Path("figure.html").read_text()


def test_what_cannot_be_compared_is_named_all_at_once(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (folders[1] / "results.json").write_text(json.dumps({"search": []}))
    assert compare.main(["quickstart", "e2e_small", "runs/e2e_small"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "runs/quickstart: the final stage has not been reached; leave this sweep out",
        "runs/e2e_small: is named twice",
    ]
    assert compare.main(["e2e_small", "--out", "x.pdf"]) == 2 and ".html" in capsys.readouterr().err
    assert compare.main(["e2e_small", "--format", "csv", "--paper", "figure3-e2e"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such figure"):
        compare.figure_text("table1")
