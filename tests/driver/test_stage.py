"""Whose turn it is to start a trial."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_pool import Driver

from prefixray.config.schema import SearchConfig
from prefixray.driver.stage import Stage
from prefixray.search.budget import Budget
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record
from prefixray.trial import TrialSpec


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_no_trial_starts_once_devices_were_held_for_as_long_as_was_allowed(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SearchConfig(num_trials=4, max_gpu_hours=10 / 3600))
    driver = Driver(tmp_path, budget=budget)
    running = driver.start()
    assert len(running) == 2
    driver.pool.device_seconds = 11.0
    driver.coordinator.tick()
    for key in running:
        driver.report(key, 40)
    assert driver.coordinator.next() == "FINISHED" and driver.states() == ["done", "done"]


@pytest.mark.parametrize("is_first", [False, True])
def test_trials_that_need_a_worker_alone_come_at_half_time_wherever_their_arm_stands(
    driver: Driver, is_first: bool
) -> None:
    sharing = driver.stage
    arm = driver.arm.model_copy(update={"name": "finetune", "method": "finetune", "num_trials": 2})
    study = ArmStudy(driver.storage, "small", arm, seed=1, num_startup=1)

    def spec(trial: Proposal | Record) -> TrialSpec:
        folder = str(driver.folder / "trials" / "finetune" / str(trial.number))
        return replace(sharing.spec(trial), key=f"finetune/{trial.number}", folder=folder)

    alone = Stage("finetune", arm, study, 1, spec)
    driver.coordinator = driver.coordinate(*([alone, sharing] if is_first else [sharing, alone]))
    starts: list[list[str]] = []
    while started := driver.start():
        starts.append(started)
        for key in started:
            driver.report(key, 40)
    halves = [["prefix/0", "prefix/1"], ["finetune/0"]], [["prefix/2", "prefix/3"], ["finetune/1"]]
    assert starts == [*halves[0], *halves[1]]
