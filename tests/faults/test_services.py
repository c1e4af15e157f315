"""What a sweep leans on goes away: the MLflow server, the disk, the processes of Ray."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.small_sweep import (
    Sweep,
    assert_complete,
    assert_same,
    output_of,
    wait_long,
)
from support.sweep_process import descendants_of, workers_of

pytestmark = [pytest.mark.faults, pytest.mark.ray]


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
        wait_long(sweep.has_checkpoints, process)
    wait_long(lambda: sweep.ended() >= 1, process)
    with tracking_server(sweep.folder, port):
        output = output_of(process)
        assert "is away; the sweep goes on" in output and "could not be logged" not in output, output
        assert_complete(sweep, uri)
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
    wait_long(sweep.has_checkpoints, process)
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
    wait_long(sweep.has_checkpoints, process)
    for _ in range(2):
        (house,) = descendants_of(process, "ray::House")
        house.kill()
        wait_long(lambda killed=house: set(descendants_of(process, "ray::House")) - {killed}, process)
        time.sleep(2.0)
    output = output_of(process)
    assert output.count("Ray Tune has fallen over: ") == 2 and output.count("its trials go on") == 2, output
    assert_complete(sweep)
    assert_same(sweep, undisturbed)


def test_a_control_service_that_comes_back_costs_nothing(sweep: Sweep, undisturbed: Sweep) -> None:
    process = sweep.start()
    wait_long(sweep.has_checkpoints, process)
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
    wait_long(sweep.has_checkpoints, process)
    ((dying,), workers) = descendants_of(process, service), workers_of(process)
    dying.kill()
    line = f"the Ray of this sweep has died ({service}, process {dying.pid}); the driver starts anew"
    assert line in (output := output_of(process)) and "Ray Tune has fallen over" not in output, output
    assert not any(worker.is_running() for worker in workers)
    assert_complete(sweep)
    assert_same(sweep, undisturbed)
