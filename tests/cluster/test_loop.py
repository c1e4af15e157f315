"""The training loop: what the pack waits for between two steps, and what the loop does without work and in trouble."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.worker_calls import MOMENT, SECONDS, Call, MakeWorker, hold_first_step, trial_spec, wait_until

from prefixray.cluster import loop as loop_module
from prefixray.cluster.quarantine import JOINING, Quarantine
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.trial import Admission, Report

LONG_STEP = 3.0  # seconds; the pack waits no longer for who comes in a trial's place


def test_a_trial_at_a_rung_waits_until_its_caller_comes_back(worker: Worker, tmp_path: Path, patient: None) -> None:
    worker.join(trial_spec(tmp_path, "one", 4, 2), "token")
    report = Call(worker, "one").report()
    assert report is not None and (report.rung, report.packmates) == (2, {"one": report.metrics["dev/loss"]})
    time.sleep(MOMENT)
    assert worker.status().steps == {"one": 2}
    assert Call(worker, "one").state() == "done"


def test_only_steps_of_trials_are_counted_as_steps(worker: Worker, tmp_path: Path) -> None:
    worker._loop.call(bool)
    time.sleep(MOMENT)
    assert worker.status().stepping == 0.0, "a job alone, such as a decoding, is none"
    worker.join(trial_spec(tmp_path, "one", 2), "token")
    assert Call(worker, "one").state() == "done" and worker.status().stepping > 0.0


def test_the_pack_waits_for_all_verdicts_of_a_rung(worker: Worker, tmp_path: Path, patient: None) -> None:
    hold_first_step(worker, [trial_spec(tmp_path, key, 4, 2) for key in ("goes on", "stops")])
    first = [Call(worker, key).report() for key in ("goes on", "stops")]
    assert [len(report.packmates) for report in first if report] == [2, 2]
    going_on = Call(worker, "goes on")
    assert going_on.waits()
    worker.leave("stops", has_ended=True)
    assert going_on.state() == "done"
    assert Call(worker, "stops").report() is None


def test_the_others_train_on_when_a_verdict_does_not_come(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "VERDICT_SECONDS", 1.0)
    hold_first_step(worker, [trial_spec(tmp_path, "waits", 4, 2), trial_spec(tmp_path, "trains on", 40)])
    report = Call(worker, "waits").report()
    started = time.monotonic()
    assert report is not None and report.rung == 2
    assert Call(worker, "trains on").state() == "done"
    assert time.monotonic() - started < 20, "the pack waits once, not before every step"
    assert worker.status().steps["waits"] == 2
    assert Call(worker, "waits").state() == "done"


def test_a_trial_may_join_while_the_pack_waits_for_a_verdict(worker: Worker, tmp_path: Path, patient: None) -> None:
    worker.join(trial_spec(tmp_path, "first", 4, 2), "token")
    Call(worker, "first").report()
    assert worker.join(trial_spec(tmp_path, "second", 3), "token") == Admission("joined")
    assert Call(worker, "first").state() == "done"
    assert Call(worker, "second").state() == "done"


def test_the_pack_waits_a_moment_for_who_comes_in_a_trials_place(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, together = worker._trainer.run, []

    def slow_run() -> list[Report]:
        together.append(worker._trainer.keys())
        if len(together) == 1:
            time.sleep(LONG_STEP)
        return run()

    monkeypatch.setattr(loop_module, "NEWCOMER_SECONDS", LONG_STEP)
    monkeypatch.setattr(worker._trainer, "run", slow_run)
    hold_first_step(worker, [trial_spec(tmp_path, "ends", 1), trial_spec(tmp_path, "stays", 5)])
    assert Call(worker, "ends").state() == "done"
    time.sleep(MOMENT / 2)
    worker.join(trial_spec(tmp_path, "comes", 1), "token")
    assert Call(worker, "stays").state() == "done"
    assert together == [["ends", "stays"], ["stays", "comes"], *[["stays"]] * 3]


def test_places_that_trials_leave_at_a_rung_are_kept_while_verdicts_come(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    run, together = worker._trainer.run, []

    def slow_run() -> list[Report]:
        together.append(sorted(set(worker._trainer.keys()) - set(worker._trainer.parked())))
        if len(together) == 1:
            time.sleep(LONG_STEP)
        return run()

    monkeypatch.setattr(loop_module, "NEWCOMER_SECONDS", LONG_STEP)
    monkeypatch.setattr(worker._trainer, "run", slow_run)
    hold_first_step(worker, [trial_spec(tmp_path, key, 2, 1) for key in ("a", "b", "c")])
    for key in ("a", "b", "c"):
        assert Call(worker, key).report() is not None
    worker.leave("a", has_ended=True)
    worker.leave("b", has_ended=True)
    worker.join(trial_spec(tmp_path, "x", 1), "token")
    going_on = Call(worker, "c")
    time.sleep(MOMENT / 2)
    worker.join(trial_spec(tmp_path, "y", 1), "token")
    assert going_on.state() == "done"
    assert together == [["a", "b", "c"], ["c", "x", "y"]]


def test_an_error_in_the_loop_ends_the_process(
    worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crashed = threading.Event()
    worker = Worker(worker_setup, on_crash=crashed.set)
    monkeypatch.setattr("prefixray.training.trainer.Trainer.run", _explode)
    worker.join(trial_spec(tmp_path, "one", 5), "token")
    assert crashed.wait(SECONDS)
    assert "the device is gone" in caplog.text


@pytest.mark.parametrize("job", ["join", "decode"])
def test_a_device_that_fails_in_a_job_ends_the_process_which_notes_the_trial_that_joined(
    worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    def fail(*given: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("prefixray.training.trainer.Trainer.admit", fail)
    monkeypatch.setattr("prefixray.decoding.evaluate.decode_for_sweep", fail)
    record, crashed = tmp_path / "worker-0.json", threading.Event()
    worker = Worker(replace(worker_setup, record=str(record)), on_crash=crashed.set)
    given = (trial_spec(tmp_path, "one", 5), "token") if job == "join" else ("untuned", str(tmp_path), "test", {})
    call = threading.Thread(target=getattr(worker, job), args=given, daemon=True)
    call.start()
    assert crashed.wait(SECONDS)
    call.join(MOMENT)
    assert call.is_alive(), "it is not answered: Ray tells the caller that the process has ended"
    left = json.loads(record.read_text().splitlines()[0])
    assert left["running"] == ({"one": JOINING} if job == "join" else {})
    assert left["cause"].startswith("AcceleratorError: CUDA error: an illegal")


def test_where_nothing_can_be_written_trials_are_lost_and_not_failed(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "two").write_text("a file in the way")
    hold_first_step(worker, [trial_spec(tmp_path, "one", 10_000), trial_spec(tmp_path, "two", 10_000, eval_every=2)])
    reports = [Call(worker, key).report() for key in ("one", "two")]
    for report in reports:
        assert report is not None and report.lost
        assert str(tmp_path / "two") in (report.note or "") and "run the same command again" in (report.note or "")
    (tmp_path / "two").unlink()
    worker.join(trial_spec(tmp_path, "two", 4), "token")
    assert Call(worker, "two").state() == "done"


def test_a_loop_without_work_is_not_silent_and_one_that_hangs_is(
    worker_setup: WorkerSetup, worker: Worker, tmp_path: Path
) -> None:
    time.sleep(MOMENT)
    assert worker.status().seconds_silent == 0.0
    holding, released = threading.Event(), threading.Event()
    threading.Thread(
        target=worker._loop.call, args=(lambda: (holding.set(), released.wait(SECONDS)),), daemon=True
    ).start()
    assert holding.wait(SECONDS)
    time.sleep(MOMENT)
    assert worker.status().seconds_silent >= MOMENT
    released.set()
    wait_until(lambda: worker.status().seconds_silent == 0.0)


def test_a_worker_without_work_gives_back_what_it_has_freed_once_and_not_between_two_trials(
    make_worker: MakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []  # those of earlier tests' workers may give back, too
    monkeypatch.setattr(loop_module, "give_back", lambda: threads.append(threading.get_ident()))
    monkeypatch.setattr(loop_module, "IDLE_SECONDS", SECONDS)
    worker = make_worker()
    for key in ("one", "two"):
        worker.join(trial_spec(tmp_path, key, 1), "token")
        assert Call(worker, key).state() == "done"
    own = worker._loop.call(threading.get_ident)
    assert own not in threads
    wait_until(lambda: worker._loop._busy_since is None)
    with worker._loop._changed:  # the loop waits already, for SECONDS
        monkeypatch.setattr(loop_module, "IDLE_SECONDS", MOMENT)
    worker.leave("two", has_ended=True)  # wakes it
    wait_until(lambda: own in threads)
    time.sleep(2 * MOMENT)
    assert threads.count(own) == 1


def _explode(trainer: object) -> list[Report]:
    raise RuntimeError("the device is gone")


def test_a_write_that_failed_because_another_worker_writes_there_costs_the_packmates_no_trial(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, other = trial_spec(tmp_path, "moved", 10_000, 2), trial_spec(tmp_path, "other", 10_000, 2)
    moved.place_on("worker")
    hold_first_step(worker, [moved, other])
    assert all(Call(worker, key).report() for key in ("moved", "other"))
    moved.files.claim()
    run = worker._trainer.run

    def collide() -> list[Report]:
        monkeypatch.setattr(worker._trainer, "run", run)
        raise OSError(39, "Directory not empty", "step-3")

    monkeypatch.setattr(worker._trainer, "run", collide)
    assert [Call(worker, key).report() for key in ("moved", "other")] == [None, None], "their seats join anew"
    assert worker.join(other, "token") == Admission("joined")
    report = Call(worker, "other").report()
    assert report is not None and (report.state, report.step) == ("running", 2), "it comes from its checkpoint"


def test_a_file_system_that_has_gone_loses_its_trials_and_fails_none(worker: Worker, tmp_path: Path) -> None:
    there = tmp_path / "mounted"
    specs = [trial_spec(there, key, 10_000, 2) for key in ("one", "two")]
    for spec in specs:
        spec.place_on("worker")
    hold_first_step(worker, specs)
    worker._loop.call(there.rename, tmp_path / "elsewhere")  # between two steps
    for key in ("one", "two"):
        while (report := Call(worker, key).report()) is not None and report.state == "running":
            pass  # from before
        assert report is not None and report.state == "failed" and report.lost
        assert report.note is not None and report.note.startswith(f"{there}: No such file or directory; ")
    assert not there.exists()


def test_a_trial_that_is_handed_over_goes_on_on_the_other_worker_with_the_numbers_of_one_that_stayed(
    make_worker: MakeWorker, tmp_path: Path
) -> None:
    source, target = make_worker(), make_worker()
    alone = trial_spec(tmp_path / "alone", "moved", 60)
    source.join(alone, "token")
    expected = Call(source, "moved").report()
    moved, stays = trial_spec(tmp_path, "moved", 60), trial_spec(tmp_path, "stays", 10_000)
    hold_first_step(source, [moved, stays])
    seat = Call(source, "moved")
    wait_until(lambda: source.status().steps.get("moved", 0) > 2)
    assert source.hand_over(moved, "worker-1")
    assert seat.report() is None and moved.placed_on() == "worker-1"
    assert 2 < moved.files.checkpoint_steps()[0] < 60
    assert source._loop.call(source._trainer.keys) == ["stays"]
    target.join(moved, "token")
    report = Call(target, "moved").report()
    assert report is not None and expected is not None
    timeless = {key: value for key, value in report.metrics.items() if key != "train/seconds"}
    assert timeless == {key: expected.metrics[key] for key in timeless}
    source.suspend()


def test_a_trial_stays_whose_report_waits_or_whose_folder_is_not_its_own(
    worker: Worker, tmp_path: Path, patient: None
) -> None:
    reported, deleted = trial_spec(tmp_path, "reported", 10_000, eval_every=2), trial_spec(tmp_path, "deleted", 10_000)
    for spec in (reported, deleted):
        spec.place_on("worker-0")
    hold_first_step(worker, [reported, deleted])
    wait_until(lambda: worker.status().steps.get("reported", 0) > 2)
    assert not any(worker.hand_over(reported, "worker-1") for _ in range(10)), "its seat has not fetched it"
    shutil.rmtree(tmp_path / "deleted")
    assert not worker.hand_over(deleted, "worker-1") and not (tmp_path / "deleted").exists()
    worker.suspend()


def test_a_trial_stays_that_owes_a_report_or_is_suspected_or_has_not_come(
    worker_setup: WorkerSetup, tmp_path: Path, patient: None
) -> None:
    recorded = replace(worker_setup, record=str(tmp_path / "worker-0.json"))
    Quarantine(tmp_path / "worker-0.json", 3).note_running({"suspected": 10_000})
    worker = Worker(recorded, on_crash=lambda: None)
    at_rung, suspected = trial_spec(tmp_path, "at rung", 4, 2), trial_spec(tmp_path, "suspected", 10_000)
    worker.join(suspected, "token")
    wait_until(lambda: worker.status().steps.get("suspected", 0) > 0)
    assert not worker.hand_over(suspected, "worker-1")
    worker.leave("suspected", has_ended=True)
    assert worker.join(at_rung, "token") == Admission("joined")
    assert Call(worker, "at rung").report() is not None
    assert not worker.hand_over(at_rung, "worker-1")
    assert not worker.hand_over(trial_spec(tmp_path, "elsewhere", 4), "worker-1")
    assert not (tmp_path / "elsewhere").exists() and Call(worker, "at rung").state() == "done"
