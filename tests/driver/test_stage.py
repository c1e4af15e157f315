"""Whose turn it is to start a trial."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_pool import Driver

from prefixray.config.schema import SearchConfig, StopWhen
from prefixray.driver.stage import Stage
from prefixray.search.budget import Budget
from prefixray.search.requests import Extend
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


def _searched(driver: Driver, stop_when: StopWhen | None, losses: dict[int, float]) -> list[str]:
    """Run what is left of a search under one more driver, trial by trial; the news."""
    driver.stage = replace(driver.stage, concurrency=1, stop_when=stop_when)
    driver.coordinator = driver.coordinate(driver.stage)
    news: list[str] = []
    while started := driver.start():
        for key in started:
            assert driver.report(key, 40, losses[int(key.removeprefix("prefix/"))]) is False
        news += driver.coordinator.serve()
    return [*news, *driver.coordinator.news()]


def test_a_search_that_has_found_enough_starts_no_more_trials_and_says_so_once_for_each_driver(tmp_path: Path) -> None:
    driver = Driver(tmp_path, num_trials=12)
    losses = {0: 2.0, 1: 2.1, 2: 1.5, 3: 1.7, 4: 1.6, 5: 1.65, 6: 1.4, 7: 1.41, 8: 1.42, 9: 1.43, 10: 1.44}
    told = "prefix: search.stop_when ended the search after {} of 12 trials: "
    none_better = told + "3 trials in a row were no better than trial {} with dev/loss {}"
    for _ in range(2):  # the second time as a relaunched driver
        assert _searched(driver, StopWhen(no_better=3), losses) == [none_better.format(6, 2, 1.5)]
        assert len(driver.states()) == 6 and driver.coordinator.next() == "FINISHED"
    goal = StopWhen.model_validate({"dev/loss": 1.5})
    assert _searched(driver, goal, losses) == [told.format(6) + "trial 2 has reached dev/loss 1.5, and 1.5 is enough"]
    driver.coordinator = driver.coordinate(driver.stage)
    answer = driver.ask(Extend(num_trials=2))
    assert (answer.ok, answer.text) == (
        True,
        "prefix is extended for a run of the sweep without this search.stop_when: 6 of 14 trials started",
    )
    # A file that says something else goes on, and a new best starts the count anew.
    assert _searched(driver, StopWhen(no_better=3), losses) == [none_better.replace("12", "14").format(6, 2, 1.5)]
    assert _searched(driver, StopWhen(no_better=3 + 1), losses) == [
        (told.replace("12", "14") + "4 trials in a row were no better than trial 6 with dev/loss 1.4").format(11)
    ]
