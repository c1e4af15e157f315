"""Workers that die of a trial, hang, raise an error, or cannot load the base."""

import os
import sys
from collections import Counter

import pytest
from support.small_sweep import NUM_TRIALS, TOLERANCE, Sweep, assert_complete, assert_same, output_of, wait_long
from support.sweep_process import workers_of

pytestmark = [pytest.mark.faults, pytest.mark.ray]


HOOK = """
# Found by every Python process of the sweep: hits a worker in the step of a certain trial.
import json, os, signal
from pathlib import Path

PUT_AWAY = Path({folder!r})
write = os.pwrite

def pwrite(file, line, offset):
    written = write(file, line, offset)
    running = json.loads(line).get("running", {{}}) if line.startswith(b"{{") else {{}}
    if running.get("prefix/2", 0) >= 60:
        os.kill(os.getpid(), signal.SIGKILL)
    if running.get("prefix/1", 0) >= 100 and once("hangs"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if running.get("prefix/3", 0) >= 140 and once("raises"):
        raise RuntimeError("the device is gone")
    return written

def once(what):
    try:
        (PUT_AWAY / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

os.pwrite = pwrite
"""
WATCHFUL = """
import sys
from prefixray.cluster import fleet
from prefixray.sweep import main
fleet.HANG_SECONDS = 20.0
sys.exit(main(["small.yaml"]))
"""


def test_a_trial_that_always_kills_its_worker_is_found_and_a_hanging_worker_and_an_error_in_its_loop_cost_nothing(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    (sweep.folder / "sitecustomize.py").write_text(HOOK.format(folder=str(sweep.folder)))
    path = os.pathsep.join([str(sweep.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = sweep.start(command=[sys.executable, "-c", WATCHFUL], PYTHONPATH=path)
    output = output_of(process)
    assert {file.name for file in sweep.folder.iterdir()} >= {"hangs", "raises"}
    assert "it is killed and started again" in output and "RuntimeError: the device is gone" in output, output
    failed = [line for line in output.splitlines() if "failed" in line]
    assert len(failed) == 1 and "prefix/2 failed: its worker died 2 times with no other trial in the pack" in failed[0]
    assert sweep.states()["prefix"] == Counter(COMPLETE=NUM_TRIALS - 1, FAIL=1)
    expected = {key: loss for key, loss in undisturbed.losses().items() if key.startswith("trials")}
    del expected["trials/prefix/2"]
    ours = {key: loss for key, loss in sweep.losses().items() if key.startswith("trials")}
    assert ours == pytest.approx(expected, abs=TOLERANCE)


LOADING_HOOK = """
# Found by every Python process of the sweep: hits a worker when it comes to load the base.
import os, signal, sys
from pathlib import Path

ARMED = Path({folder!r}) / "armed"

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "prefixray.training.trainer" and "prefixray.driver.run" not in sys.modules and ARMED.exists():
            {hit}

sys.meta_path.insert(0, Finder())
"""


def hook(sweep: Sweep, hit: str) -> str:
    """Have this happen to workers that load the base while the file `armed` exists; the driver's PYTHONPATH."""
    (sweep.folder / "sitecustomize.py").write_text(LOADING_HOOK.format(folder=str(sweep.folder), hit=hit))
    return os.pathsep.join([str(sweep.folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_a_worker_that_always_dies_of_loading_the_base_ends_the_sweep_with_a_sentence(sweep: Sweep) -> None:
    path = hook(sweep, "os.kill(os.getpid(), signal.SIGKILL)")
    (sweep.folder / "armed").touch()
    output = output_of(sweep.start(PYTHONPATH=path), code=1)
    assert "cannot be used: it died 3 times while it loaded the base; the end of " in output.splitlines()[-1], output
    (sweep.folder / "armed").unlink()


def test_a_worker_that_cannot_be_started_again_is_replaced_and_its_trials_go_on(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    path = hook(sweep, "ARMED.unlink(); raise RuntimeError('the device is gone')")
    process = sweep.start(PYTHONPATH=path)
    wait_long(sweep.has_checkpoints, process)
    (sweep.folder / "armed").touch()
    workers_of(process)[0].kill()
    output = output_of(process)
    assert "is given up, and another is started in its place: RuntimeError: the device is gone" in output, output
    assert_complete(sweep)
    assert_same(sweep, undisturbed)
