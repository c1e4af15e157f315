"""The command that prints a sweep's tables again and writes its page."""

import json
from pathlib import Path

import pytest
from support.quickstart_results import quickstart_sweep

from prefixray import report
from prefixray.reporting.tables import render_latex, render_text, search_table
from prefixray.results.record import Results, is_finished, load_results


@pytest.fixture
def results() -> Results:
    return quickstart_sweep()


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


def test_the_tables_come_as_latex_and_nothing_is_written(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert report.main([str(tmp_path), "--format", "latex"]) == 0
    assert capsys.readouterr().out == render_latex(results) + "\n"
    assert not (tmp_path / "report.html").exists()


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
