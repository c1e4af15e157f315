"""How a worker's life goes by what Ray's table says of it."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from prefixray.cluster.connect import connected
from prefixray.cluster.nodes import ActorState
from prefixray.cluster.worker import WorkerSetup
from prefixray.cluster.worker_handle import LOADING_SECONDS, MOST_LOADS, Life, State, seen, start_worker
from prefixray.system.machine import ALLOCATOR

READY = Life(State.READY, 0.0, pid=7, has_served=True)
LATER = 100.0


def _sight(state: str, num_restarts: int = 0, pid: int = 7) -> ActorState:
    return ActorState(state, num_restarts, pid, "node")


def _after(life: Life, *sights: ActorState) -> Life:
    for sight in sights:
        life = seen(life, sight, LATER)
    return life


def test_a_new_worker_waits_for_a_device_then_loads_the_base() -> None:
    life = Life(State.STARTING, 0.0)
    assert _after(life, _sight("PENDING_CREATION", pid=0)) == life
    loading = _after(life, _sight("PENDING_CREATION", pid=7))
    assert (loading.state, loading.since) == (State.LOADING, LATER)
    assert _after(loading, _sight("ALIVE")).state is State.LOADING, "until it says what it has found"


def test_one_that_has_died_waits_for_a_device_until_it_has_another_process() -> None:
    life = _after(READY, _sight("RESTARTING", 1))
    assert (life.state, life.since, life.num_failed) == (State.STARTING, LATER, 0)
    assert _after(life, _sight("RESTARTING", 1)).state is State.STARTING
    assert _after(life, _sight("RESTARTING", 1, pid=8)).state is State.LOADING
    assert _after(READY, _sight("ALIVE", 1, pid=8)).state is State.LOADING, "all of it between two looks"


@pytest.mark.parametrize("state", [State.READY, State.SILENT, State.LEAVING])
def test_a_death_while_it_was_up_is_no_failure_to_load(state: State) -> None:
    life = _after(READY.to(state, 0.0), _sight("RESTARTING", 1))
    assert (life.state, life.num_failed) == (State.STARTING, 0)


def test_a_worker_that_dies_of_loading_again_and_again_is_over() -> None:
    life = Life(State.LOADING, 0.0, pid=7)
    for number in range(1, MOST_LOADS):
        life = _after(life, _sight("RESTARTING", number, pid=7 + number))
        assert (life.state, life.num_failed) == (State.LOADING, number)
    life = _after(life, _sight("RESTARTING", MOST_LOADS, pid=0))
    assert life.state is State.REFUSED and f"died {MOST_LOADS} times while it loaded" in str(life.cause)
    between_two_looks = _after(READY, _sight("RESTARTING", 1 + MOST_LOADS))
    assert between_two_looks.state is State.LOST, "it had been ready"


@pytest.mark.parametrize("state", [State.LOADING, State.SILENT])
def test_one_that_does_not_come_to_be_ready_is_over_in_the_end(state: State) -> None:
    life = READY.to(state, 0.0)
    assert seen(life, _sight("ALIVE"), LOADING_SECONDS - 1) == life
    ended = seen(life, _sight("ALIVE"), LOADING_SECONDS + 1)
    assert ended.state is State.LOST and "was not ready after 60 minutes" in str(ended.cause)


def test_one_that_waits_for_a_device_may_wait_for_ever() -> None:
    life = Life(State.STARTING, 0.0)
    assert seen(life, _sight("PENDING_CREATION", pid=0), 1e9).state is State.STARTING


@pytest.mark.parametrize(("has_served", "state"), [(True, State.LOST), (False, State.REFUSED)])
def test_one_that_ray_gives_up_is_over_and_nothing_moves_it_any_more(has_served: bool, state: State) -> None:
    life = _after(replace(READY, has_served=has_served), _sight("DEAD"))
    assert life.state is state and life.cause is not None
    assert _after(life, _sight("ALIVE", 3, pid=9)) == life


def test_trials_of_a_machine_that_was_about_to_go_need_not_wait_for_it() -> None:
    life = _after(READY.to(State.LEAVING, 0.0), _sight("RESTARTING", 1))
    assert life.since == -math.inf


def test_a_table_that_is_behind_says_nothing() -> None:
    life = replace(READY, num_restarts=2)
    assert _after(life, _sight("RESTARTING", 1)) == life


@pytest.mark.ray
def test_a_worker_on_a_cpu_allocates_as_steps_do_best(
    tmp_path: Path, worker_setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with connected("local") as cluster:
        worker = start_worker("worker-0", cluster, worker_setup, tmp_path / "record").handle
        found = ray.get(worker.__ray_call__.remote(lambda _, keys=list(ALLOCATOR): [os.environ[key] for key in keys]))
    assert found == list(ALLOCATOR.values())
