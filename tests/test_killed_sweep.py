"""Drivers and workers of a whole sweep that are killed, and a second driver beside the first."""

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.sweep_process import kill, workers_of
from support.table_sweep import Sweep, assert_complete, table_sweep, wait_long

from prefixray.results.timeline.read import read_timeline

pytestmark = pytest.mark.ray


@pytest.fixture
def sweep(tmp_path: Path, base_folders: Mapping[str, Path]) -> Iterator[Sweep]:
    with table_sweep(tmp_path, base_folders["llama"]) as sweep:
        yield sweep


@pytest.mark.faults
def test_a_driver_killed_in_the_final_stage_goes_on_there(sweep: Sweep) -> None:
    process = sweep.start()
    wait_long(lambda: len(list(sweep.results.glob("final/*/result.json"))) >= 1, process)
    kill(process)
    ended = sweep.result_texts()
    sweep.finish()
    assert_complete(sweep)
    assert {path: path.read_text() for path in ended} == ended


@pytest.mark.faults
def test_all_workers_killed_in_the_middle_of_a_pack_cost_no_trial_a_retry(sweep: Sweep) -> None:
    sweep.write(num_steps=200)
    process = sweep.start()
    wait_long(sweep.has_checkpoints, process)
    workers = workers_of(process)
    assert 1 <= len(workers) <= 2
    for worker in workers:
        worker.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert_complete(sweep)


@pytest.mark.sweeps
def test_a_driver_that_is_terminated_then_killed_twice_goes_on_loses_no_trial_and_repeats_none(sweep: Sweep) -> None:
    sweep.write(num_steps=200, num_seeds=1)
    process = sweep.start("--verbose")
    wait_long(lambda: sweep.ended() >= 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and " slots on " in output and "Traceback" not in output, output
    assert "prefixray sweep small.yaml" in output.splitlines()[-1]
    assert any(sweep.results.glob("trials/*/*/step-*"))
    assert {run.info.status for run in sweep.runs()} <= {"FINISHED", "KILLED", "SCHEDULED"}, "paused ones wait"
    spent = json.loads((sweep.results / "spent.json").read_text())
    assert 0.001 < spent["max_gpu_hours"] < 2 * spent["max_hours"], "two workers, but none while Ray starts"
    ended = _kill_when_another_trial_has_ended(sweep, sweep.result_texts())
    ended = _kill_when_another_trial_has_ended(sweep, ended)
    assert sweep.finish("--quiet").startswith("E2E test, 6 of 630 sources")
    assert_complete(sweep, num_seeds=1)
    assert {path: path.read_text() for path in ended} == ended  # what had ended was not run again
    assert _num_that_worked(sweep) == 4, "each driver has its part in the timeline"


def test_a_second_driver_says_who_holds_the_sweep_and_leaves(sweep: Sweep) -> None:
    process = sweep.start()
    wait_long(lambda: (sweep.results / "sweep.json").is_file(), process)
    process.send_signal(signal.SIGSTOP)  # as good as one that runs: it holds the sweep
    second = sweep.start()
    message, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert message.startswith(f"runs/small: another driver runs this sweep: process {process.pid} on ")
    kill(process)


def _kill_when_another_trial_has_ended(sweep: Sweep, ended: Mapping[Path, str]) -> dict[Path, str]:
    """Start the driver, and kill it while its workers train and after a trial has ended.

    Returns the result files of `ended` as they were, and those of trials that ended now.
    """
    num_before, process = _num_that_worked(sweep), sweep.start()
    # a paused trial may end before a worker has trained anything
    wait_long(lambda: sweep.ended() > len(ended) and _num_that_worked(sweep) > num_before, process)
    kill(process)
    return {**sweep.result_texts(), **ended}


def _num_that_worked(sweep: Sweep) -> int:
    """How many drivers had work for their workers, as the timeline tells."""
    timeline = read_timeline(sweep.results)
    return 0 if timeline is None else len(timeline.begins)
