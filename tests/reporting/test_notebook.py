"""A sweep in a notebook: its trials as a table, its winners, before and after the final stage."""

import json
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from support.quickstart_results import quickstart_sweep
from support.sweep_files import left_by_a_driver

from prefixray import report
from prefixray.config.load import load_sweep
from prefixray.errors import UserError
from prefixray.reporting.figures import count_states
from prefixray.reporting.notebook import open_sweep
from prefixray.results.record import ArmResult, Results, SearchTrial
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy

SWEEP = """
name: small
base: some/model
task: {name: e2e}
train: {num_steps: 40}
arms:
  prefix: {preseqlen: {choice: [1, 5]}, mid_dim: null, init_token: pub, learning_rate: {log_uniform: [1e-3, 3e-2]}}
  finetune: {learning_rate: 1e-3}
search: {num_trials: 3}
"""


def trial(number: int, preseqlen: int, loss: float | None, state: str) -> dict[str, Any]:
    config = {"preseqlen": preseqlen, "learning_rate": 0.01}
    ended = {"step": 40, "num_steps": 40, "dev_loss": loss, "state": state, "rung": None, "curve": [[40, loss]]}
    return {"arm": "prefix", "number": number, "config": config, **ended}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return left_by_a_driver(SWEEP)


def test_the_trials_are_a_table_and_the_best_is_the_lowest_done(folder: Path) -> None:
    search = [trial(0, 1, 2.5, "done"), trial(1, 5, 2.0, "done"), trial(2, 1, None, "failed")]
    (folder / "results.json").write_text(json.dumps({"search": search}))
    sweep = open_sweep("small")
    columns = ["arm", "number", "preseqlen", "learning_rate", "step", "num_steps", "dev_loss", "state", "rung"]
    assert list(sweep.trials.columns) == columns
    assert sweep.trials.sort_values("dev_loss")["number"].tolist() == [1, 0, 2]
    assert sweep.best == {"prefix": {"preseqlen": 5, "learning_rate": 0.01}}
    assert sweep.config.arm("prefix").num_trials == 3 and len(sweep.results["search"]) == 3
    shown = "<Sweep: runs/small, 3 trials, no final stage yet; it has .trials, .best, .results and .study(ARM)>"
    assert repr(sweep) == shown, "a notebook shows a line, not the whole record"


def test_after_the_final_stage_the_best_is_its_winner(folder: Path) -> None:
    method = {"method": "prefix", "preseqlen": 1, "mid_dim": None, "init_token": "pub"}
    empty = dict.fromkeys(ArmResult.__required_keys__)
    arms = [
        {**empty, "arm": "untuned"},
        {**empty, "arm": "prefix", "method": "prefix", "config": {"learning_rate": 0.02, "method": method}},
        {**empty, "arm": "finetune", "method": "finetune", "config": {"learning_rate": 1e-3, "method": {}}},
    ]
    whole = {**dict.fromkeys(Results.__required_keys__), "search": [trial(0, 5, 2.0, "done")], "arms": arms}
    (folder / "results.json").write_text(json.dumps(whole))
    assert open_sweep("small").best == {"prefix": {"preseqlen": 1, "learning_rate": 0.02}, "finetune": {}}


def run_trials(folder: Path) -> None:
    """What a driver leaves in the journal: two trials that have finished, one stopped, and one that still runs."""
    arm = load_sweep("small.yaml", ["search.num_trials=8"]).arm("prefix")
    source = ArmStudy(open_storage(folder / "study.journal"), "small", arm, seed=1, num_startup=2)
    for losses, state in (([3.0, 2.5], "done"), ([2.9, 2.0], "done"), ([4.0], "stopped"), ([3.5], "running")):
        proposal = source.ask()
        assert proposal is not None
        for step, loss in zip((20, 40), losses, strict=False):
            source.report(proposal.number, step, loss)
        if state == "done":
            source.tell(proposal.number, "done", losses[-1])
        elif state == "stopped":
            source.tell(proposal.number, "stopped", None)


def test_a_running_sweep_opens_and_has_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_trials(folder)
    before = (folder / "study.journal").read_bytes()
    sweep = open_sweep("small")
    assert sweep.trials["state"].tolist() == ["done", "done", "stopped", "running"]
    assert sweep.trials["dev_loss"].tolist() == [2.5, 2.0, 4.0, 3.5]
    assert report.main(["small"]) == 0
    shown, goes_on = capsys.readouterr().out, "the command that started it, with the same options, goes on with it."
    assert "prefix/1" in shown and goes_on in shown and goes_on in (folder / "report.html").read_text()
    head = (
        "No verdict yet: 4 trials, 2 finished, 1 stopped early, 1 not ended. prefix/1 leads with a dev loss of 2.000."
    )
    assert f"<h1>{head}</h1>" in (folder / "report.html").read_text()
    assert "A cross marks where a trial was stopped, or how far one that runs has come" in (
        (folder / "report.html").read_text()
    )
    assert (folder / "study.journal").read_bytes() == before, "the driver's file is only read"


def test_a_finished_sweep_that_is_extended_says_that_its_table_lacks_trials(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_trials(folder)
    now = open_sweep("small").results["search"]
    results = quickstart_sweep()
    results["search"] = now
    (folder / "results.json").write_text(json.dumps(results))
    assert open_sweep("small").results == json.loads(json.dumps(results)), "nothing has happened since"
    begun, gone_on = now[0], {**now[3], "step": 0}
    results["search"] = [begun, cast(SearchTrial, gone_on)]
    (folder / "results.json").write_text(json.dumps(results))
    assert open_sweep("small").trials["number"].tolist() == [0, 1, 2, 3]
    note = "3 trials have begun or gone on since this table was made; the sweep's command makes it anew when it ends"
    assert report.main(["small"]) == 0
    assert note in capsys.readouterr().out.splitlines() and note in (folder / "report.md").read_text()


def test_optuna_draws_the_study_of_an_arm(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    visualization = pytest.importorskip("optuna.visualization.matplotlib")
    pytest.importorskip("matplotlib").use("Agg")
    run_trials(folder)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.get_logger("optuna").addHandler(caplog.handler)
    study = open_sweep("small").study("prefix")
    optuna.logging.get_logger("optuna").removeHandler(caplog.handler)
    assert not caplog.messages and optuna.logging.get_verbosity() == optuna.logging.INFO
    assert study.best_value == 2.0 and [trial.number for trial in study.trials] == [0, 1, 2, 3]
    for draw in (visualization.plot_optimization_history, visualization.plot_slice, visualization.plot_timeline):
        drawn = draw(study)
        figures = {axes.figure for axes in (drawn if hasattr(drawn, "__len__") else [drawn])}
        assert all(figure.axes for figure in figures)
    study.enqueue_trial({"preseqlen": 5})
    assert len(open_sweep("small").study("prefix").trials) == 4, "it is a copy"
    with pytest.raises(UserError, match="finetune: no arm that was searched; they are prefix"):
        open_sweep("small").study("finetune")


def test_what_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="has no results yet"):
        open_sweep("small.yaml")
    with pytest.raises(UserError, match="did you mean 'small'"):
        open_sweep("smal")


def test_a_single_trial_is_counted_as_one() -> None:
    assert count_states([cast(SearchTrial, trial(0, 1, 2.0, "done"))]) == "1 trial, 1 finished"
