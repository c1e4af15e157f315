"""The coordinator: which trial starts when, which goes on, what an earlier driver has left, and what ends a sweep.

Pool and reports are played here; `tests/test_sweep.py` has a real sweep.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_pool import Driver

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.fleet import NoWorkers
from prefixray.config.schema import SearchConfig
from prefixray.config.trials import PrefixTrial
from prefixray.errors import SweepFailed
from prefixray.search.budget import Budget
from prefixray.search.requests import Stop
from prefixray.search.trial_source import Proposal, Record
from prefixray.tracking.tracker import Tracker
from prefixray.trial import Report, TrialFolder, TrialSpec, WorkerStatus


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def journal(folder: Path) -> bytes:
    return (folder / "study.journal").read_bytes()


def test_a_picture_changes_nothing_and_a_tick_does_all_that_recurs(tmp_path: Path) -> None:
    budget = Budget(tmp_path, SearchConfig(num_trials=4, max_gpu_hours=10 / 3600))
    driver = Driver(tmp_path, budget=budget)
    coordinator, pool = driver.coordinator, driver.pool
    driver.start()
    driver.report("prefix/0", 5, loss=2.25)
    driver.ask(Stop(trial="prefix/1"))
    pool.statuses = [WorkerStatus({"prefix/0": 7}, tokens_per_second=40.0, memory_bytes=2**30)]
    pool.device_seconds = 11.0
    pool.calls.clear()
    before = journal(tmp_path)
    pictures = [coordinator.view("small", "search") for _ in range(10)]
    assert pool.calls == [] and journal(tmp_path) == before and budget.problem() is None
    assert all((p.rows, p.tokens_per_second, p.workers) == (pictures[0].rows, 0.0, "") for p in pictures)
    assert [row.step for row in pictures[0].rows] == [5, 0]
    coordinator.tick()
    assert pool.calls == ["status", "rescale 2 0", "use_idle", "stop prefix/1"]
    assert "search.max_gpu_hours" in (budget.problem() or "")
    picture = coordinator.view("small", "search")
    assert [row.step for row in picture.rows] == [7, 0]
    assert (picture.tokens_per_second, picture.workers) == (40.0, "1 workers x 2 slots, 1.0 GiB")


def test_a_trial_that_falls_back_behind_a_rung_it_has_passed_is_not_judged_there_again(driver: Driver) -> None:
    early, later = driver.start()
    assert driver.report(early, 10, loss=2.0, rung=10), "it is the first there"
    assert driver.report(later, 10, loss=1.9, rung=10)
    assert driver.report(early, 10, loss=2.0, rung=10), "its worker died, and it comes from an older checkpoint"
    driver.report(early, 20, loss=1.0)
    again = Driver(driver.folder)
    assert again.start() == [early, later]
    assert again.report(early, 10, loss=2.0, rung=10)
    assert again.report(later, 10, loss=1.9, rung=10), "the best of two"
    assert again.report(early, 40, loss=0.9) is False and again.states() == ["done", "running"]


def test_a_trial_that_is_done_waits_for_an_idle_worker_to_decode_it_and_a_failed_one_does_not(driver: Driver) -> None:
    stage = replace(driver.stage, decode=lambda spec: DecodeJob(spec.key, spec.folder, "test", {}))
    driver.coordinator = driver.coordinate(stage)
    done, failed = driver.start()
    driver.report(done, 5)
    assert driver.pool.decodings == [], "it has not ended"
    driver.report(done, 40)
    driver.coordinator.on_report(Report(failed, 7, "failed", {}, note="out of memory"))
    assert [job.model for job in driver.pool.decodings] == [done]


def test_a_step_that_is_reported_again_is_logged_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, int]] = []
    monkeypatch.setattr(Tracker, "log", lambda self, key, step, metrics: logged.append((key, step)))
    first, _ = driver.start()
    for step in (5, 10, 5, 10, 15):
        driver.report(first, step, loss=2.0)
    assert logged == [(first, 5), (first, 10), (first, 15)]


def test_the_next_driver_logs_each_step_of_a_trial_that_has_ended_once_and_its_best_loss(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = driver.start()
    driver.report(first, 10, loss=2.0)
    driver.report(first, 40, loss=1.5)
    logged: list[tuple[str, int, bool]] = []
    monkeypatch.setattr(
        Tracker, "log", lambda self, key, step, metrics: logged.append((key, step, "dev/best_loss" in metrics))
    )
    Driver(driver.folder)
    assert logged == [(first, 10, False), (first, 40, True)]


def test_checkpoints_of_a_trial_that_ended_go_with_the_next_driver_where_the_first_was_killed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, running = driver.start()
    monkeypatch.setattr(TrialFolder, "delete_checkpoints", lambda folder: None)
    driver.report(ended, 40)
    monkeypatch.undo()
    for key in (ended, running):
        for name in ("step-40", ".step-40.0.tmp", "artifact"):
            (driver.folder / "trials" / key / name).mkdir(parents=True)
    Driver(driver.folder)
    left = {key: {path.name for path in (driver.folder / "trials" / key).iterdir()} for key in (ended, running)}
    assert left == {ended: {"artifact", "result.json"}, running: {"artifact", "step-40", ".step-40.0.tmp"}}


def test_a_new_trial_does_not_start_from_what_lies_in_its_folder_though_an_adopted_one_does(driver: Driver) -> None:
    """A folder that was copied while its sweep ran may have trials of which its journal knows nothing yet."""
    for number in range(3):
        (driver.folder / f"trials/prefix/{number}/step-30").mkdir(parents=True)
        (driver.folder / f"trials/prefix/{number}/result.json").write_text("{}")
    first, second = driver.start()
    assert not any((driver.folder / "trials" / key).exists() for key in (first, second))
    (driver.folder / "trials" / first / "step-20").mkdir(parents=True)
    again = Driver(driver.folder)
    assert again.start() == [first, second]
    assert TrialFolder(driver.folder / "trials" / first).checkpoint_steps() == [20]


def test_a_trial_whose_values_do_not_go_together_has_failed_and_the_next_is_started(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    stage = driver.stage

    def spec(trial: Proposal | Record) -> TrialSpec:
        if trial.number == 0:
            PrefixTrial(preseqlen=0, mid_dim=None, init_token=None)
        return stage.spec(trial)

    driver.coordinator = driver.coordinate(replace(stage, spec=spec))
    assert driver.start() == ["prefix/1", "prefix/2"]
    record = driver.study.records()[0]
    assert record.state == "failed" and record.note == "its values do not go together: Input should be greater than 0"
    assert record.note in caplog.text and '"preseqlen": ' in caplog.text
    assert driver.coordinator.view("small", "search").rows[0].state == "failed"


def test_a_disk_that_refused_once_lets_nothing_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path)
    full = OSError(28, "No space left on device")

    def refuse(spec: TrialSpec, *, exclusive: bool) -> str:
        raise full

    monkeypatch.setattr(driver.pool, "place", refuse)
    with pytest.raises(OSError):
        driver.coordinator.next()
    for go_on in (driver.coordinator.next, driver.coordinator.serve, lambda: driver.report("prefix/0", 10)):
        with pytest.raises(SweepFailed, match="No space left"):
            go_on()


def test_where_no_worker_is_left_nothing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path)

    def refuse(num_sharing: int, num_exclusive: int) -> None:
        raise NoWorkers("no worker is left", "base: no such folder")

    monkeypatch.setattr(driver.pool, "rescale", refuse)
    with pytest.raises(NoWorkers):
        driver.coordinator.tick()
    assert driver.coordinator.broken == "no worker is left\nbase: no such folder"


def test_a_cluster_that_does_not_answer_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(tmp_path)

    def refuse(num_sharing: int, num_exclusive: int) -> None:
        raise ConnectionError("no control service")

    monkeypatch.setattr(driver.pool, "rescale", refuse)
    with pytest.raises(ConnectionError):
        driver.coordinator.tick()
    assert driver.coordinator.broken is None and driver.start() == ["prefix/0", "prefix/1"]


def test_when_tune_has_fallen_over_it_gets_the_trials_that_ran_again_and_no_other_starts_twice(driver: Driver) -> None:
    ended, running = driver.start()
    driver.report(ended, 40)
    (third,) = driver.start()
    before = driver.study.records()
    driver.pool.calls.clear()
    driver.coordinator.start_again()
    assert driver.pool.calls == ["suspend"]
    assert driver.start() == [running, third]
    assert driver.study.records() == before and driver.pool.keys == {running, third}
    assert driver.report(running, 10, loss=2.0, rung=10)
    driver.run_all()
    assert driver.states() == ["done"] * 4
