"""At all rungs of a search but the last a trial is evaluated on a sample of dev; elsewhere on all of it."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch
from support.packs import run_trainer

from prefixray.batching.rows import sampled
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example, Sourced, Subset, Task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.trainer import Trainer
from prefixray.trial import Report, TrialSpec

MakeBase = Callable[[str, torch.dtype], Base]

EXAMPLES = tuple(
    Example(f"name : {name}", f"{name} is {'very ' * (number % 4)}old.") for number, name in enumerate("ABCDEFGHIJKL")
)


def _trainer(base: Base, dev: tuple[Example, ...], *others: tuple[Example, ...]) -> Trainer:
    sources = (Sourced(EXAMPLES[0].source, (EXAMPLES[0].target,)),)
    subsets = tuple(Subset(EXAMPLES, other) for other in others)
    task = Task("custom", EXAMPLES, dev, sources, sources, 1, ("bleu",), others=subsets)
    return Trainer(base, task, TaskConfig(name="custom"))


def _spec(folder: Path, key: str, *, eval_every: int | None = None, **others: object) -> TrialSpec:
    method = PrefixTrial(preseqlen=2, mid_dim=None, init_token=None)
    recipe = {"num_steps": 6, "batch_size": 2, "learning_rate": 1e-2, "eval_every": eval_every}
    config = TrialConfig(method=method, arm="prefix", **recipe)  # type: ignore[arg-type]
    spec = {"rungs": (1, 4), "folder": str(folder / key), "dev_sample": 0.25, **others}
    return TrialSpec(key, config, 1, 0, **spec)  # type: ignore[arg-type]


def _through(trainer: Trainer) -> list[Report]:
    """All reports, whatever a verdict would be."""
    reports = []
    while trainer.keys():
        reports += trainer.run()
        for key in trainer.parked():
            trainer.go_on(key)
    return reports


def test_rungs_but_the_last_see_a_sample_and_all_else_the_whole(make_base: MakeBase, tmp_path: Path) -> None:
    trainer, whole = (_trainer(make_base("gpt2", torch.float64), EXAMPLES) for _ in range(2))
    trainer.admit(_spec(tmp_path, "one"))
    whole.admit(_spec(tmp_path, "whole", dev_sample=1.0))
    first, second, end = _through(trainer)
    wanted = {report.step: report.metrics["dev/loss"] for report in _through(whole)}
    assert [report.step for report in (first, second, end)] == [1, 4, 6] == list(wanted)
    assert "dev/loss" not in first.metrics and "dev/best_loss" not in first.metrics
    assert first.loss == first.metrics["dev/sample_loss"] != pytest.approx(wanted[1], abs=1e-6)
    for report in (second, end):
        assert report.metrics["dev/loss"] == pytest.approx(wanted[report.step], abs=1e-12)
        assert "dev/sample_loss" not in report.metrics
    assert [report.packmates for report in (first, second)] == [{"one": first.loss}, {"one": second.loss}]
    assert end.earlier == {1: first.loss, 4: second.loss}


def test_the_loss_over_the_sample_is_that_of_its_rows_alone(make_base: MakeBase, tmp_path: Path) -> None:
    """Of each member, where a trial has several; a member beside it on other rows changes nothing."""
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES, EXAMPLES[:9][::-1])
    trainer.admit(_spec(tmp_path, "both", subsets=(0, 1), keep_artifact=False))
    trainer.admit(_spec(tmp_path, "whole", dev_sample=1.0))
    reports = {report.key: report for report in trainer.run()}
    rows = [dev for _, dev in trainer._subsets]
    of_members = [trainer.pack.evaluate([f"both@{n}"], sampled(rows[n], 0.25))[f"both@{n}"] for n in (0, 1)]
    assert reports["both"].loss == pytest.approx(fmean(of_members), abs=1e-12)
    assert reports["whole"].metrics["dev/loss"] == pytest.approx(
        trainer.pack.evaluate(["whole"], rows[0])["whole"], abs=1e-12
    )


def test_the_best_state_is_kept_by_the_loss_over_all_of_dev(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES)
    spec = _spec(tmp_path, "one")
    trainer.admit(spec)
    trainer.run()
    assert trainer.parked() and not spec.files.artifact.exists(), "a sample is not all of it"
    trainer.go_on("one")
    run_trainer(trainer, 3)
    assert spec.files.artifact.is_dir()


def test_where_all_of_dev_is_due_at_the_first_rung_it_is_seen(tmp_path: Path) -> None:
    assert _spec(tmp_path, "one").report_steps == {1: 0.25, 4: 1, 6: 1}
    assert _spec(tmp_path, "one", eval_every=2).report_steps == {1: 0.25, 2: 1, 4: 1, 6: 1}
    assert _spec(tmp_path, "one", eval_every=1).report_steps == dict.fromkeys(range(1, 7), 1.0)
    assert _spec(tmp_path, "one", rungs=(), eval_at=(1,)).report_steps == {1: 1, 6: 1}
    assert _spec(tmp_path, "one", rungs=(1, 3, 4)).report_steps == {1: 0.25, 3: 0.25, 4: 1, 6: 1}
    assert _spec(tmp_path, "one", rungs=(4,)).report_steps == {4: 1, 6: 1}, "a lone rung is the last"
    assert _spec(tmp_path, "one", rungs=(6,)).report_steps == {6: 1}, "the end is no rung"
