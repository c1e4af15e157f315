"""The loop: who is stepped, who waits at a rung, what is reported and kept, and coming back from a checkpoint."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packs import run_trainer
from torch import Tensor

from prefixray.artifacts.store import load_artifact, load_checkpoint
from prefixray.batching.rows import Row
from prefixray.config.schema import ArmConfig
from prefixray.config.seeds import subset_of
from prefixray.config.space import Choice
from prefixray.config.trials import (
    AdapterTrial,
    AnyTrial,
    FinetuneTrial,
    LoraTrial,
    PrefixTrial,
    TrainConfig,
    TrialConfig,
)
from prefixray.data import Example, Sourced, Subset, Task
from prefixray.data.documents import Document
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base
from prefixray.training import base_checks, progress
from prefixray.training.trainer import Trainer
from prefixray.trial import Report, TrialSpec

MakeBase = Callable[[str, torch.dtype], Base]

NAMES = ("The Eagle", "The Mill", "Aromi", "The Vaults", "The Golden Palace", "Zizzi", "The Rice Boat")
EXAMPLES = tuple(Example(f"name : {name} | food : French", f"{name} serves French food.") for name in NAMES)
TASK = Task(
    name="custom",
    train=EXAMPLES,
    dev=EXAMPLES[:2],
    dev_sources=(Sourced(EXAMPLES[0].source, (EXAMPLES[0].target,)),),
    test_sources=(Sourced(EXAMPLES[1].source, (EXAMPLES[1].target,)),),
    num_test_total=1,
    metrics=("bleu",),
)
FLAT = PrefixTrial(preseqlen=3, mid_dim=None, init_token=None)
METHODS: dict[str, AnyTrial] = {
    "network": PrefixTrial(preseqlen=4, mid_dim=8, init_token="restaurant", prefix_dropout=0.2),
    "adapter": AdapterTrial(bottleneck=3),
    "lora": LoraTrial(rank=2, dropout=0.2),
    "finetune": FinetuneTrial(),
}


@pytest.fixture
def trainer(make_base: MakeBase) -> Trainer:
    """On GPT-2's architecture, in float64."""
    return _trainer(make_base("gpt2", torch.float64))


def _trainer(base: Base) -> Trainer:
    return Trainer(base, TASK, TaskConfig(name="custom"))


def _config(method: AnyTrial = FLAT, *, arm: str = "prefix", num_steps: int = 6, **recipe: object) -> TrialConfig:
    whole = {"arm": arm, "num_steps": num_steps, "batch_size": 2, "learning_rate": 1e-2, **recipe}
    return TrialConfig(method=method, **whole)  # type: ignore[arg-type]


def _overshooting() -> TrialConfig:
    """A recipe whose dev loss rises in its last step."""
    return _config(num_steps=4, eval_every=1, learning_rate=3.0, schedule="constant", max_grad_norm=None)


def _spec(
    folder: Path, key: str, config: TrialConfig, rungs: Sequence[int] = (), *, replicate: int = 0, subset: int = 0
) -> TrialSpec:
    where = str(folder / key)
    return TrialSpec(key, config, 1, replicate, rungs=tuple(rungs), folder=where, subsets=(subset,))


def _tensors(trainer: Trainer, key: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.pack.members[key].method.named_parameters()}


def test_a_trial_reports_at_its_rungs_at_its_evaluations_and_at_its_end(trainer: Trainer, tmp_path: Path) -> None:
    trainer.admit(_spec(tmp_path, "prefix/0", _config(num_steps=7, eval_every=3), rungs=[2, 4, 9]))
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
    config = _config(num_steps=4, eval_every=2, warmup_steps=2, max_grad_norm=1e-6, grad_accumulation=3)
    trainer.admit(_spec(tmp_path, "clipped", config))
    trainer.admit(_spec(tmp_path, "free", _config(num_steps=4, max_grad_norm=None)))
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
    trainer.admit(_spec(tmp_path, "waits", _config(), rungs=[2]))
    trainer.admit(_spec(tmp_path, "ends", _config(num_steps=4)))
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
        trainer.admit(_spec(tmp_path, key, _config(arm=arm, learning_rate=rate), rungs=[2]))
    trainer.run()
    trainer.admit(_spec(tmp_path, "a/late", _config(arm="a"), rungs=[2]))
    reports = {report.key: report for report in trainer.run()}
    scores = {key: report.metrics["dev/loss"] for key, report in reports.items()}
    assert dict(reports["a/0"].packmates) == {"a/0": scores["a/0"], "a/1": scores["a/1"]} == reports["a/1"].packmates
    assert dict(reports["b/0"].packmates) == {"b/0": scores["b/0"]}


