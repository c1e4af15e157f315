"""The sections of a report, from a finished sweep's record, from an older one and from an unfinished one."""

import json
from pathlib import Path

import pytest
from support.example_results import example, finished_sweep, older_sweep

from prefixray.reporting.sections.outputs import outputs_section
from prefixray.reporting.sections.search import rank_correlation
from prefixray.reporting.sections.section import Section
from prefixray.reporting.sections.whole import sections
from prefixray.results.outputs import write_outputs
from prefixray.results.record import DocumentResult, Results, tuned_arms
from prefixray.results.timeline.keeper import FILE, Timekeeper
from prefixray.results.timeline.read import KINDS
from prefixray.search.policies.choice import AUTO_KEEP, AUTO_POLICY

FOLDER = Path("runs/tiny")


@pytest.fixture
def results() -> Results:
    return finished_sweep()


def section(results: Results, key: str) -> Section:
    return next(one for one in sections(results, FOLDER) if one.key == key)


def test_each_document_has_final_runs_of_its_own(results: Results) -> None:
    assert section(results, "cost").grid.rows[0][-1] == "1"  # type: ignore[union-attr]
    one: DocumentResult = {"folder": "final/x", "scores": {"bleu": 1.0}, "dev_loss": 1.0}
    for arm in tuned_arms(results):
        arm["seeds"][0]["documents"] = {"eagle": one, "mill": one}
    cost = section(results, "cost")
    assert cost.grid is not None and [row[-1] for row in cost.grid.rows] == ["2", "2"]
    assert "or of the final runs of one seed where nothing was searched" in cost.text[0]


def test_flat_and_random_are_called_so_and_come_first(results: Results) -> None:
    figures = {figure.title: figure for figure in section(results, "values").figures}
    flat = figures["prefix: Flat, or behind a network?"]
    assert [row[0] for row in flat.numbers.rows] == ["flat", "512", "flat", "512"]
    assert ">flat</text>" in flat.chart and ">random (finished)</text>" in flat.chart
    longer = figures["prefix: Do longer prefixes help here?"]
    assert longer.numbers.rows[0] == ["5", "finished", "1.600", "2"]
    assert "has preseqlen 5 (dev loss 1.600)" in longer.caption and "6 of 12 trials finished" in longer.caption
    assert "too few" in longer.caption


@pytest.mark.parametrize("with_extremes", [True, False], ids=["two tuned arms", "one tuned arm"])
def test_a_page_without_all_outputs_says_so(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_extremes: bool
) -> None:
    if not with_extremes:
        for one in results["examples"]:
            one.pop("arm", None)
    write_outputs(tmp_path / "outputs.csv", [example(number) for number in range(40)], "bleu")
    assert outputs_section(results, tmp_path).text == []
    monkeypatch.setattr("prefixray.reporting.sections.outputs._MOST_CHARACTERS", 1000)
    (line,) = outputs_section(results, tmp_path).text
    assert line.endswith("sources on which arms differ most; outputs.csv has all 40.")


def test_rungs_are_correlated_with_the_end_over_finished_trials_only(results: Results) -> None:
    grid = section(results, "early").grid
    assert grid is not None
    assert [list(row) for row in grid.rows] == [["prefix", "1", "8", "+1.00", "6"], ["prefix", "2", "16", "+1.00", "6"]]
    assert "missing by design" in " ".join(section(results, "early").text)


def test_the_report_says_what_was_decided_at_each_rung_and_who_came_back(results: Results) -> None:
    assert "decisions" not in {one.key for one in sections(results, FOLDER)}, "the record is an older one"
    results["policy"] = "stop"
    stopping = section(results, "decisions").grid
    assert stopping is not None and list(stopping.header)[-2:] == ["passed", "stopped"]
    assert [list(row)[3:] for row in stopping.rows] == [["12", "8", "4"], ["8", "6", "2"]]
    assert "sample" not in section(results, "decisions").text[0], "an older record compared them on all of dev"
    results["dev_sample"], results["search"][0]["is_sampled"] = 0.25, True
    assert "over a sample of dev (search.dev_sample 0.25)" in section(results, "decisions").text[0]
    results["policy"] = "promote"
    trials = results["search"]
    trials[0]["pauses"] = [{"step": 8, "resumed": "by policy"}, {"step": 16, "resumed": "by hand"}]
    trials[1]["pauses"] = [{"step": 8, "resumed": "by policy"}]
    stopped = next(trial for trial in trials if trial["rung"] == 1)
    stopped["pauses"] = [{"step": 8, "resumed": None}]
    promoting = section(results, "decisions")
    assert promoting.grid is not None and list(promoting.grid.header)[-3:] == ["paused", "resumed", "by hand"]
    assert [list(row)[3:] for row in promoting.grid.rows] == [
        ["12", "6", "3", "3", "2", "0"],
        ["8", "5", "2", "1", "1", "1"],
    ]
    assert promoting.text[0].startswith(
        "search.policy is promote. The worse trials paused at a rung, and resumed once "
    )
    assert " marks a loss with ~ where it is over a sample of dev" in promoting.text[0]
    assert " Trials paused 4 times, and 3 times one was resumed, by the policy or by hand " in promoting.text[0]
    results |= {"policy": AUTO_POLICY, "keep": AUTO_KEEP}
    chosen = f"search.policy is {AUTO_POLICY}, search.keep {AUTO_KEEP:g}, as this version chooses for auto."
    assert section(results, "decisions").text[0].startswith(chosen)
    results["keep"] = 0.5 + AUTO_KEEP / 2
    assert "auto" not in section(results, "decisions").text[0]


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
    old = older_sweep(results)
    for key, lacking in (("search", "learning curves"), ("values", "importance"), ("early", "losses at the rungs")):
        assert any("does not hold" in text and lacking in text for text in section(old, key).text)
    assert [one.source for one in section(old, "outputs").examples][:2] == ["name : Place 0", "name : Place 1"]
    assert len(section(old, "outputs").examples) == 20


