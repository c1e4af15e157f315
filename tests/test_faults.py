"""Whatever dies, a sweep ends with the trials it was asked for, each once, with the numbers it would have had.

Run with `pytest -n 0 -m faults`. A fixed list of configurations in fp32 without early stopping goes through the real
driver, Ray Tune, Optuna and MLflow; real faults hit it, and its numbers are compared with those of an undisturbed run.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.sweep_process import DrivenSweep, descendants_of, end_all, kill, wait_for, workers_of

from prefixray.search.trial_source import state_of

pytestmark = [pytest.mark.faults, pytest.mark.ray]

_wait_for = partial(wait_for, seconds=600)

TOLERANCE = 1e-4  # of a dev loss in fp32, whose sums depend on who shares a batch
NUM_STEPS = 240
NUM_TRIALS = 4
SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: {num_steps}, eval_every: 40, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [1, 3, 5, 8]}}
    mid_dim: null
    init_token: pub
    learning_rate: 2e-3
    first: [{{preseqlen: 1}}, {{preseqlen: 3}}, {{preseqlen: 5}}, {{preseqlen: 8}}]
  lora: {{rank: 2, learning_rate: 1e-3}}
search: {{num_trials: {num_trials}, concurrency: 4, seed: 3, max_failures: 1}}
final: {{num_seeds: 1, metric: test/bleu, reference: lora, num_beams: 2, max_new_tokens: 8}}
"""


class Sweep(DrivenSweep):
    """The sweep of this file."""

    def write(self, *, num_steps: int = NUM_STEPS) -> None:
        """Write the sweep file."""
        text = SWEEP.format(base=self.base, num_steps=num_steps, num_trials=NUM_TRIALS)
        (self.folder / "small.yaml").write_text(text)

    def finish(self, *options: str) -> str:
        """Run the driver to its end; what it printed."""
        return output_of(self.start(*options))

    def losses(self) -> dict[str, float]:
        """The dev loss that each trial of the search and the final stage has ended with."""
        paths = {str(path.parent.relative_to(self.results)): path for path in self.result_files()}
        ended = {key: json.loads(path.read_text()) for key, path in paths.items()}
        return {key: result["metrics"]["dev/loss"] for key, result in ended.items() if result["state"] == "done"}

    def curves(self) -> list[list[Any]]:
        """The curves of the search, in the order of its trials."""
        search = json.loads((self.results / "results.json").read_text())["search"]
        return [trial["curve"] for trial in sorted(search, key=lambda trial: int(trial["number"]))]


def output_of(process: "subprocess.Popen[str]", code: int = 0, seconds: float = 900) -> str:
    """Wait for the driver to end; what it printed."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


@pytest.fixture
def sweep(tmp_path: Path, base_folders: Mapping[str, Path]) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path, base_folders["llama"])
    sweep.write()
    yield sweep
    end_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base_folders: Mapping[str, Path]) -> Sweep:
    """The same sweep without any fault."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), base_folders["llama"])
    sweep.write()
    sweep.finish()
    assert_complete(sweep)
    return sweep


def assert_complete(sweep: Sweep, uri: str | None = None) -> None:
    """Exactly the trials that were asked for, each ended once, each with one run in MLflow that has its curve."""
    assert sweep.states() == {
        "prefix": Counter(COMPLETE=NUM_TRIALS),
        "final/prefix": Counter(COMPLETE=1),
        "final/lora": Counter(COMPLETE=1),
    }
    runs = sweep.runs(uri)
    keys = Counter(run.data.tags.get("prefixray.key", "sweep") for run in runs)
    assert set(keys.values()) == {1} and len(keys) == NUM_TRIALS + 2 + 2, keys
    assert {run.info.status for run in runs} == {"FINISHED"}
    named = {run.data.tags.get("prefixray.key"): run for run in runs}
    assert "test/bleu" in named.pop("untuned").data.metrics and "dev/loss" not in named.pop(None).data.metrics
    assert all("dev/loss" in run.data.metrics for run in named.values())


def assert_same(sweep: Sweep, undisturbed: Sweep, tolerance: float = TOLERANCE) -> None:
    """The numbers of every trial, and what was decoded with the winners, are those of the undisturbed run."""
    assert sweep.losses() == pytest.approx(undisturbed.losses(), abs=tolerance)
    for ours, theirs in zip(sweep.curves(), undisturbed.curves(), strict=True):
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=tolerance)
    for file in undisturbed.results.glob("final/*/test.hyp"):
        assert (sweep.results / file.relative_to(undisturbed.results)).read_text() == file.read_text()


