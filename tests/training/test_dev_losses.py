"""At rungs a trial of a search is evaluated on a sample of dev; where it is due, on the rest as well."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.packs import run_trainer

from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example, Sourced, Subset, Task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.dev_losses import DevLosses
from prefixray.training.trainer import Trainer
from prefixray.trial import Report, TrialSpec, by_step

MakeBase = Callable[[str, torch.dtype], Base]

LOSSES = ("dev/loss", "dev/sample_loss")
EXAMPLES = tuple(
    Example(f"name : {name}", f"{name} is {'very ' * (n % 4)}old.") for n, name in enumerate("ABCDEFGHIJKL")
)


def _trainer(base: Base, dev: tuple[Example, ...], *others: tuple[Example, ...]) -> Trainer:
    sources = (Sourced(EXAMPLES[0].source, (EXAMPLES[0].target,)),)
    subsets = tuple(Subset(EXAMPLES, other) for other in others)
    task = Task("custom", EXAMPLES, dev, sources, sources, 1, ("bleu",), others=subsets)
    return Trainer(base, task, TaskConfig(name="custom"))


def _spec(folder: Path, key: str, **others: object) -> TrialSpec:
    method = PrefixTrial(preseqlen=2, mid_dim=None, init_token=None)
    config = TrialConfig(method=method, arm="prefix", num_steps=6, batch_size=2, learning_rate=1e-2, eval_every=4)
    spec = {"rungs": (1, 4, 5), "folder": str(folder / key), "dev_sample": 0.25, "may_pause": True, **others}
    return TrialSpec(key, config, 1, 0, **spec)  # type: ignore[arg-type]


def _through(trainer: Trainer) -> list[Report]:
    """All reports, whatever a verdict would be."""
    reports = []
    while trainer.keys():
        reports += trainer.run()
        for key in trainer.parked():
            trainer.go_on(key)
    return reports


def test_a_rung_sees_a_sample_and_the_rest_is_run_where_all_of_dev_is_due(make_base: MakeBase, tmp_path: Path) -> None:
    trainer, whole = (_trainer(make_base("gpt2", torch.float64), EXAMPLES) for _ in range(2))
    trainer.admit(_spec(tmp_path, "one"))
    whole.admit(_spec(tmp_path, "whole", dev_sample=1.0))
    first, second, third, end = _through(trainer)
    wanted = {report.step: report.metrics for report in _through(whole)}
    assert [report.step for report in (first, second, third, end)] == [1, 4, 5, 6] == list(wanted)
    for report in (first, third):
        assert "dev/loss" not in report.metrics and report.metrics["dev/sample_loss"] != wanted[report.step]["dev/loss"]
    for report in (second, end):
        assert report.metrics["dev/loss"] == pytest.approx(wanted[report.step]["dev/loss"], abs=1e-12)
        assert report.metrics["dev/sample_loss"] != report.metrics["dev/loss"]
    assert "dev/best_loss" not in first.metrics and third.metrics["dev/best_loss"] == second.metrics["dev/loss"]
    assert [report.packmates for report in (first, second)] == [{"one": first.loss}, {"one": second.loss}]
    assert all(report.loss == report.metrics["dev/sample_loss"] for report in (first, second, third, end))
    assert end.earlier == {r.step: {k: v for k, v in r.metrics.items() if k in LOSSES} for r in (first, second, third)}


def test_the_best_state_is_kept_by_the_loss_over_all_of_dev(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES)
    spec = _spec(tmp_path, "one")
    trainer.admit(spec)
    trainer.run()
    assert trainer.parked() and not spec.files.artifact.exists(), "a rung has not seen all of it"
    trainer.go_on("one")
    run_trainer(trainer, 3)
    assert spec.files.artifact.is_dir()


def test_the_loss_over_the_sample_is_that_of_its_rows_alone(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES)
    rows = trainer._subsets[0][1]
    trainer.admit(_spec(tmp_path, "one", dev_sample=2 / 3))
    (report,) = trainer.run()
    eight = [rows[number] for number in (0, 1, 3, 4, 6, 7, 9, 10)]
    assert report.loss == pytest.approx(trainer.pack.evaluate(["one"], eight)["one"], abs=1e-12)


def test_where_dev_is_small_the_sample_is_all_of_it(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES[:8])
    trainer.admit(_spec(tmp_path, "one", dev_sample=0.25))
    (report,) = trainer.run()
    assert report.metrics["dev/loss"] == report.metrics["dev/sample_loss"] == report.metrics["dev/best_loss"]


def test_members_on_several_subsets_have_a_sample_of_each(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("gpt2", torch.float64), EXAMPLES, EXAMPLES[:9][::-1])
    trainer.admit(_spec(tmp_path, "one", subsets=(0, 1), keep_artifact=False))
    parts = [rows for _, rows in trainer._subsets]
    (report,) = trainer.run()
    of_each = DevLosses(trainer.pack, parts).of(list(trainer._trials.values()))["one"]
    assert math.isfinite(of_each["dev/sample_loss"]) and of_each["dev/sample_loss"] == report.loss
    assert "dev/loss" not in of_each


def test_losses_that_an_earlier_version_wrote_are_over_all_of_dev() -> None:
    assert by_step({"2": 1.5, "4": {"dev/sample_loss": 1.0}}) == {2: {"dev/loss": 1.5}, 4: {"dev/sample_loss": 1.0}}
