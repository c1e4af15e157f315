"""Whatever is killed, a sweep ends with the trials it was asked for, each once, with the numbers it would have had.

Run with `pytest -n 0 -m faults`: a fixed list of configurations goes through the real driver, Ray Tune, Optuna and
MLflow. Its numbers are compared with those of an undisturbed run, here and in the other files of this folder.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.small_sweep import (
    NUM_TRIALS,
    TOLERANCE,
    Sweep,
    assert_complete,
    assert_same,
    output_of,
    wait_long,
)
from support.sweep_process import kill, workers_of

from prefixray.search.trial_source import state_of

pytestmark = [pytest.mark.faults, pytest.mark.ray]

PAUSING = ("--set", "search.policy=promote", "search.rungs=[80]", "search.keep=0.5", "search.concurrency=2")


def test_workers_killed_together_and_while_they_rejoin_cost_no_number(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    wait_long(sweep.has_checkpoints, process)
    killed = workers_of(process)
    assert 1 <= len(killed) <= 2
    for worker in killed:
        worker.kill()
    wait_long(lambda: set(workers_of(process)) - set(killed), process)
    workers_of(process)[0].kill()
    assert "its trials rejoin" in output_of(process)
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def test_a_driver_killed_at_any_time_is_followed_by_one_that_goes_on(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    wait_long(lambda: b'"op_code":4' in journal_of(sweep), process)  # the first proposal
    kill(process)
    process = sweep.start()
    wait_long(lambda: len(checkpoints_of(sweep)) >= 4, process)
    kill(process)
    damage(sweep)
    process = sweep.start()
    wait_long(lambda: any(sweep.results.glob("final/*/result.json")), process)
    kill(process)
    assert "damaged" in (sweep.results / "sweep.log").read_text(), "the checkpoint before was used"
    process = sweep.start()
    assert process.stdout is not None
    printed = [""]
    while "  score  " not in printed[-1]:
        printed.append(process.stdout.readline())
        assert printed[-1], "".join(printed)
    kill(process)  # while the table is written
    sweep.finish()
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


@pytest.mark.parametrize("options", [(), PAUSING], ids=["to the end", "pausing"])
def test_drivers_killed_at_random_moments_lose_nothing(
    sweep: Sweep, undisturbed: Sweep, options: tuple[str, ...]
) -> None:
    moments = [random.SystemRandom().uniform(0.0, 25.0) for _ in range(8)]
    print("killed after", moments, "seconds")
    for moment in moments:
        process = sweep.start(*options)
        with contextlib.suppress(subprocess.TimeoutExpired):
            output_of(process, seconds=moment)
            break  # nothing was left to do
        kill(process)
    sweep.finish(*options)
    if options:
        _assert_paused_alike(sweep, undisturbed)
    else:
        assert_complete(sweep)
        assert_same(sweep, undisturbed)


def test_paused_trials_outlive_workers_and_drivers_and_go_on_with_the_numbers_of_those_that_never_paused(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    def paused() -> list[int]:
        trials = sweep.trials() if journal_of(sweep) else {}
        running = (trial for trial in trials.get("prefix", ()) if trial.state is TrialState.RUNNING)
        return [trial.number for trial in running if state_of(trial) == "paused"]

    process = sweep.start(*PAUSING)
    wait_long(paused, process)  # the first at a rung, as it has no rivals yet
    first = paused()[0]
    for worker in workers_of(process):
        worker.kill()
    kill(process)
    assert first in paused()
    command = [sys.executable, "-m", "prefixray", "control", "small", "resume", f"prefix/{first}", "--wait", "0"]
    answer = subprocess.run(command, cwd=sweep.folder, capture_output=True, text=True, check=True)
    assert "is kept" in answer.stdout, "the next driver executes it before anything else"
    process = sweep.start(*PAUSING)
    wait_long(lambda: any("resumed" in t.user_attrs for t in sweep.trials()["prefix"] if t.number == first), process)
    kill(process)
    output = sweep.finish(*PAUSING)
    assert f"prefix/{first} started again" in output or f"prefix/{first} done" in output, output
    _assert_paused_alike(sweep, undisturbed)
    assert len(sweep.curves()[first]) == len(undisturbed.curves()[first]), "the resumed one came to its end"
    record = json.loads((sweep.results / "results.json").read_text())
    (pauses,) = (trial["pauses"] for trial in record["search"] if trial["number"] == first)
    assert record["policy"] == "promote" and pauses == [{"step": 80, "resumed": "by hand"}]
    assert "What was decided at the rungs?" in (sweep.results / "report.md").read_text()


def test_an_interrupt_puts_all_away_and_a_second_one_ends_at_once(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start("--set", "search.max_hours=9")
    wait_long(sweep.has_checkpoints, process)
    process.send_signal(signal.SIGINT)
    output = output_of(process, code=130)
    assert "prefix/0" in output.split("state")[-1], "the table so far"
    assert output.splitlines()[-1].endswith("prefixray sweep small.yaml --set search.max_hours=9")
    process = sweep.start()
    wait_long(lambda: len(workers_of(process)) > 0, process)
    process.send_signal(signal.SIGINT)
    time.sleep(3.0)  # Python sees two signals at once as one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) in (-signal.SIGINT, 130), "130 where the first was enough already"
    process.communicate(timeout=600)  # Ray's own processes notice
    sweep.finish()
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def journal_of(sweep: Sweep) -> bytes:
    """The journal as it is."""
    path = sweep.results / "study.journal"
    return path.read_bytes() if path.exists() else b""


def checkpoints_of(sweep: Sweep) -> list[Path]:
    """All checkpoints, by trial and step."""
    found = [path for path in sweep.results.glob("trials/prefix/*/step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: (path.parent.name, int(path.name.removeprefix("step-"))))


def damage(sweep: Sweep) -> None:
    """What a machine that crashes may leave: damaged checkpoints, half a line in the journal, a lock nobody holds."""
    newest = list({path.parent: path for path in checkpoints_of(sweep)}.values())
    assert len(newest) >= 2
    flipped, cut = newest[0] / "checkpoint.safetensors", newest[1] / "checkpoint.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, cut.stat().st_size // 2)
    with (sweep.results / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code": 6, "worker_id": "half a li')
    (sweep.results / "study.journal.lock").write_text("")


def _assert_paused_alike(sweep: Sweep, undisturbed: Sweep) -> None:
    """Every trial has ended once, at the rung or at its end, with the numbers of one that never paused."""
    states = sweep.states()["prefix"]
    assert states["COMPLETE"] >= 1 and states["PRUNED"] >= 1
    assert states + Counter() == Counter(COMPLETE=states["COMPLETE"], PRUNED=NUM_TRIALS - states["COMPLETE"])
    assert {run.info.status for run in sweep.runs()} == {"FINISHED"}
    for ours, theirs in zip(sweep.curves(), undisturbed.curves(), strict=True):
        assert len(ours) in (2, len(theirs)) and [step for step, _ in ours] == [step for step, _ in theirs][: len(ours)]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs][: len(ours)], abs=TOLERANCE)