def test_the_artifact_is_of_the_best_step_not_of_the_last(trainer: Trainer, tmp_path: Path) -> None:
    config = _overshooting()
    trainer.admit(_spec(tmp_path, "prefix/0", config))
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
    spec = _spec(tmp_path, "prefix/0", _config(), rungs=[2])
    trainer.admit(TrialSpec(**{**vars(spec), "keep_artifact": False}))
    assert run_trainer(trainer)[-1].state == "done"
    assert sorted(path.name for path in (tmp_path / "prefix/0").iterdir()) == ["step-2"]


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_goes_on_from_its_checkpoint_as_if_nothing_had_been(
    make_base: MakeBase, tmp_path: Path, method: str
) -> None:
    config = _config(METHODS[method], num_steps=12, eval_every=4, warmup_steps=3, max_grad_norm=0.5)
    undisturbed = _trainer(make_base("gpt2", torch.float64))
    undisturbed.admit(_spec(tmp_path / "undisturbed", "one", config, rungs=[6]))
    member = undisturbed.pack.members["one"]
    wanted = run_trainer(undisturbed)
    first = _trainer(make_base("gpt2", torch.float64))
    spec = _spec(tmp_path / "resumed", "one", config, rungs=[6])
    first.admit(spec)
    early = run_trainer(first, 5)
    first.checkpoint(first.keys())
    second = _trainer(make_base("gpt2", torch.float64))
    torch.manual_seed(99)
    assert second.admit(spec) == 5
    resumed = second.pack.members["one"]
    reports = [*early, *run_trainer(second)]
    assert [report.step for report in reports] == [4, 6, 8, 12]
    for (name, theirs), ours in zip(member.method.named_parameters(), resumed.method.parameters(), strict=True):
        assert (theirs - ours).abs().max() < 1e-12, name
    for key in ("dev/loss", "dev/best_loss", "train/clipped_share", "train/tokens", "train/learning_rate"):
        assert [r.metrics[key] for r in reports] == pytest.approx([r.metrics[key] for r in wanted], abs=1e-12), key


def test_a_worse_step_after_coming_back_does_not_replace_the_best_artifact(make_base: MakeBase, tmp_path: Path) -> None:
    spec = _spec(tmp_path, "one", _overshooting())
    first, second = (_trainer(make_base("gpt2", torch.float64)) for _ in range(2))
    first.admit(spec)
    best = run_trainer(first, 3)[-1].metrics["dev/loss"]
    second.admit(spec)
    again, last = run_trainer(second)
    assert again.metrics["dev/loss"] == best, "it reports again, since nobody may have had its report"
    assert again.step not in again.earlier, "but once"
    assert last.earlier[again.step] == best and min(last.earlier) < again.step, "and tells what came before"
    assert last.metrics["dev/loss"] > best == last.metrics["dev/best_loss"]
    assert load_artifact(tmp_path / "one" / "artifact")[1]["scores"]["dev/loss"] == best


def test_a_trial_that_comes_back_to_a_rung_reports_there_again(make_base: MakeBase, tmp_path: Path) -> None:
    spec = _spec(tmp_path, "one", _config(), rungs=[2])
    first, second = (_trainer(make_base("gpt2", torch.float64)) for _ in range(2))
    first.admit(spec)
    (rung,) = run_trainer(first, 2)
    other = _spec(tmp_path, "other", _config(), rungs=[2])
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
    trainer.admit(_spec(tmp_path, "one", _config(), rungs=[1, 3, 5]))
    run_trainer(trainer, 2)
    assert [path.name for path in folder.glob("step-*")] == ["step-1"]
    monkeypatch.setattr(progress, "SMALL_CHECKPOINT_BYTES", 0)
    run_trainer(trainer, 2)
    assert [path.name for path in folder.glob("step-*")] == ["step-1"]
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    run_trainer(trainer, 1)
    saved = load_checkpoint(folder)
    assert saved is not None and saved[0] == 5


