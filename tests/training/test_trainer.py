"""The loop: who is stepped, who waits at a rung, and what is reported and kept."""

import math
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.packs import run_trainer
from support.tiny_bases import MakeBase
from support.trainers import EXAMPLES, METHODS, TASK, config_of, overshooting, spec_of, tensors_of, trainer_on

from prefixray.artifacts.store import load_artifact
from prefixray.batching.rows import Row
from prefixray.config.seeds import subset_of
from prefixray.config.trials import PrefixTrial
from prefixray.data import Subset
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import checkpointed
from prefixray.system.machine import uncollected
from prefixray.training.trainer import Trainer
from prefixray.trial import Report, TrialSpec


def test_a_trial_reports_at_its_rungs_at_its_evaluations_and_at_its_end(trainer: Trainer, tmp_path: Path) -> None:
    trainer.admit(spec_of(tmp_path, "prefix/0", config_of(num_steps=7, eval_every=3), rungs=[2, 4, 9]))
    reports = run_trainer(trainer)
    assert [(r.step, r.rung, r.state) for r in reports] == [
        (2, 2, "running"),
        (3, None, "running"),
        (4, 4, "running"),
        (6, None, "running"),
        (7, None, "done"),
    ]
    assert trainer.keys() == []
    assert list(trainer.pack.members) == []


def test_reports_say_how_the_training_went(trainer: Trainer, tmp_path: Path) -> None:
    config = config_of(num_steps=4, eval_every=2, warmup_steps=2, max_grad_norm=1e-6, grad_accumulation=3)
    trainer.admit(spec_of(tmp_path, "clipped", config))
    trainer.admit(spec_of(tmp_path, "free", config_of(num_steps=4, max_grad_norm=None)))
    evaluated, clipped, free = (report.metrics for report in run_trainer(trainer))
    assert evaluated["train/learning_rate"] == pytest.approx(0.5e-2)
    assert clipped["train/learning_rate"] == pytest.approx(0.5e-2)
    assert (clipped["train/clipped_share"], free["train/clipped_share"]) == (1.0, 0.0)
    assert clipped["train/tokens"] > evaluated["train/tokens"] > free["train/tokens"] > 4 * 2
    assert 5 < clipped["train/loss"] < 15 and clipped["train/grad_norm"] > 1e-6
    assert clipped["train/seconds"] > evaluated["train/seconds"] > 0
    assert clipped["size/trained"] == clipped["size/stored"] == 2 * 2 * 4 * 3 * 8
    assert clipped["dev/best_loss"] <= min(clipped["dev/loss"], evaluated["dev/loss"])


def test_a_trial_at_a_rung_waits_while_the_others_train_on(trainer: Trainer, tmp_path: Path) -> None:
    trainer.admit(spec_of(tmp_path, "waits", config_of(), rungs=[2]))
    trainer.admit(spec_of(tmp_path, "ends", config_of(num_steps=4)))
    assert [(report.key, report.state) for _ in range(5) for report in trainer.run()] == [
        ("waits", "running"),
        ("ends", "done"),
    ]
    assert trainer.parked() == ["waits"] and trainer.steps() == {"waits": 2}
    assert trainer.run() == [] and trainer.last_tokens == 0
    trainer.go_on("waits")
    assert trainer.parked() == []
    assert [(report.step, report.state) for report in run_trainer(trainer, 4)] == [(6, "done")]


def test_a_rungs_report_carries_all_of_the_arm_that_reached_it_together(trainer: Trainer, tmp_path: Path) -> None:
    for key, arm, rate in (("a/0", "a", 1e-2), ("a/1", "a", 1e-3), ("b/0", "b", 1e-3)):
        trainer.admit(spec_of(tmp_path, key, config_of(arm=arm, learning_rate=rate), rungs=[2]))
    trainer.run()
    trainer.admit(spec_of(tmp_path, "a/late", config_of(arm="a"), rungs=[2]))
    reports = {report.key: report for report in trainer.run()}
    scores = {key: report.metrics["dev/loss"] for key, report in reports.items()}
    assert dict(reports["a/0"].packmates) == {"a/0": scores["a/0"], "a/1": scores["a/1"]} == reports["a/1"].packmates
    assert dict(reports["b/0"].packmates) == {"b/0": scores["b/0"]}


def test_the_artifact_is_of_the_best_step_not_of_the_last(trainer: Trainer, tmp_path: Path) -> None:
    config = overshooting()
    trainer.admit(spec_of(tmp_path, "prefix/0", config))
    states, scores = [], []
    while trainer.keys():
        method = trainer.pack.members["prefix/0"].method
        (report,) = trainer.run()
        states.append({name: tensor.clone() for name, tensor in method.artifact().items()})
        scores.append(report.metrics["dev/loss"])
    best = scores.index(min(scores))
    assert best == 2, "the step before the last is the best here"
    tensors, meta = load_artifact(tmp_path / "prefix/0" / "artifact")
    assert all(torch.equal(states[best][name], tensor) for name, tensor in tensors.items())
    assert meta["scores"]["dev/loss"] == scores[best] == report.metrics["dev/best_loss"]
    assert meta["config"] == config.model_dump(mode="json")
    assert meta["template"] == trainer.template.record()