def test_workers_killed_together_and_while_they_rejoin_cost_no_number(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    _wait_for(sweep.has_checkpoints, process)
    killed = workers_of(process)
    assert 1 <= len(killed) <= 2
    for worker in killed:
        worker.kill()
    _wait_for(lambda: set(workers_of(process)) - set(killed), process)
    workers_of(process)[0].kill()
    assert "its trials rejoin" in output_of(process)
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def test_a_driver_killed_at_any_time_is_followed_by_one_that_goes_on(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    _wait_for(lambda: b'"op_code":4' in journal_of(sweep), process)  # the first proposal
    kill(process)
    process = sweep.start()
    _wait_for(lambda: len(checkpoints_of(sweep)) >= 4, process)
    kill(process)
    damage(sweep)
    process = sweep.start()
    _wait_for(lambda: any(sweep.results.glob("final/*/result.json")), process)
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


def test_drivers_killed_at_random_moments_lose_nothing(sweep: Sweep, undisturbed: Sweep) -> None:
    moments = [random.SystemRandom().uniform(0.0, 25.0) for _ in range(8)]
    print("killed after", moments, "seconds")
    for moment in moments:
        process = sweep.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            output_of(process, seconds=moment)
            break  # nothing was left to do
        kill(process)
    sweep.finish()
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def test_paused_trials_outlive_workers_and_drivers_and_go_on_with_the_numbers_of_those_that_never_paused(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    options = ("--set", "search.policy=promote", "search.rungs=[80]", "search.keep=0.5", "search.concurrency=2")

    def paused() -> list[int]:
        trials = sweep.trials() if journal_of(sweep) else {}
        running = (trial for trial in trials.get("prefix", ()) if trial.state is TrialState.RUNNING)
        return [trial.number for trial in running if state_of(trial) == "paused"]

    process = sweep.start(*options)
    _wait_for(paused, process)  # a rung's first trial pauses always
    first = paused()[0]
    for worker in workers_of(process):
        worker.kill()
    kill(process)
    assert first in paused()
    process = sweep.start(*options)
    command = [sys.executable, "-m", "prefixray", "control", "small", "resume", f"prefix/{first}"]
    answer = subprocess.run(command, cwd=sweep.folder, capture_output=True, text=True, check=False)
    assert "goes on from step 80" in answer.stdout or "does not pause" in answer.stderr, answer  # the policy was faster
    _wait_for(lambda: any("resumed" in trial.user_attrs for trial in sweep.trials()["prefix"]), process)
    kill(process)
    output = sweep.finish(*options)
    assert f"prefix/{first} started again" in output or f"prefix/{first} done" in output, output
    states = sweep.states()
    assert states["prefix"]["COMPLETE"] >= 1 and states["prefix"] + Counter() == Counter(
        COMPLETE=states["prefix"]["COMPLETE"], PRUNED=NUM_TRIALS - states["prefix"]["COMPLETE"]
    )
    assert {run.info.status for run in sweep.runs()} == {"FINISHED"}
    for ours, theirs in zip(sweep.curves(), undisturbed.curves(), strict=True):
        assert len(ours) in (2, len(theirs)) and [step for step, _ in ours] == [step for step, _ in theirs][: len(ours)]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs][: len(ours)], abs=TOLERANCE)
    assert len(sweep.curves()[first]) == len(undisturbed.curves()[first]), "the resumed one came to its end"


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
    _wait_for(sweep.has_checkpoints, process)
    (sweep.folder / "armed").touch()
    workers_of(process)[0].kill()
    output = output_of(process)
    assert "is given up, and another is started in its place: RuntimeError: the device is gone" in output, output
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


@contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[None]:
    """A real server, killed in the end."""
    place = [f"--backend-store-uri=sqlite:///{folder / 'server.db'}", f"--artifacts-destination={folder / 'artifacts'}"]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    with (folder / "server.log").open("a") as log:
        alone = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=alone, start_new_session=True)
        try:
            deadline = time.monotonic() + 600
            while not answers(port):
                assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.1)
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_a_tracking_server_must_be_there_at_the_start_and_may_be_away_after_it(
    sweep: Sweep, undisturbed: Sweep
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    output = output_of(sweep.start("--set", f"tracking.mlflow={uri}"), code=2)
    assert output.startswith(f"tracking.mlflow: {uri}: no MLflow server answers there"), output
    assert "--set tracking.mlflow=null" in output
    with tracking_server(sweep.folder, port):
        process = sweep.start("--set", f"tracking.mlflow={uri}")
        _wait_for(sweep.has_checkpoints, process)
    _wait_for(lambda: sweep.ended() >= 1, process)
    with tracking_server(sweep.folder, port):
        output = output_of(process)
        assert "is away; the sweep goes on" in output and "could not be logged" not in output, output
        assert_complete(sweep, uri)
    assert_same(sweep, undisturbed)


def test_an_interrupt_puts_all_away_and_a_second_one_ends_at_once(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start("--set", "search.max_hours=9")
    _wait_for(sweep.has_checkpoints, process)
    process.send_signal(signal.SIGINT)
    output = output_of(process, code=130)
    assert "prefix/0" in output.split("state")[-1], "the table so far"
    assert output.splitlines()[-1].endswith("prefixray sweep small.yaml --set search.max_hours=9")
    process = sweep.start()
    _wait_for(lambda: len(workers_of(process)) > 0, process)
    process.send_signal(signal.SIGINT)
    time.sleep(3.0)  # Python sees two signals at once as one
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) in (-signal.SIGINT, 130), "130 where the first was enough already"
    process.communicate(timeout=600)  # Ray's own processes notice
    sweep.finish()
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


@pytest.fixture
def small_disk(sweep: Sweep) -> Iterator[Path]:
    """A disk of 24 MB on which the sweep's results lie."""
    place = sweep.folder / "runs"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk takes a right that this user does not have")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_and_a_file_in_the_way_stop_the_sweep_until_they_are_mended(
    sweep: Sweep, undisturbed: Sweep, small_disk: Path
) -> None:
    in_the_way, ballast = sweep.results / "trials" / "prefix" / "2", small_disk / "ballast"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    output = output_of(sweep.start(), code=1)
    assert f"{in_the_way}: File exists" in output and "then run the same command again" in output, output
    in_the_way.unlink()
    process = sweep.start()
    _wait_for(sweep.has_checkpoints, process)
    _fill(ballast)
    output = output_of(process, code=1)
    assert "No space left on device" in output and "then run the same command again" in output, output
    ballast.unlink()
    sweep.finish()
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))