def test_a_trial_whose_winner_could_not_be_decoded_is_refused(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("gpt2", torch.float32)
    method = PrefixTrial(preseqlen=130, mid_dim=None, init_token=None)
    _trainer(base).admit(_spec(tmp_path, "one", _config(method)))
    trainer = Trainer(base, TASK, TaskConfig(name="custom"), max_new_tokens=120)
    message = r"^final.max_new_tokens: 120: with the longest test source \(\d+ tokens behind a prefix of 130\) beyond "
    with pytest.raises(UserError, match=message):
        trainer.admit(_spec(tmp_path, "two", _config(method)))
    trainer.admit(_spec(tmp_path, "three", _config(PrefixTrial(preseqlen=90, mid_dim=None, init_token=None))))


def test_a_trial_that_cannot_be_built_leaves_the_pack_as_it_was(make_base: MakeBase, tmp_path: Path) -> None:
    trainer, alone = (_trainer(make_base("gpt2", torch.float64)) for _ in range(2))
    for one in (trainer, alone):
        one.admit(_spec(tmp_path / str(id(one)), "one", _config()))
        one.run()
    too_long = PrefixTrial(preseqlen=256, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 256: .* has 256 positions"):
        trainer.admit(_spec(tmp_path, "too long", _config(too_long)))
    no_room = PrefixTrial(preseqlen=230, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 230: with the longest example .* beyond the 256 positions"):
        trainer.admit(_spec(tmp_path, "no room", _config(no_room)))
    assert trainer.keys() == ["one"] == list(trainer.pack.members)
    trainer.run(), alone.run()
    ours, theirs = _tensors(trainer, "one"), _tensors(alone, "one")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_trial_whose_numbers_are_not_finite_is_reported_and_gone(trainer: Trainer, tmp_path: Path) -> None:
    for key in ("ends", "stays"):
        trainer.admit(_spec(tmp_path, key, _config()))
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
    trainer = _trainer(make_base("gpt2", torch.float32))
    trainer.admit(_spec(tmp_path, "mad", _config(learning_rate=3e38), rungs=[1]))
    trainer.admit(_spec(tmp_path, "sane", _config(), rungs=[1]))
    mad, sane = trainer.run()
    assert mad == Report("mad", 1, "failed", mad.metrics, note="dev loss is not finite at step 1")
    assert mad.metrics["train/tokens"] > 0 and "dev/loss" not in mad.metrics
    assert list(sane.packmates) == ["sane"]
    assert trainer.keys() == ["sane"]
    assert not (tmp_path / "mad").exists()


def test_a_dropped_trial_may_come_again_and_dropping_twice_is_harmless(trainer: Trainer, tmp_path: Path) -> None:
    spec = _spec(tmp_path, "one", _config())
    trainer.admit(spec)
    trainer.run()
    trainer.drop("one")
    trainer.drop("one")
    assert trainer.keys() == []
    assert trainer.admit(spec) == 0


def test_replicates_differ_and_trials_of_a_replicate_do_not(trainer: Trainer, tmp_path: Path) -> None:
    for key, replicate in (("one", 0), ("same", 0), ("other", 1)):
        trainer.admit(_spec(tmp_path, key, _config(METHODS["network"]), replicate=replicate))
    trainer.run()
    one, same, other = (_tensors(trainer, key) for key in ("one", "same", "other"))
    assert all((one[name] - same[name]).abs().max() < 1e-12 for name in one)
    assert any((one[name] - other[name]).abs().max() > 1e-6 for name in one)


def test_in_low_data_each_run_is_what_it_is_on_its_subset_alone(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("gpt2", torch.float64)
    subsets = [Subset(EXAMPLES[:4], EXAMPLES[4:6]), Subset(EXAMPLES[3:], EXAMPLES[:2])]
    parts = [replace(TASK, train=subset.train, dev=subset.dev) for subset in subsets]
    together = Trainer(base, replace(parts[0], others=(subsets[1],)), TaskConfig(name="custom"))
    config = _config(num_steps=4, eval_every=2)
    for replicate in (1, 2, 3):
        subset = subset_of(replicate, len(subsets))
        together.admit(_spec(tmp_path, f"prefix/{replicate}", config, replicate=replicate, subset=subset))
    losses: dict[str, list[float]] = {}
    for report in run_trainer(together):
        losses.setdefault(report.key, []).append(report.metrics["dev/loss"])
    for replicate, part in {1: 0, 2: 1, 3: 0}.items():
        alone = Trainer(base, parts[part], TaskConfig(name="custom"))
        alone.admit(_spec(tmp_path / "alone", f"prefix/{replicate}", config, replicate=replicate))
        expected = [report.metrics["dev/loss"] for report in run_trainer(alone)]
        assert losses[f"prefix/{replicate}"] == pytest.approx(expected, abs=1e-9)
    assert losses["prefix/1"] != losses["prefix/3"]


def test_of_two_writers_of_one_folder_the_older_stops_and_its_packmates_go_on(
    trainer: Trainer, make_base: MakeBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, other = _spec(tmp_path, "moved", _config()), _spec(tmp_path, "other", _config(eval_every=2))
    spec.place_on("one")  # as the driver does, who makes the folder
    for each in (spec, other):
        trainer.admit(each)
    trainer.run()
    trainer.checkpoint(["moved", "other"])
    elsewhere = _trainer(make_base("gpt2", torch.float64))
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
    spec = _spec(tmp_path, "moved", _config(eval_every=1))
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
        spec = _spec(tmp_path, key, _config(eval_every=2))
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


@pytest.mark.parametrize("method", ["network", "lora"])
def test_a_trial_that_was_paused_and_taken_up_ends_with_exactly_the_numbers_of_one_that_ran_through(
    make_base: MakeBase, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SMALL_CHECKPOINT_BYTES", 0)  # a trial that may pause keeps its checkpoint anyway
    config = _config(METHODS[method], num_steps=9, warmup_steps=2)
    ended: dict[str, Report] = {}
    for name in ("through", "paused"):
        trainer = _trainer(make_base("llama", torch.float32))
        spec = replace(_spec(tmp_path / name, "one", config, rungs=[3, 6]), may_pause=True)
        trainer.admit(spec)
        reports = []
        for rung in (3, 6):
            reports += [report for _ in range(3) for report in trainer.run()]
            if name == "paused":
                trainer.drop("one")
                trainer.admit(_spec(tmp_path / name, f"other {rung}", _config(num_steps=2)))
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


def test_what_differs_in_its_network_alone_is_built_once_to_find_out_whether_it_can_be(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(make_base("gpt2", torch.float64), TASK, TaskConfig(name="custom"))
    built, build = list[AnyTrial](), base_checks.build_method

    def counted(config: AnyTrial, *given: Any, **named: Any) -> Method:  # noqa: ANN401
        built.append(config)
        return build(config, *given, **named)

    monkeypatch.setattr(base_checks, "build_method", counted)
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"learning_rate": 1e-2},
        dimensions={
            "preseqlen": Choice(choice=[1, 3]),
            "mid_dim": Choice(choice=[None, 4, 8]),
            "init_token": Choice(choice=["food", None]),
        },
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    starts = {(method.preseqlen, method.init_token) for method in built if isinstance(method, PrefixTrial)}
    assert len(built) == len(starts) == 4


def test_the_base_runs_once_over_tokens_with_which_other_prefixes_begin_to_find_out_whether_they_can_be_built(
    make_base: MakeBase,
) -> None:
    trainer = Trainer(make_base("gpt2", torch.float64), TASK, TaskConfig(name="custom"))
    record, run = trainer.pack.binder.record, list[int]()

    def counted(tokens: Tensor) -> Mapping[str, Tensor]:
        run.append(tokens.shape[1])
        return record(tokens)

    once = base_checks.recorded_once(counted)
    for ids in ([1, 2, 3, 4], [1, 2], [1, 3], [1, 2, 3]):
        tokens = torch.tensor([ids])
        found = once(tokens)
        for site, exact in record(tokens).items():
            torch.testing.assert_close(found[site], exact)
    assert run == [4, 2]

    runs = list[int]()
    hook = trainer.base.model.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"learning_rate": 1e-2, "mid_dim": None},
        dimensions={"preseqlen": Choice(choice=[1, 3, 5]), "init_token": Choice(choice=["food", None])},
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    hook.remove()
    assert len(runs) == 2, "one for each start, though each has three lengths"


def test_a_prefix_starts_as_the_document_of_its_subset_and_too_long_ones_are_refused_before_the_search(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base, texts = make_base("gpt2", torch.float64), ("The Eagle serves French food near Zizzi .", "A short text .")
    documents = [Document(f"text{index}", text) for index, text in enumerate(texts)]
    subsets = [Subset(EXAMPLES[:4], EXAMPLES[4:6], document) for document in documents]
    task = replace(TASK, train=subsets[0].train, dev=subsets[0].dev, document=documents[0], others=(subsets[1],))
    trainer = Trainer(base, task, TaskConfig(name="custom"))
    short = len(base.tokenizer(texts[1]).input_ids)
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"preseqlen": short, "mid_dim": None, "init_token": None, "init_from": "document", "learning_rate": 1e-2},
        dimensions={},
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    with pytest.raises(UserError, match=f"arms.prefix.preseqlen: {short + 1}: init_from document needs as many tokens"):
        trainer.check([arm.model_copy(update={"fixed": {**arm.fixed, "preseqlen": short + 1}})])
    for subset, text in enumerate(texts):
        key = f"prefix-{subset}"
        trainer.admit(_spec(tmp_path, key, arm.trial({}), subset=subset))
        method = trainer.pack.members[key].method
        assert isinstance(method, Prefix) and method.tokens == base.tokenizer(text).input_ids[:short]
