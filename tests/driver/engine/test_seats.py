"""Trials as seats in one process, with the installed Ray and Tune; the worker and the coordinator are played."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.tune.execution import tune_controller
from support.played_tune import NUM_STEPS, run_tune

from prefixray.driver.engine import seats

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, on a machine that has no CPU to offer."""
    ray.init(address="local", namespace="played", num_cpus=0, include_dashboard=False, log_to_driver=False)
    yield tmp_path_factory.mktemp("tune")
    ray.shutdown()


class Counted:
    """The processes that Ray has had for houses, and for trials."""

    def __init__(self) -> None:
        self.houses: set[int] = set()
        self.trials: set[int] = set()

    def __call__(self) -> None:
        for child in psutil.Process().children(recursive=True):
            title = " ".join(child.cmdline())
            for name, ids in (("House", self.houses), ("TrialTrainable", self.trials)):
                if title.startswith(f"ray::{name}"):
                    ids.add(child.pid)


def test_all_trials_of_a_tune_run_share_one_process(here: Path) -> None:
    counted = Counted()
    coordinator = run_tune(here, 16, counted)
    assert (len(counted.houses), len(counted.trials)) == (1, 0)
    assert sorted(coordinator.losses) == sorted(f"lora/{number}" for number in range(16))
    for key, losses in coordinator.losses.items():
        number = int(key.partition("/")[2])
        assert losses == [1.0 / (step + number) for step in range(1, NUM_STEPS + 1)]


@pytest.mark.parametrize(("num_seats", "is_used"), [(4, True), (3, False)])
def test_a_house_that_is_ready_is_used_if_it_has_the_room_and_closed_in_any_case(
    here: Path, num_seats: int, is_used: bool
) -> None:
    ready = seats.open_house(num_seats)
    first: int = ray.get(ready.actor.__ray_call__.remote(lambda house: os.getpid()))
    counted = Counted()
    coordinator = run_tune(here, 4, counted, ready)
    assert (first in counted.houses) is is_used and len(counted.houses - {first}) == (not is_used)
    assert [len(losses) for losses in coordinator.losses.values()] == [NUM_STEPS] * 4
    deadline = time.monotonic() + 30
    while psutil.pid_exists(first) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(first)


def test_where_the_private_name_is_gone_each_trial_has_a_process_and_the_log_says_so(
    here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "PRIVATE_NAME", "_NoSuchName")
    counted = Counted()
    with caplog.at_level(logging.WARNING):
        coordinator = run_tune(here, 2, counted)
    assert (len(counted.houses), len(counted.trials)) == (0, 2)
    assert caplog.messages[:1] == [
        "this version of Ray has no _NoSuchName any more: each trial gets a process of its own"
    ]
    assert [len(losses) for losses in coordinator.losses.values()] == [NUM_STEPS] * 2


def test_the_private_name_is_there_in_the_installed_ray() -> None:
    assert callable(getattr(tune_controller, seats.PRIVATE_NAME)().get)
