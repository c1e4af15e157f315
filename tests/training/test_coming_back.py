"""Trials that come back: from a checkpoint after a crash, to a rung, and after a pause."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.packs import run_trainer
from support.tiny_bases import MakeBase
from support.trainers import METHODS, config_of, overshooting, spec_of, trainer_on

from prefixray.artifacts.store import load_artifact, load_checkpoint
from prefixray.training import progress
from prefixray.training.trainer import Trainer
from prefixray.trial import Report


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_goes_on_from_its_checkpoint_as_if_nothing_had_been(
    make_base: MakeBase, tmp_path: Path, method: str
) -> None:
    config = config_of(METHODS[method], num_steps=12, eval_every=4, warmup_steps=3, max_grad_norm=0.5)
    undisturbed = trainer_on(make_base("gpt2", torch.float64))
    undisturbed.admit(spec_of(tmp_path / "undisturbed", "one", config, rungs=[6]))
    member = undisturbed.pack.members["one"]
    wanted = run_trainer(undisturbed)
    first = trainer_on(make_base("gpt2", torch.float64))
    spec = spec_of(tmp_path / "resumed", "one", config, rungs=[6])
    first.admit(spec)
    early = run_trainer(first, 5)
    first.checkpoint(first.keys())
    assert spec.files.costs() == first.costs("one") and spec.files.costs()["train/tokens"] > 0
    second = trainer_on(make_base("gpt2", torch.float64))
    torch.manual_seed(99)
    assert second.admit(spec) == 5
    resumed = second.pack.members["one"]
    reports = [*early, *run_trainer(second)]
    assert [report.step for report in reports] == [4, 6, 8, 12]
    for (name, theirs), ours in zip(member.method.named_parameters(), resumed.method.parameters(), strict=True):
        assert (theirs - ours).abs().max() < 1e-12, name
    train = [f"train/{name}" for name in ("loss", "grad_norm", "clipped_share", "tokens", "learning_rate")]
    for key in ("dev/loss", "dev/best_loss", *train):
        assert [r.metrics[key] for r in reports] == pytest.approx([r.metrics[key] for r in wanted], abs=1e-12), key


def test_a_worse_step_after_coming_back_does_not_replace_the_best_artifact(make_base: MakeBase, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "one", overshooting())
    first, second = (trainer_on(make_base("gpt2", torch.float64)) for _ in range(2))
    first.admit(spec)
    before = run_trainer(first, 3)[-1].metrics
    best = before["dev/loss"]
    second.admit(spec)
    again, last = run_trainer(second)
    same = ("dev/loss", "train/loss", "train/grad_norm")
    assert [again.metrics[key] for key in same] == [before[key] for key in same], "nobody may have had its report"
    assert again.step not in again.earlier, "but once"
    assert last.earlier[again.step] == best and min(last.earlier) < again.step, "and tells what came before"
    assert last.metrics["dev/loss"] > best == last.metrics["dev/best_loss"]
    assert load_artifact(tmp_path / "one" / "artifact")[1]["scores"]["dev/loss"] == best


def test_a_trial_that_comes_back_to_a_rung_reports_there_again(make_base: MakeBase, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "one", config_of(), rungs=[2])
    first, second = (trainer_on(make_base("gpt2", torch.float64)) for _ in range(2))
    first.admit(spec)
    (rung,) = run_trainer(first, 2)
    other = spec_of(tmp_path, "other", config_of(), rungs=[2])
    second.admit(other)
    assert second.admit(spec) == 2
    (again,) = second.run()
    assert (again.key, again.rung, again.metrics["dev/loss"]) == ("one", 2, rung.metrics["dev/loss"])
    assert second.parked() == ["one"] and second.steps() == {"other": 1, "one": 2}
    second.go_on("one")
    assert [(report.key, report.step) for report in run_trainer(second)] == [("other", 2), ("one", 6), ("other", 6)]


def test_a_checkpoint_is_written_at_a_report_where_it_is_small_or_the_last_is_old(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    trainer.admit(spec_of(tmp_path, "one", config_of(), rungs=[1, 3, 5]))
    run_trainer(trainer, 2)
    assert [path.name for path in folder.glob("step-*")] == ["step-1"]
    monkeypatch.setattr(progress, "SMALL_CHECKPOINT_BYTES", 0)
    run_trainer(trainer, 2)
    assert [path.name for path in folder.glob("step-*")] == ["step-1"]
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    run_trainer(trainer, 1)
    saved = load_checkpoint(folder)
    assert saved is not None and saved[0] == 5


@pytest.mark.parametrize("method", ["network", "lora"])
def test_a_trial_that_was_paused_and_resumed_ends_with_exactly_the_numbers_of_one_that_ran_through(
    make_base: MakeBase, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SMALL_CHECKPOINT_BYTES", 0)  # a trial that may pause keeps its checkpoint anyway
    config = config_of(METHODS[method], num_steps=9, warmup_steps=2)
    ended: dict[str, Report] = {}
    for name in ("through", "paused"):
        trainer = trainer_on(make_base("llama", torch.float32))
        spec = replace(spec_of(tmp_path / name, "one", config, rungs=[3, 6]), may_pause=True)
        trainer.admit(spec)
        reports = []
        for rung in (3, 6):
            reports += [report for _ in range(3) for report in trainer.run()]
            if name == "paused":
                trainer.drop("one")
                trainer.admit(spec_of(tmp_path / name, f"other {rung}", config_of(num_steps=2)))
                run_trainer(trainer, 2)  # its seat is another's meanwhile
                assert trainer.admit(replace(spec, resumed_from=rung)) == rung
            else:
                trainer.go_on("one")
        reports += run_trainer(trainer, 3)
        assert [report.step for report in reports] == [3, 6, 9], "nothing is evaluated a second time"
        ended[name] = reports[-1]
    through, paused = (
        {key: value for key, value in ended[name].metrics.items() if key != "train/seconds"} for name in ended
    )
    assert paused == through and ended["paused"].earlier == ended["through"].earlier
    tensors, others = (load_artifact(tmp_path / name / "one" / "artifact")[0] for name in ended)
    assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())
