"""A driver whose Ray has died starts anew in its own place, three times in ten minutes. The Ray here is a `sleep`."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from prefixray.driver import restart
from prefixray.driver.falls import Falls
from prefixray.driver.restart import watched
from prefixray.errors import SweepFailed
from prefixray.reporting.live import LiveView

COMMAND = """
import ctypes, os, psutil, subprocess, sys, threading, time
from prefixray.driver import restart
from prefixray.errors import SweepFailed
from prefixray.reporting.live import LiveView
from prefixray.system.exit_codes import interruptible, leave

restart.LOOK_SECONDS, restart._GRACE = 0.05, 0.2

def main():
    spared = psutil.Process().children()
    ray = subprocess.Popen(["sh", "-c", "sleep 300 & wait"])  # the worker holds stdout open
    print("process", os.getpid(), "with", *sys.argv[1:], flush=True)
    try:
        with interruptible(), restart.watched(LiveView(), lambda: "raylet" if ray.poll() is not None else None, spared):
            time.sleep(0.5)
            ray.kill()
            time.sleep(60)
    except SweepFailed as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        return 130

leave(main)
"""


def test_the_driver_starts_anew_as_the_same_process_and_leaves_no_worker_until_it_has_done_so_too_often() -> None:
    now = time.monotonic()
    environment = {**os.environ, "PREFIXRAY_RESTARTS": f"{now - 550.0} {now - 9.5}"}
    entry_point = 'sleep 300 >/dev/null & echo $!; exec "$@"'
    command = ["sh", "-c", entry_point, "sh", sys.executable, "-c", COMMAND, "a b", "c"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output, _ = driver.communicate(timeout=120)  # returns once everybody has closed stdout, the workers too
    other, *lines = output.splitlines()
    os.kill(int(other), signal.SIGKILL)  # raises where it has gone with Ray
    assert [line for line in lines if line.startswith("process")] == [f"process {driver.pid} with a b c"] * 2
    assert sum("has died (raylet); the driver starts anew, and its trials go on" in line for line in lines) == 1
    assert "more than 3 times in 10 minutes" in lines[-1] and "run the same command again" in lines[-1]
    assert driver.returncode == 1


def test_three_falls_are_borne_in_ten_minutes_whichever_process_has_seen_them() -> None:
    now = time.monotonic()
    falls = Falls([now - 550.0, now - 300.0])
    assert falls.bear()
    assert not Falls(falls.times).bear()
    assert Falls([now - 601.0, now - 300.0, now - 200.0]).bear()


def test_in_somebodys_python_the_sweep_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(restart, "_GRACE", 0.05)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    shown = io.StringIO()
    told = "the Ray of this sweep has died (raylet); run the same command again: the sweep goes on from here"
    try:
        with pytest.raises(SweepFailed, match=f"^{re.escape(told)}$"), watched(LiveView(shown), lambda: "raylet"):
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown.getvalue().count(told) == 1, "also where Ray holds the main thread"
    with (
        pytest.raises(SweepFailed, match=r"has died .gcs_server."),
        watched(LiveView(io.StringIO()), lambda: "gcs_server"),
    ):
        raise RuntimeError("what Tune says of it")
    with pytest.raises(RuntimeError, match="another"), watched(LiveView(io.StringIO()), lambda: None):
        raise RuntimeError("another")


def test_who_ends_the_driver_together_with_ray_does_not_get_another() -> None:
    together = COMMAND.replace("ray.kill()", "ray.kill(); os.kill(os.getpid(), 15)").replace(
        "sleep 300 & wait", "exec sleep 300"
    )
    driver = subprocess.run([sys.executable, "-c", together], capture_output=True, text=True)
    assert driver.returncode == 130, driver.stderr
    assert driver.stdout.count("process") == 1


def test_nor_does_he_where_ray_holds_the_main_thread() -> None:
    """In a lock of C's, which it waits for twice, a signal neither ends the wait nor lets Python's handler run."""
    held = """ray.kill()
            threading.Timer(0.1, os.kill, (os.getpid(), 15)).start()
            mutex, until = ctypes.create_string_buffer(64), (ctypes.c_long * 2)(int(time.time()) + 4, 0)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_timedlock(mutex, until)"""
    command = COMMAND.replace("ray.kill()", held).replace("_GRACE = 0.05, 0.2", "_GRACE = 0.05, 0.5")
    command = command.replace("sleep 300 & wait", "exec sleep 300")
    driver = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert driver.stdout.count("process") == 1 and "has died" not in driver.stdout
    assert driver.returncode == 130, driver.stderr