def test_tunes_own_processes_give_the_numbers_of_seats(sweep: Sweep, undisturbed: Sweep) -> None:
    gone = "from prefixray.driver.engine import seats; seats.PRIVATE_NAME = '_NoSuchName'"
    run = "import sys; from prefixray.sweep import main; sys.exit(main(['small.yaml']))"
    output = output_of(sweep.start(command=[sys.executable, "-c", f"{gone}; {run}"]))
    assert "this version of Ray has no _NoSuchName any more: each trial gets a process of its own" in output, output
    assert_complete(sweep)
    assert_same(sweep, undisturbed, tolerance=1e-6)


def test_the_process_of_all_seats_may_be_killed(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    _wait_for(sweep.has_checkpoints, process)
    for _ in range(2):
        (house,) = descendants_of(process, "ray::House")
        house.kill()
        _wait_for(lambda killed=house: set(descendants_of(process, "ray::House")) - {killed}, process)
        time.sleep(2.0)
    output = output_of(process)
    assert output.count("Ray Tune has fallen over: ") == 2 and output.count("its trials go on") == 2, output
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def test_a_control_service_that_comes_back_costs_nothing(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    _wait_for(sweep.has_checkpoints, process)
    (service,) = descendants_of(process, "gcs_server")
    service.suspend()
    time.sleep(20.0)
    service.resume()
    output_of(process)
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


@pytest.mark.parametrize("service", ["raylet", "gcs_server"])
def test_a_service_of_ray_that_dies_costs_no_number(sweep: Sweep, undisturbed: Sweep, service: str) -> None:
    process = sweep.start()
    _wait_for(sweep.has_checkpoints, process)
    ((dying,), workers) = descendants_of(process, service), workers_of(process)
    dying.kill()
    line = f"the Ray of this sweep has died ({service}, process {dying.pid}); the driver starts anew"
    assert line in (output := output_of(process)) and "Ray Tune has fallen over" not in output, output
    assert not any(worker.is_running() for worker in workers)
    assert_complete(sweep)
    assert_same(sweep, undisturbed)