def test_a_sweep_that_has_just_started_is_no_older_record(results: Results) -> None:
    for trial in results["search"]:
        trial["curve"] = []
    for key in ("search", "early"):
        assert not any("older version" in text for text in section(results, key).text)


def test_a_sweep_that_is_not_finished_says_so(results: Results) -> None:
    found = sections({"search": results["search"], "rungs": [8, 16]}, FOLDER)
    assert [one.key for one in found] == ["result", "search", "values", "early", "records"]
    assert found[0].text[0] == "The final stage has not been reached yet."


def test_the_final_runs_have_their_curves(results: Results) -> None:
    assert "finals" not in {one.key for one in sections(results, FOLDER)}, "the record is an older one"
    for one in results["arms"][1:]:
        one["seeds"] = [{**one["seeds"][0], "curve": [(8, 2.0 + seed), (40, 1.0 + seed)]} for seed in (0, 1)]
    (figure,) = section(results, "finals").figures
    assert figure.numbers.rows[1] == ["prefix", "40", "1.500", "1.000", "2.000", "2"]
    assert figure.chart.count('class="whisker"') == 3 * 4 and figure.chart.count("<polyline") == 2


def test_all_values_of_a_search_stand_in_one_picture(results: Results) -> None:
    (figure,) = [one for one in section(results, "values").figures if one.title == "prefix: Which values go together?"]
    assert figure.chart.count('<g class="curve') == len(figure.numbers.rows) == 12
    assert figure.chart.count('<g class="curve strong"') == 1
    for name in ("preseqlen", "mid_dim", "init_token", "learning_rate", "dev loss"):
        assert f">{name}</text>" in figure.chart
    tip = "prefix/0: preseqlen 5, mid_dim flat, init_token random, learning_rate 1.0e-3; dev loss 1.600, done"
    assert f"<title>{tip}</title>" in figure.chart


def test_the_timeline_shows_each_worker_with_its_trials_and_says_how_long_it_was_idle(
    results: Results, tmp_path: Path
) -> None:
    assert "timeline" not in {one.key for one in sections(results, tmp_path)}, "an older version wrote none"
    with Timekeeper(tmp_path / FILE):
        pass
    assert "timeline" not in {one.key for one in sections(results, tmp_path)}, "nobody has worked"
    lines = [
        {"at": 0, "driver": "begins"},
        {"at": 0, "worker": "worker-0", "does": "load"},
        {"at": 6, "worker": "worker-0", "does": "train", "trials": {"final/lora": 1, "prefix": 3}},
        {"at": 60, "worker": "worker-0", "does": "decode", "busy": [48, 12]},
        {"at": 60.1, "worker": "worker-0", "does": "idle", "busy": [48, 12]},
        {"at": 60.2, "worker": "worker-0", "does": "decode", "busy": [48, 12]},
        {"at": 84, "worker": "worker-0", "does": "idle"},
        {"at": 120, "driver": "ends"},
    ]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,) = [one for one in sections(results, tmp_path) if one.key == "timeline"]
    assert one.grid is not None and one.grid.header[2:] == [*KINDS]
    assert one.grid.rows == [["worker-0", "2.0", "5 %", "30 %", "10 %", "20 %", "5 %", "30 %"]]
    assert one.text[0] == "Workers had nothing to do, or waited, for 35 % of their time."
    (figure,) = one.figures
    assert figure.numbers.rows == [
        ["worker-0", "decoding", "0.4"],
        ["worker-0", "lora, final", "0.2"],
        ["worker-0", "prefix, search", "0.7"],
        ["worker-0", "starting", "0.1"],
    ]
    assert "<title>minute 0.1 to 1.0: 3 of prefix, search, 1 of lora, final</title>" in figure.chart
    assert figure.chart.count("<title>") == 3, "bars too narrow to be seen are joined"
    for name in ("prefix, search", "lora, final", "decoding", "starting", "worker-0", "minutes of the command"):
        assert f">{name}</text>" in figure.chart