def test_no_artifact_is_written_where_none_is_kept(trainer: Trainer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "prefix/0", config_of(), rungs=[2])
    trainer.admit(TrialSpec(**{**vars(spec), "keep_artifact": False}))
    assert run_trainer(trainer)[-1].state == "done"
    assert sorted(path.name for path in (tmp_path / "prefix/0").iterdir()) == ["step-2"]


def test_a_trial_whose_winner_could_not_be_decoded_is_refused(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("gpt2", torch.float32)
    method = PrefixTrial(preseqlen=130, mid_dim=None, init_token=None)
    trainer_on(base).admit(spec_of(tmp_path, "one", config_of(method)))
    trainer = Trainer(base, TASK, TaskConfig(name="custom"), max_new_tokens=120)
    message = r"^final.max_new_tokens: 120: with the longest test source \(\d+ tokens behind a prefix of 130\) beyond "
    with pytest.raises(UserError, match=message):
        trainer.admit(spec_of(tmp_path, "two", config_of(method)))
    trainer.admit(spec_of(tmp_path, "three", config_of(PrefixTrial(preseqlen=90, mid_dim=None, init_token=None))))


def test_a_trial_that_cannot_be_built_leaves_the_pack_as_it_was(make_base: MakeBase, tmp_path: Path) -> None:
    trainer, alone = (trainer_on(make_base("gpt2", torch.float64)) for _ in range(2))
    for one in (trainer, alone):
        one.admit(spec_of(tmp_path / str(id(one)), "one", config_of()))
        one.run()
    too_long = PrefixTrial(preseqlen=256, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 256: .* has 256 positions"):
        trainer.admit(spec_of(tmp_path, "too long", config_of(too_long)))
    no_room = PrefixTrial(preseqlen=230, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 230: with the longest example .* beyond the 256 positions"):
        trainer.admit(spec_of(tmp_path, "no room", config_of(no_room)))
    assert trainer.keys() == ["one"] == list(trainer.pack.members)
    trainer.run(), alone.run()
    ours, theirs = tensors_of(trainer, "one"), tensors_of(alone, "one")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_trial_whose_numbers_are_not_finite_is_reported_and_gone(trainer: Trainer, tmp_path: Path) -> None:
    for key in ("ends", "stays"):
        trainer.admit(spec_of(tmp_path, key, config_of()))
    trainer.run()
    with torch.no_grad():
        next(trainer.pack.members["ends"].method.parameters()).fill_(float("nan"))
    (ends,) = trainer.run()
    assert ends == Report("ends", 1, "failed", ends.metrics, note="loss is not finite at step 2")
    assert ends.metrics["train/tokens"] > 0 and "dev/loss" not in ends.metrics
    assert trainer.keys() == ["stays"] and trainer.steps() == {"stays": 2}
    assert [(report.key, report.state) for report in run_trainer(trainer)] == [("stays", "done")]


def test_a_dev_loss_that_is_not_finite_fails_the_trial_and_no_packmate_hears_of_it(
    make_base: MakeBase, tmp_path: Path
) -> None:
    trainer = trainer_on(make_base("gpt2", torch.float32))
    trainer.admit(spec_of(tmp_path, "mad", config_of(learning_rate=3e38), rungs=[1]))
    trainer.admit(spec_of(tmp_path, "sane", config_of(), rungs=[1]))
    mad, sane = trainer.run()
    assert mad == Report("mad", 1, "failed", mad.metrics, note="dev loss is not finite at step 1")
    assert mad.metrics["train/tokens"] > 0 and "dev/loss" not in mad.metrics
    assert list(sane.packmates) == ["sane"]
    assert trainer.keys() == ["sane"]
    assert not (tmp_path / "mad").exists()


def test_memory_that_runs_out_in_an_evaluation_is_no_divergence(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.admit(spec_of(tmp_path, "large", config_of(num_steps=2)))

    def evaluate(keys: Sequence[str], _: Sequence[Row]) -> dict[str, float]:
        trainer.pack.unfit |= set(keys)
        return dict.fromkeys(keys, math.nan)

    monkeypatch.setattr(trainer.pack, "evaluate", evaluate)
    (report,) = run_trainer(trainer)
    assert report.state == "failed" and str(report.note).startswith("out of memory alone and with one example at a")


def test_a_dropped_trial_may_come_again_and_dropping_twice_is_harmless(trainer: Trainer, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "one", config_of())
    trainer.admit(spec)
    trainer.run()
    trainer.drop("one")
    trainer.drop("one")
    assert trainer.keys() == []
    assert trainer.admit(spec) == 0


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_the_model_of_a_fine_tuning_goes_with_its_trial(
    make_base: MakeBase, tmp_path: Path, architecture: str, is_checkpointed: bool
) -> None:
    base = make_base(architecture, torch.float32)
    trainer = trainer_on(checkpointed(base) if is_checkpointed else base)
    for key, num_steps in (("dropped", 9), ("ended", 2)):
        trainer.admit(spec_of(tmp_path, key, config_of(METHODS["finetune"], num_steps=num_steps)))
    weights = [weakref.ref(p) for m in trainer.pack.members.values() for p in m.method.parameters()]
    with uncollected():
        assert [report.key for report in run_trainer(trainer, 3)] == ["ended"]
        trainer.drop("dropped")
        assert sum(weight() is not None for weight in weights) == 0


def test_replicates_differ_and_trials_of_a_replicate_do_not(trainer: Trainer, tmp_path: Path) -> None:
    for key, replicate in (("one", 0), ("same", 0), ("other", 1)):
        trainer.admit(spec_of(tmp_path, key, config_of(METHODS["network"]), replicate=replicate))
    trainer.run()
    one, same, other = (tensors_of(trainer, key) for key in ("one", "same", "other"))
    assert all((one[name] - same[name]).abs().max() < 1e-12 for name in one)
    assert any((one[name] - other[name]).abs().max() > 1e-6 for name in one)


def test_in_low_data_each_run_is_what_it_is_on_its_subset_alone(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("gpt2", torch.float64)
    subsets = [Subset(EXAMPLES[:4], EXAMPLES[4:6]), Subset(EXAMPLES[3:], EXAMPLES[:2])]
    parts = [replace(TASK, train=subset.train, dev=subset.dev) for subset in subsets]
    together = Trainer(base, replace(parts[0], others=(subsets[1],)), TaskConfig(name="custom"))
    config = config_of(num_steps=4, eval_every=2)
    for replicate in (1, 2, 3):
        subset = subset_of(replicate, len(subsets))
        together.admit(spec_of(tmp_path, f"prefix/{replicate}", config, replicate=replicate, subset=subset))
    losses: dict[str, list[float]] = {}
    for report in run_trainer(together):
        losses.setdefault(report.key, []).append(report.metrics["dev/loss"])
    for replicate, part in {1: 0, 2: 1, 3: 0}.items():
        alone = Trainer(base, parts[part], TaskConfig(name="custom"))
        alone.admit(spec_of(tmp_path / "alone", f"prefix/{replicate}", config, replicate=replicate))
        expected = [report.metrics["dev/loss"] for report in run_trainer(alone)]
        assert losses[f"prefix/{replicate}"] == pytest.approx(expected, abs=1e-9)
    assert losses["prefix/1"] != losses["prefix/3"]


def test_of_two_writers_of_one_folder_the_older_stops_and_its_packmates_go_on(
    trainer: Trainer, make_base: MakeBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, other = spec_of(tmp_path, "moved", config_of()), spec_of(tmp_path, "other", config_of(eval_every=2))
    spec.place_on("one")  # as the driver does, who makes the folder
    for each in (spec, other):
        trainer.admit(each)
    trainer.run()
    trainer.checkpoint(["moved", "other"])
    elsewhere = trainer_on(make_base("gpt2", torch.float64))
    assert elsewhere.admit(spec) == 1, "as a worker behind a partition never learns"
    trainer.checkpoint(["moved"])
    reports = run_trainer(trainer)
    assert {report.key for report in reports} == {"other"} and reports[-1].state == "done"
    assert caplog.text.count("moved is given up here: another worker has taken its folder over") == 1
    (last,) = run_trainer(elsewhere)
    assert (last.key, last.state) == ("moved", "done")


def test_a_folder_that_another_takes_over_during_an_evaluation_gets_nothing_of_it(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, "moved", config_of(eval_every=1))
    spec.place_on("one")
    trainer.admit(spec)
    evaluate = trainer.pack.evaluate

    def evaluate_for_long(keys: list[str], rows: Sequence[Row]) -> dict[str, float]:
        losses = evaluate(keys, rows)
        spec.files.claim()
        return losses

    monkeypatch.setattr(trainer.pack, "evaluate", evaluate_for_long)
    assert trainer.run() == [] and trainer.keys() == []
    assert not spec.files.artifact.exists() and spec.files.checkpoint_steps() == []


def test_a_trial_whose_folder_is_deleted_while_it_runs_fails_alone(trainer: Trainer, tmp_path: Path) -> None:
    for key in ("gone", "other"):
        spec = spec_of(tmp_path, key, config_of(eval_every=2))
        spec.place_on("one")
        trainer.admit(spec)
    trainer.run()
    shutil.rmtree(tmp_path / "gone")
    reports = run_trainer(trainer)
    failed = [report for report in reports if report.key == "gone"]
    assert [(report.state, report.note) for report in failed] == [
        ("failed", f"its folder was deleted while it ran: {tmp_path / 'gone'}")
    ]
    assert reports[-1].state == "done" and not (tmp_path / "gone").exists()
