"""A trial over several documents has a member for each, and reports, is kept and fails as one trial."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.packs import run_trainer

from prefixray.artifacts.store import load_artifact
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example, Sourced, Subset, Task
from prefixray.data.documents import Document
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.trainer import Trainer
from prefixray.trial import Report, TrialSpec

MakeBase = Callable[[str, torch.dtype], Base]

NAMES = ("The Eagle", "The Mill", "Aromi", "The Vaults", "The Golden Palace", "Zizzi", "The Rice Boat", "Strada")
EXAMPLES = tuple(Example(f"name : {name} | food : French", f"{name} serves French food.") for name in NAMES)
SUBSETS = [
    Subset(EXAMPLES[start : start + 4], EXAMPLES[start + 2 : start + 5], Document(name, f"About {name} ."))
    for start, name in enumerate(("eagle", "mill", "aromi"))
]
TASK = Task(
    name="document",
    train=SUBSETS[0].train,
    dev=SUBSETS[0].dev,
    dev_sources=(),
    test_sources=(Sourced(EXAMPLES[1].source, (EXAMPLES[1].target,), document="eagle"),),
    num_test_total=1,
    metrics=("rouge_l",),
    others=tuple(SUBSETS[1:]),
    document=SUBSETS[0].document,
)
CONFIG = TrialConfig(
    arm="prefix",
    method=PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, init_from="document"),
    num_steps=6,
    batch_size=2,
    learning_rate=1e-2,
    eval_every=2,
)


def _trainer(base: Base) -> Trainer:
    return Trainer(base, TASK, TaskConfig(name="custom"))


def _spec(folder: Path, key: str, subsets: Sequence[int], rungs: Sequence[int] = ()) -> TrialSpec:
    kept = len(subsets) == 1
    return TrialSpec(
        key, CONFIG, 1, 0, tuple(rungs), str(folder / key.replace("/", "-")), tuple(subsets), keep_artifact=kept
    )


def _dev_losses(reports: Sequence[Report], key: str) -> list[float]:
    return [report.metrics["dev/loss"] for report in reports if report.key == key]


def test_a_document_in_a_pack_with_others_is_what_it_is_alone_and_a_trial_over_several_their_mean(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("llama", torch.float64)
    together = _trainer(base)
    together.admit(_spec(tmp_path, "prefix/0", (0, 1, 2)))
    for subset in range(3):
        together.admit(_spec(tmp_path, f"final/{subset}", (subset,)))
    assert sorted(together.pack.members) == [*(f"final/{i}" for i in range(3)), *(f"prefix/0@{i}" for i in range(3))]
    reports = run_trainer(together)
    alone, tokens = [], 0.0
    for subset in range(3):
        lone = _trainer(base)
        lone.admit(_spec(tmp_path / "alone", f"final/{subset}", (subset,)))
        losses = run_trainer(lone)
        alone.append(_dev_losses(losses, f"final/{subset}"))
        tokens += losses[-1].metrics["train/tokens"]
        assert _dev_losses(reports, f"final/{subset}") == pytest.approx(alone[-1], abs=1e-9)
        (ours, record), (theirs, _) = (
            load_artifact(at / f"final-{subset}/artifact") for at in (tmp_path, tmp_path / "alone")
        )
        assert record["document"] == ("eagle", "mill", "aromi")[subset]
        assert all((ours[name] - theirs[name]).abs().max() < 1e-9 for name in theirs)
    means = [sum(of_documents) / 3 for of_documents in zip(*alone, strict=True)]
    assert _dev_losses(reports, "prefix/0") == pytest.approx(means, abs=1e-9)
    assert len({round(loss, 6) for loss in (of_document[-1] for of_document in alone)}) == 3
    (last,) = [report for report in reports if report.key == "prefix/0" and report.state == "done"]
    assert last.metrics["train/tokens"] == tokens and last.metrics["dev/best_loss"] == pytest.approx(min(means))
    assert last.metrics["size/stored"] == 2 * 2 * 3 * 2 * 8, "of one document's prefix"
    assert not (tmp_path / "prefix-0" / "artifact").exists()


def test_a_trial_over_documents_that_pauses_and_goes_on_ends_with_the_numbers_of_one_that_ran_through(
    make_base: MakeBase, tmp_path: Path
) -> None:
    ended = {}
    for name in ("through", "paused"):
        trainer = _trainer(make_base("llama", torch.float32))
        spec = replace(_spec(tmp_path / name, "prefix/0", (0, 2), rungs=[3]), may_pause=True)
        trainer.admit(spec)
        reports = [report for _ in range(3) for report in trainer.run()]
        assert reports[-1].rung == 3 and trainer.parked() == ["prefix/0"]
        if name == "paused":
            trainer.drop("prefix/0")
            assert trainer.pack.members == {}
            trainer = _trainer(make_base("llama", torch.float32))
            assert trainer.admit(replace(spec, resumed_from=3)) == 3
        else:
            trainer.go_on("prefix/0")
        ended[name] = run_trainer(trainer)[-1]
    assert ended["paused"].state == "done" and ended["paused"].earlier == ended["through"].earlier
    through, paused = (
        {key: value for key, value in ended[name].metrics.items() if key != "train/seconds"} for name in ended
    )
    assert paused == through


def test_a_trial_of_which_one_member_fails_ends_with_all_of_them(make_base: MakeBase, tmp_path: Path) -> None:
    trainer = _trainer(make_base("llama", torch.float64))
    trainer.admit(_spec(tmp_path, "prefix/0", (0, 1)))
    trainer.admit(_spec(tmp_path, "prefix/1", (0, 1)))
    trainer.run()
    with torch.no_grad():
        next(trainer.pack.members["prefix/0@1"].method.parameters()).fill_(float("nan"))
    (failed,) = trainer.run()[:1]
    assert (failed.key, failed.state, failed.note) == ("prefix/0", "failed", "loss is not finite at step 2")
    assert sorted(trainer.pack.members) == ["prefix/1@0", "prefix/1@1"] and trainer.keys() == ["prefix/1"]
    assert run_trainer(trainer)[-1].state == "done"
