"""Whose turn it is to start a trial."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_pool import Driver

from prefixray.config.schema import SearchConfig, StopWhen
from prefixray.driver.stage import Stage
from prefixray.results.final_run import FinalRun
from prefixray.search.budget import Budget, ended_early
from prefixray.search.fixed_study import FixedStudy
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
    (told,) = driver.coordinator.news()
    assert told.startswith("prefix: 2 of 4 trials have begun; search.max_gpu_hours: 0.00306 of ")
    ending = ended_early(driver.arm, driver.study, None, budget)
    assert ending == told, "the notes under the table say so, too"
    assert ended_early(driver.arm, driver.study, StopWhen.model_validate({"dev/loss": 99.0}), budget) != ending


def test_a_search_ends_by_its_budget_also_while_no_slot_is_free(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SearchConfig(num_trials=4, max_gpu_hours=10 / 3600))
    driver = Driver(tmp_path, budget=budget)
    first, second = driver.start()
    driver.pool.device_seconds = 11.0
    driver.coordinator.tick()
    assert driver.coordinator.next() is None and len(driver.coordinator.news()) == 1
    text = driver.ask(Extend(num_trials=2)).text
    waits = "for a run of the sweep with more hours, since those of this one are spent"
    assert text == f"prefix is extended {waits}: 2 of 6 trials started"
    assert driver.stage.is_left(may_begin=False)
    for key in (first, second):
        driver.report(key, 40)
    assert driver.coordinator.next() == "FINISHED" and not driver.stage.is_left(may_begin=False)


def test_a_search_is_left_as_long_as_a_trial_is_open_or_to_begin(driver: Driver) -> None:
    for number in range(4):
        driver.start()
        assert driver.stage.is_left(may_begin=True)
        driver.report(f"prefix/{number}", 40)
    assert not driver.stage.is_left(may_begin=True)
    more = Driver(driver.folder, num_trials=5).stage
    assert more.is_left(may_begin=True) and not more.is_left(may_begin=False)
    assert not replace(more, stop_when=StopWhen(no_better=1)).is_left(may_begin=True)


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


def _final(driver: Driver, arm: str, *, exclusive: bool = False, num_runs: int = 1) -> Stage:
    """The final stage of an arm: runs with fresh seeds."""
    method = "finetune" if exclusive else "lora"
    config = driver.arm.model_copy(update={"name": arm, "method": method, "dimensions": {}})
    trial = driver.stage.spec(Record(0, {}, "done", 1.0, {}, None)).config
    of_seeds = [FinalRun(config, trial, 0, seed, driver.folder / f"{arm}-{seed}") for seed in range(1, num_runs + 1)]
    runs = {run.item: run for run in of_seeds}

    def spec(trial: Proposal | Record) -> TrialSpec:
        run = runs[str(trial.values["item"])]
        return replace(driver.stage.spec(trial), key=run.name, folder=str(run.folder), replicate=run.replicate)

    source = FixedStudy(driver.storage, "small", f"final/{arm}", list(runs))
    return Stage(f"final/{arm}", config, source, num_runs, spec)


def test_final_runs_take_the_seats_that_a_search_leaves_and_follow_its_end(driver: Driver) -> None:
    baseline, following = _final(driver, "lora"), _final(driver, "prefix")
    asked: list[str] = []

    def then() -> Stage:
        asked.append("prefix")
        return following

    driver.stage = replace(driver.stage, then=then, num_then=1)
    driver.coordinator = driver.coordinate(baseline, driver.stage)
    assert driver.start() == ["prefix/0", "prefix/1"], "the search comes first wherever its arm stands"
    assert driver.coordinator.most_at_once() == 2
    for key in ("prefix/0", "prefix/1", "prefix/2"):
        driver.report(key, 40)
        driver.start()
    assert driver.pool.keys == {"prefix/3", "final/lora-0-1"} and not asked
    assert driver.report("prefix/3", 40) is False
    assert driver.start() == ["final/prefix-0-1"] and driver.pool.keys == {"final/lora-0-1", "final/prefix-0-1"}
    driver.run_all()
    assert asked == ["prefix"] and [record.state for record in following.source.records()] == ["done"]


def test_what_follows_may_have_to_wait_and_the_sweep_waits_for_it(driver: Driver) -> None:
    following, known = _final(driver, "prefix"), False
    driver.stage = replace(driver.stage, then=lambda: following, num_then=1, may_follow=lambda: known)
    driver.coordinator = driver.coordinate(driver.stage)
    for _ in range(2):
        for key in driver.start():
            driver.report(key, 40)
    assert driver.coordinator.next() is None and driver.states() == ["done"] * 4, "nothing runs, but it is not over"
    known = True
    assert driver.start() == ["final/prefix-0-1"]
    driver.report("final/prefix-0-1", 40)
    assert driver.coordinator.next() == "FINISHED"


def test_the_next_driver_takes_over_final_runs_beside_a_search_and_behind_it(driver: Driver) -> None:
    def take_over(driver: Driver) -> list[str]:
        again = Driver(driver.folder)
        stage = replace(again.stage, then=lambda: _final(again, "prefix"), num_then=1)
        again.coordinator, driver.pool = again.coordinate(stage, _final(again, "lora")), again.pool
        driver.coordinator = again.coordinator
        return again.start()

    assert take_over(driver) == ["prefix/0", "prefix/1"]
    for key in ("prefix/0", "prefix/1", "prefix/2"):
        driver.report(key, 40)
        driver.start()
    assert take_over(driver) == ["prefix/3", "final/lora-0-1"], "both ran when the driver was killed"
    driver.report("prefix/3", 40)
    assert driver.start() == ["final/prefix-0-1"]
    driver.report("final/lora-0-1", 40)
    assert take_over(driver) == ["final/prefix-0-1"], "the search has ended already"
    assert driver.report("final/prefix-0-1", 40) is False
    assert driver.coordinator.next() == "FINISHED" and take_over(driver) == []
    assert driver.coordinator.next() == "FINISHED"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_final_run_that_needs_a_worker_alone_begins_at_half_time_where_another_worker_goes_on(
    driver: Driver, num_workers: int
) -> None:
    driver.pool.num_ready = num_workers
    alone, sharing = _final(driver, "finetune", exclusive=True), _final(driver, "lora")
    driver.coordinator = driver.coordinate(driver.stage, sharing, alone)
    starts: list[list[str]] = []
    while started := driver.start():  # on the one worker that is played
        starts.append(started)
        for key in started:
            driver.report(key, 40)
    searched = [["prefix/0", "prefix/1"], ["prefix/2", "prefix/3"]]
    finals = [["final/finetune-0-1"], ["final/lora-0-1"]]
    assert starts == ([*searched, *finals] if num_workers == 1 else [searched[0], finals[0], searched[1], finals[1]])


def test_final_runs_that_need_a_worker_alone_leave_one_to_the_search(driver: Driver) -> None:
    driver.pool.num_ready = 2
    driver.coordinator = driver.coordinate(driver.stage, _final(driver, "finetune", exclusive=True, num_runs=2))
    for key in driver.start():
        driver.report(key, 40)
    assert driver.start() == ["final/finetune-0-1"]
    driver.coordinator.next()
    assert not driver.pool.is_spared, "the other worker is the search's"
    driver.report("final/finetune-0-1", 40)
    assert driver.start() == ["final/finetune-0-2"], "one after the other"


def test_a_search_goes_on_where_a_trial_that_still_ran_is_the_new_best(tmp_path: Path) -> None:
    driver = Driver(tmp_path, num_trials=9)
    following = _final(driver, "prefix")
    driver.stage = replace(driver.stage, stop_when=StopWhen(no_better=2), then=lambda: following, num_then=1)
    driver.coordinator = driver.coordinate(driver.stage)
    assert driver.start() == ["prefix/0", "prefix/1"], "two at once"
    for number, loss in enumerate((2.0, 2.1, 2.2)):
        driver.report(f"prefix/{number}", 40, loss)
        assert driver.start() == ([f"prefix/{number + 2}"] if number < 2 else []), "the third was no better"
    assert "ended the search after 4 of 9 trials" in driver.coordinator.news()[0]
    driver.report("prefix/3", 40, 1.5)
    assert driver.start() == ["prefix/4", "prefix/5"], "none since has been worse"
    for number in (4, 5):
        driver.report(f"prefix/{number}", 40, 1.9)
    assert driver.start() == ["final/prefix-0-1"]
    assert "ended the search after 6 of 9 trials" in driver.coordinator.news()[0], "it is told anew"


def test_a_spent_budget_ends_searches_and_no_final_run(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SearchConfig(num_trials=4, max_gpu_hours=10 / 3600))
    driver = Driver(tmp_path, budget=budget)
    driver.coordinator = driver.coordinate(driver.stage, _final(driver, "lora"), budget=budget)
    running = driver.start()
    driver.pool.device_seconds = 11.0
    driver.coordinator.tick()
    for key in running:
        driver.report(key, 40)
    assert driver.start() == ["final/lora-0-1"] and driver.states() == ["done", "done"]
    driver.pool.device_seconds = 90.0
    driver.coordinator.tick()
    assert ": 0.00306 of" in (budget.problem() or ""), "what final runs take is not the search's"


def test_a_worker_decodes_where_no_trial_could_begin(driver: Driver) -> None:
    driver.coordinator.tick()
    assert driver.pool.calls[-1] == "use_idle later", "a trial is about to come"
    driver.start()
    driver.coordinator.tick()
    assert driver.pool.calls[-1] == "use_idle"
