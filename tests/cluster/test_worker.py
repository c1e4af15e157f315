"""A worker as a plain object: calls from several threads, one loop, no Ray."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.hub_cache import NAME, keep_in_cache
from support.worker_calls import SECONDS, Call, MakeWorker, hold_first_step, trial_spec, wait_until

from prefixray.artifacts.store import load_checkpoint
from prefixray.cluster.quarantine import Quarantine
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.config.schema import ArmConfig
from prefixray.config.space import Choice
from prefixray.config.trials import TrainConfig
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.trial import Admission, Report

SETTINGS = {"num_beams": 2, "max_new_tokens": 6}


def test_a_trial_joins_and_its_reports_come_one_by_one_until_it_ends(worker: Worker, tmp_path: Path) -> None:
    assert worker.join(trial_spec(tmp_path, "one", 6, eval_every=2), "token") == Admission("joined")
    reports = [Call(worker, "one").report() for _ in range(3)]
    assert [(report.step, report.state) for report in reports if report] == [
        (2, "running"),
        (4, "running"),
        (6, "done"),
    ]
    assert Call(worker, "one").report() is None


def test_a_caller_with_a_stale_token_is_sent_away(worker: Worker, tmp_path: Path) -> None:
    spec = trial_spec(tmp_path, "one", 10_000)
    worker.join(spec, "old")
    stale = Call(worker, "one", "old")
    assert stale.waits()
    worker.join(spec, "new")
    assert stale.report() is None
    assert Call(worker, "one", "old").report() is None
    assert Call(worker, "unknown").report() is None
    current = Call(worker, "one", "new")
    assert current.waits()
    worker.leave("one", has_ended=True)
    assert current.report() is None


def test_a_stopped_trial_ends_with_a_last_report_and_the_others_train_on(
    worker: Worker, tmp_path: Path, patient: None
) -> None:
    worker.stop("waits")  # not there yet
    hold_first_step(
        worker,
        [trial_spec(tmp_path, "waits", 4, 2), trial_spec(tmp_path, "runs", 10**6), trial_spec(tmp_path, "on", 4)],
    )
    assert Call(worker, "waits").report() is not None
    blocked = Call(worker, "runs")
    for key in ("waits", "waits", "runs"):
        worker.stop(key)
    last = Call(worker, "waits").report()
    assert last is not None and last.metrics["train/seconds"] > 0, "it was spent, whatever came of it"
    assert last == Report("waits", 2, "stopped", last.metrics)
    assert blocked.state() == "stopped"
    assert Call(worker, "waits").report() is Call(worker, "runs").report() is None
    assert Call(worker, "on").state() == "done"


def test_leaving_twice_is_harmless(worker: Worker, tmp_path: Path) -> None:
    worker.join(trial_spec(tmp_path, "one", 10_000), "token")
    worker.leave("one", has_ended=True)
    worker.leave("one", has_ended=True)
    assert Call(worker, "one").report() is None
    wait_until(lambda: worker.status().steps == {})


def test_suspended_trials_are_checkpointed_and_go_on_where_they_join_again(
    make_worker: MakeWorker, tmp_path: Path, patient: None
) -> None:
    worker, undisturbed = make_worker(), make_worker()
    specs = [trial_spec(tmp_path / "suspended", "rung", 9, 3), trial_spec(tmp_path / "suspended", "midway", 7)]
    hold_first_step(worker, specs)
    report = Call(worker, "rung").report()
    assert report is not None and report.rung == 3
    midway = Call(worker, "midway")
    assert midway.waits()  # since the pack waits for a verdict
    assert sorted(worker.suspend()) == ["midway", "rung"]
    assert midway.report() is None and Call(worker, "rung").report() is None
    assert [saved[0] for spec in specs if (saved := load_checkpoint(Path(spec.folder)))] == [3, 3]
    hold_first_step(worker, specs)
    again = Call(worker, "rung").report()
    assert again is not None and again.rung == 3 and again.metrics["dev/loss"] == report.metrics["dev/loss"]
    ended = {key: Call(worker, key).report() for key in ("rung", "midway")}
    hold_first_step(
        undisturbed,
        [trial_spec(tmp_path / "undisturbed", "rung", 9), trial_spec(tmp_path / "undisturbed", "midway", 7)],
    )
    for key, ours in ended.items():
        theirs = Call(undisturbed, key).report()
        assert ours is not None and theirs is not None and (ours.state, ours.step) == (theirs.state, theirs.step)
        assert ours.metrics["dev/loss"] == pytest.approx(theirs.metrics["dev/loss"], abs=1e-5)


def test_a_trial_that_cannot_be_built_is_refused_with_the_reason(worker: Worker, tmp_path: Path) -> None:
    worker.join(trial_spec(tmp_path, "one", 30), "token")
    answer = worker.join(trial_spec(tmp_path, "two", 4, preseqlen=256), "token")
    assert answer.state == "refused" and "preseqlen: 256" in (answer.note or "")
    assert Call(worker, "two").report() is None
    assert Call(worker, "one").state() == "done"


def test_ranges_that_make_no_sense_on_the_base_are_refused_all_at_once(worker: Worker) -> None:
    prefix = ArmConfig(
        name="long",
        method="prefix",
        fixed={"learning_rate": 1e-3, "mid_dim": 512, "init_token": "pub"},
        dimensions={"preseqlen": Choice(choice=[5, 250, 999]), "sites": Choice(choice=["decoder", "encoder"])},
        num_trials=4,
        train=TrainConfig(num_steps=1, precision="fp32"),
    )
    with pytest.raises(UserError) as refused:
        worker.check([prefix])
    told = "\n".join(refused.value.problems)
    assert "arms.long.preseqlen: 250: with the longest example" in told
    assert "arms.long.preseqlen: 999: " in told and "has 256 positions" in told
    assert "arms.long.sites: encoder: " in told and len(refused.value.problems) == 3
    worker.check([prefix.model_copy(update={"dimensions": {"preseqlen": Choice(choice=[5, 9])}})])


def test_an_error_in_a_call_is_its_callers_and_the_loop_goes_on(worker: Worker, tmp_path: Path) -> None:
    worker.join(trial_spec(tmp_path, "one", 30), "token")
    with pytest.raises(UserError, match="no artifact here"):
        worker.decode(str(tmp_path / "nothing"), str(tmp_path / "out"), "test", SETTINGS)
    assert Call(worker, "one").state() == "done"


def test_a_trial_without_memory_to_be_built_waits_for_the_others_and_is_refused_alone(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*given: object, **settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    worker.join(trial_spec(tmp_path, "one", 10_000), "token")
    with monkeypatch.context() as short:
        short.setattr("prefixray.training.member.build_method", build)
        assert worker.join(trial_spec(tmp_path, "two", 4), "token") == Admission("later")
        worker.leave("one", has_ended=True)
        answer = worker.join(trial_spec(tmp_path, "two", 4), "token")
    assert answer.state == "refused" and "out of memory while it is built: method prefix" in (answer.note or "")
    assert worker.join(trial_spec(tmp_path, "two", 4), "token") == Admission("joined")
    assert Call(worker, "two").state() == "done"


def test_after_a_death_those_who_were_in_the_step_come_back_in_halves(
    worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = replace(worker_setup, record=str(tmp_path / "worker-0.json"))
    specs = {key: trial_spec(tmp_path, key, 10_000, eval_every=2) for key in ("a", "b", "c")}
    with monkeypatch.context() as dying:
        dying.setattr("prefixray.training.trainer.Trainer.run", _explode)
        crashed = threading.Event()
        hold_first_step(Worker(recorded, on_crash=crashed.set), list(specs.values()))
        assert crashed.wait(SECONDS)
    worker = Worker(recorded, on_crash=lambda: None)
    status = worker.status()
    assert (status.num_deaths, status.last_death) == (1, "RuntimeError: the device is gone, in its step: a, b, c")
    assert worker.join(specs["c"], "token").state == "later"
    hold_first_step(worker, [specs["a"], specs["b"]])
    assert Call(worker, "a").report() is None, "past the step it makes room for the others"
    wait_until(lambda: worker.join(specs["c"], "token").state == "joined")
    wait_until(lambda: worker.join(specs["a"], "token").state == "joined")
    report = Call(worker, "a").report()
    assert report is not None and report.step == 2
    worker.suspend()


def test_a_worker_that_is_ended_on_purpose_checkpoints_its_trials_and_takes_none(
    worker_setup: WorkerSetup, tmp_path: Path, patient: None
) -> None:
    recorded = replace(worker_setup, record=str(tmp_path / "worker-0.json"))
    worker, spec = Worker(recorded, on_crash=lambda: None), trial_spec(tmp_path, "one", 9, 3)
    worker.join(spec, "token")
    Call(worker, "one").report()
    worker.retire()
    assert (load_checkpoint(Path(spec.folder)) or [None])[0] == 3
    assert worker.join(spec, "token") == Admission("later")
    status = Worker(recorded, on_crash=lambda: None).status()
    assert (status.num_deaths, status.last_death) == (0, None)


def test_trials_that_come_from_a_worker_that_has_died_have_their_turn_first(
    worker_setup: WorkerSetup, tmp_path: Path
) -> None:
    Quarantine(tmp_path / "worker-0.json", 3).note_running({"moved": 2})
    worker = Worker(replace(worker_setup, record=str(tmp_path / "worker-1.json")), on_crash=lambda: None)
    own, moved = trial_spec(tmp_path, "own", 10_000), trial_spec(tmp_path, "moved", 10_000)
    worker.join(own, "token")
    waiting = Call(worker, "own")
    worker.inherit(str(tmp_path / "worker-0.json"), ["moved"])
    assert waiting.report() is None, "it makes room"
    assert worker.join(own, "token") == Admission("later")
    assert worker.join(moved, "token") == Admission("joined")
    wait_until(lambda: worker.join(own, "token") == Admission("joined"))
    worker.suspend()


@pytest.mark.parametrize("error", [UserError("base: no such folder"), RuntimeError("no such device\nmore of it")])
def test_a_worker_that_cannot_load_the_base_says_why_and_has_trials_wait(
    worker_setup: WorkerSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr("prefixray.training.trainer.load_trainer", fail)
    worker = Worker(worker_setup, on_crash=lambda: None)
    with pytest.raises(UserError, match=r"^base: no such folder$|^RuntimeError: no such device$"):
        worker.ready()
    assert worker.join(trial_spec(tmp_path, "one", 9), "token") == Admission("later")
    assert worker.next_report("one", "token") is None, "its process before this one had the trial"


def test_a_worker_started_again_on_data_that_has_changed_has_trials_wait(
    worker_setup: WorkerSetup, tmp_path: Path
) -> None:
    setup, train = replace(worker_setup, record=str(tmp_path / "record.json")), tmp_path / "train.jsonl"
    began = train.read_text()
    for content, answer in ((began, "joined"), (began.replace("tea", "wine"), "later"), (began, "joined")):
        train.write_text(content)
        worker = Worker(setup, on_crash=lambda: None)
        worker.ready()
        assert worker.join(trial_spec(tmp_path, "one", 10**6), "token").state == answer
        worker.suspend()


def test_what_a_process_had_loaded_that_died_before_anybody_asked_it_binds_nobody(
    worker_setup: WorkerSetup, tmp_path: Path
) -> None:
    setup, train = replace(worker_setup, record=str(tmp_path / "record.json")), tmp_path / "train.jsonl"
    Worker(setup, on_crash=lambda: None)
    train.write_text(train.read_text().replace("tea", "wine"))
    worker = Worker(setup, on_crash=lambda: None)
    worker.ready()
    assert worker.join(trial_spec(tmp_path, "one", 10**6), "token").state == "joined"
    worker.suspend()


def test_a_worker_loads_the_commit_of_the_hub_that_it_is_told(
    worker_setup: WorkerSetup, tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(monkeypatch, tmp_path / "cache", tiny_gpt2, ["a" * 40, "b" * 40])
    setup = replace(worker_setup, base=NAME, record=str(tmp_path / "record.json"))
    assert Worker(setup, on_crash=lambda: None).ready().commit == "b" * 40
    assert Worker(replace(setup, commit="a" * 40), on_crash=lambda: None).ready().commit == "a" * 40
    (tmp_path / "cache" / "models--owner--tiny" / "refs" / "main").write_text("a" * 40)
    assert Worker(setup, on_crash=lambda: None).ready().commit == "b" * 40, "as the process in its place before"


def test_decoding_writes_three_files_and_does_nothing_twice(worker: Worker, tmp_path: Path) -> None:
    worker.join(trial_spec(tmp_path, "one", 3), "token")
    assert Call(worker, "one").state() == "done"
    artifact, out = str(tmp_path / "one" / "artifact"), tmp_path / "out"
    worker.decode(artifact, str(out), "test", SETTINGS)
    assert {path.name for path in out.iterdir()} >= {"test.hyp", "test.ref", "test.src"}
    assert (out / "test.ref").read_text() == "Aromi serves tea.\n\nThe Vaults serves tea.\n"
    first = (out / "test.hyp").read_text()
    assert len(first.splitlines()) == 2
    made_on = json.loads((out / "test.json").read_text())
    assert (made_on["device"], made_on["num_threads"]) == ("cpu", torch.get_num_threads())
    (out / "test.hyp").write_text("kept\n")
    worker.decode(artifact, str(out), "test", SETTINGS)
    assert (out / "test.hyp").read_text() == "kept\n"
    worker.decode(artifact, str(out), "test", {**SETTINGS, "num_beams": 1})
    assert (out / "test.hyp").read_text() != "kept\n"
    worker.decode("untuned", str(out / "untuned"), "dev", SETTINGS)
    assert len((out / "untuned" / "dev.hyp").read_text().splitlines()) == 2


def test_references_are_read_where_a_metric_asks_for_it_and_nothing_is_decoded_again(
    worker: Worker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    worker.decode("untuned", str(out), "test", SETTINGS, ["bleu"])
    assert {path.name for path in out.iterdir()} == {"test.hyp", "test.ref", "test.src", "test.json"}
    (out / "test.hyp").write_text("kept\n")
    worker.decode("untuned", str(out), "test", SETTINGS, ["bleu", "perplexity"])
    read = json.loads((out / "test.likelihoods.json").read_text())
    assert (out / "test.hyp").read_text() == "kept\n" and len(read["nll"]) == len(read["num_tokens"]) == 2
    (out / "test.likelihoods.json").write_text(json.dumps({**read, "nll": [0.0, 0.0]}))
    worker.decode("untuned", str(out), "test", {**SETTINGS, "num_beams": 1}, ["perplexity"])
    assert (out / "test.hyp").read_text() != "kept\n"
    assert json.loads((out / "test.likelihoods.json").read_text())["nll"] == [0.0, 0.0], "beams do not matter to it"


def test_decoding_between_two_steps_does_not_disturb_a_trial(
    make_worker: MakeWorker, tmp_path: Path, patient: None
) -> None:
    losses = []
    for decodes in (True, False):
        worker = make_worker()
        worker.join(trial_spec(tmp_path / str(decodes), "one", 6, 3), "token")
        Call(worker, "one").report()
        if decodes:
            worker.decode("untuned", str(tmp_path / "out"), "test", SETTINGS)
        report = Call(worker, "one").report()
        assert report is not None
        losses.append(report.metrics["dev/loss"])
    assert losses[0] == losses[1]


def test_a_worker_says_what_it_is_and_what_it_does(worker: Worker, tmp_path: Path, patient: None) -> None:
    facts = worker.ready()
    assert (facts.precision, facts.device, facts.num_threads) == ("fp32", "cpu", 1)
    assert worker.status().steps == {}
    worker.join(trial_spec(tmp_path, "one", 6, 3), "token")
    Call(worker, "one").report()
    wait_until(lambda: worker.status().steps == {"one": 3})
    status = worker.status()
    assert status.tokens_per_second > 0 and status.memory_bytes > 0


def _explode(trainer: object) -> list[Report]:
    raise RuntimeError("the device is gone")
