"""How a worker's state moves by what Ray's table says of it."""

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from prefixray.cluster.connect import connected, dead_service
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import LOADING_SECONDS, MOST_LOADS, Phase, WorkerState, advance, start_worker
from prefixray.system.machine import ALLOCATOR

READY = WorkerState(Phase.READY, 0.0, pid=7, has_served=True)
LATER = 100.0


def _actor(state: str, num_restarts: int = 0, pid: int = 7) -> ActorState:
    return ActorState(state, num_restarts, pid, "node")


def _after(state: WorkerState, *actors: ActorState) -> WorkerState:
    for actor in actors:
        state = advance(state, actor, LATER)
    return state


def test_a_new_worker_waits_for_a_device_then_loads_the_base() -> None:
    state = WorkerState(Phase.STARTING, 0.0)
    assert _after(state, _actor("PENDING_CREATION", pid=0)) == state
    loading = _after(state, _actor("PENDING_CREATION", pid=7))
    assert (loading.phase, loading.since) == (Phase.LOADING, LATER)
    assert _after(loading, _actor("ALIVE")).phase is Phase.LOADING, "until it answers with its facts"


def test_one_that_has_died_waits_for_a_device_until_it_has_another_process() -> None:
    state = _after(READY, _actor("RESTARTING", 1))
    assert (state.phase, state.since, state.num_failed) == (Phase.STARTING, LATER, 0)
    assert _after(state, _actor("RESTARTING", 1)).phase is Phase.STARTING
    assert _after(state, _actor("RESTARTING", 1, pid=8)).phase is Phase.LOADING
    assert _after(READY, _actor("ALIVE", 1, pid=8)).phase is Phase.LOADING, "all of it between two looks"


@pytest.mark.parametrize("phase", [Phase.READY, Phase.SILENT, Phase.RETIRING])
def test_a_death_while_it_was_up_is_no_failure_to_load(phase: Phase) -> None:
    state = _after(READY.to(phase, 0.0), _actor("RESTARTING", 1))
    assert (state.phase, state.num_failed) == (Phase.STARTING, 0)


def test_a_worker_that_dies_of_loading_again_and_again_is_over() -> None:
    state = WorkerState(Phase.LOADING, 0.0, pid=7)
    for number in range(1, MOST_LOADS):
        state = _after(state, _actor("RESTARTING", number, pid=7 + number))
        assert (state.phase, state.num_failed) == (Phase.LOADING, number)
    state = _after(state, _actor("RESTARTING", MOST_LOADS, pid=0))
    assert state.phase is Phase.REFUSED and f"died {MOST_LOADS} times while it loaded" in str(state.cause)
    between_two_looks = _after(READY, _actor("RESTARTING", 1 + MOST_LOADS))
    assert between_two_looks.phase is Phase.LOST, "it had been ready"


def test_processes_that_die_of_a_trial_before_the_driver_looks_do_not_count_as_dying_of_loading() -> None:
    state = WorkerState(Phase.LOADING, 0.0, pid=7)
    for number in range(1, MOST_LOADS + 2):  # its record says each time that one more has loaded the base
        state = advance(state, _actor("RESTARTING", number, pid=7 + number), LATER, num_loads=number)
        assert (state.phase, state.num_failed) == (Phase.LOADING, 0)
    assert advance(state, _actor("RESTARTING", MOST_LOADS + 2), LATER, num_loads=MOST_LOADS + 1).num_failed == 1


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.SILENT])
def test_one_that_does_not_come_to_be_ready_is_over_in_the_end(phase: Phase) -> None:
    state = READY.to(phase, 0.0)
    assert advance(state, _actor("ALIVE"), LOADING_SECONDS - 1) == state
    ended = advance(state, _actor("ALIVE"), LOADING_SECONDS + 1)
    assert ended.phase is Phase.LOST and "was not ready after 60 minutes" in str(ended.cause)


def test_one_that_waits_for_a_device_may_wait_for_ever() -> None:
    state = WorkerState(Phase.STARTING, 0.0)
    assert advance(state, _actor("PENDING_CREATION", pid=0), 1e9).phase is Phase.STARTING


@pytest.mark.parametrize(("has_served", "phase"), [(True, Phase.LOST), (False, Phase.REFUSED)])
def test_one_that_ray_gives_up_is_over_and_nothing_moves_it_any_more(has_served: bool, phase: Phase) -> None:
    state = _after(replace(READY, has_served=has_served), _actor("DEAD"))
    assert state.phase is phase and state.cause is not None
    assert _after(state, _actor("ALIVE", 3, pid=9)) == state


def test_trials_of_a_machine_that_was_about_to_go_need_not_wait_for_it() -> None:
    state = _after(READY.to(Phase.RETIRING, 0.0), _actor("RESTARTING", 1))
    assert state.since == -math.inf


def test_a_table_that_is_behind_says_nothing() -> None:
    state = replace(READY, num_restarts=2)
    assert _after(state, _actor("RESTARTING", 1)) == state


@pytest.mark.ray
def test_a_worker_on_a_cpu_allocates_as_steps_do_best_and_a_raylet_that_dies_is_noticed(
    tmp_path: Path, worker_setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with connected("local") as cluster:
        assert "GLIBC_TUNABLES" not in os.environ, "it is Ray's processes that have it"
        asked = time.time()
        worker = start_worker("worker-0", cluster, worker_setup, tmp_path / "record").actor
        found = ray.get(worker.__ray_call__.remote(lambda _, keys=list(ALLOCATOR): [os.environ[key] for key in keys]))
        process = psutil.Process(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())))
        assert process.create_time() < asked, "Ray had started its process before"
        ray.get(worker.ready.remote())
        loaded = ray.get(worker.__ray_call__.remote(lambda _: {"torch", "scipy", "boto3"} & set(sys.modules)))
        assert loaded == {"torch"}, "what only costs time stays out"
        services = [child.cmdline() for child in psutil.Process().children()]
        assert not [line for line in services if "monitor.py" in str(line) or "dashboard.py" in str(line)]
        assert dead_service() is None
        (raylet,) = [child for child in psutil.Process().children() if child.name() == "raylet"]
        assert any("--minimal" in word for word in raylet.cmdline()), "its agent does without a dashboard"
        raylet.kill()
        deadline = time.monotonic() + 10
        while dead_service() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert dead_service() == f"raylet, process {raylet.pid}"
    assert dead_service() is None
    assert found == list(ALLOCATOR.values())
