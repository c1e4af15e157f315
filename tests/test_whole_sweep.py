"""The benchmark of whole sweeps: that its arms search the same, and what its tables say of their runs."""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from support.tiny_bases import stock_model

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.load import load_sweep
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base

BENCH = Path(__file__).parent / "bench"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def _spec(base: Base, folder: Path) -> Any:  # noqa: ANN401
    """The tiny case on a tiny base."""
    from sweep_cases import CASES, prepare

    return prepare(replace(CASES["tiny"], base=lambda _: Path(base.name)), folder)


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_sweep_of_peft_and_ours_takes_trials_equally_far(tmp_path: Path) -> None:
    arms = ["PEFT fp32", "prefixray"]
    options = ["--case", "tiny", "--parts", "sweep", "--seeds", "2", "--out", str(tmp_path), "--arms", *arms]
    command = [sys.executable, str(BENCH / "whole_sweep.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "results.json").read_text())
    assert [run["arm"] for run in runs] == arms
    for run, rungs in zip(runs, ([4, 8, 16], [2, 4, 8]), strict=True):
        ends = [*rungs, 20]
        assert [trial["state"] for trial in run["trials"]] == ["ended"] * 4
        steps = [trial["steps"] for trial in run["trials"]]
        assert set(steps) <= set(ends) and run["num_whole"] == steps.count(20) >= 1
        assert [len(trial["losses"]) for trial in run["trials"]] == [ends.index(count) + 1 for count in steps]
        assert all(trial["proposed"] < trial["first_step"] < trial["ended"] for trial in run["trials"])
        assert run["peak_bytes"] > 2**28 and run["wall"] > 1
    assert [run["idle_share"] is None for run in runs] == [True, False] and 0 <= runs[-1]["idle_share"] < 1
    winners = json.loads((tmp_path / "winners-4" / "winners.json").read_text())
    assert [winner["config"] for winner in winners] == [run["config"] for run in runs]
    assert all(len(set(winner["losses"])) == 2 for winner in winners) and "winners trained anew" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.stdout.split("brackets")[1] == done.stdout.split("brackets")[1], "nothing is run a second time"


@pytest.mark.sweeps
def test_both_arms_see_the_same_tokens(tiny_llama: Base, tmp_path: Path) -> None:
    from peft_sweep import tokenise
    from sweep_cases import sweep_file

    spec = _spec(tiny_llama, tmp_path)
    task = TaskConfig.model_validate(yaml.safe_load(sweep_file(spec, "same"))["task"])
    ours = encode(load_task(task).train, make_template(tiny_llama, task))
    theirs = tokenise(Path(spec.train), tiny_llama.tokenizer, spec)
    assert [list(row.ids) for row in ours] == [row["input_ids"] for row in theirs]
    assert [row.num_prompt for row in ours] == [row["labels"].count(-100) for row in theirs]
    assert len(ours) == 64


@pytest.mark.sweeps
def test_both_arms_search_the_same_space(tiny_llama: Base, tmp_path: Path) -> None:
    from peft_sweep import propose
    from sweep_cases import sweep_file
    from sweep_spec import Spec

    spec = _spec(tiny_llama, tmp_path)
    spec.save(tmp_path / "spec.json")
    assert Spec.load(tmp_path / "spec.json") == spec
    (tmp_path / "sweep.yaml").write_text(sweep_file(spec, "same"))
    (arm,) = load_sweep(tmp_path / "sweep.yaml").arms
    study = optuna.create_study()
    drawn = [propose(study.ask(), spec) for _ in range(200)]
    for mid_dim in (None, 512):
        of_ours: Any = arm.distribution("learning_rate", {"mid_dim": mid_dim})
        low, high = of_ours.log_uniform
        rates = [config["learning_rate"] for config in drawn if config["mid_dim"] == mid_dim]
        assert low <= min(rates) < 1.3 * low and high / 1.3 < max(rates) <= high
    lengths: Any = arm.distribution("preseqlen", {})
    assert {config["preseqlen"] for config in drawn} == set(lengths.choice)
    parameters = {name for trial in study.trials for name in trial.params}
    assert parameters == {"preseqlen", "mid_dim", "learning_rate_None", "learning_rate_512"}, "a rate for each mid_dim"


def test_rungs_by_hand_are_where_asha_has_them(tiny_llama: Base, tmp_path: Path) -> None:
    from ray.tune.schedulers import ASHAScheduler

    spec = _spec(tiny_llama, tmp_path)
    for first, num_steps in ((8, 40), (4, 40), (2, 20), (1, 17), (5, 30)):
        asha = ASHAScheduler(max_t=num_steps, grace_period=first, reduction_factor=2)
        rungs = sorted(step for step, _ in asha._brackets[0]._rungs)
        assert replace(spec, first_rung=first, num_steps=num_steps).rungs == tuple(rungs)
    assert replace(spec, first_rung=None).rungs == ()


@pytest.mark.sweeps
def test_a_dev_loss_by_hand_is_a_mean_over_all_target_tokens(tiny_llama: Base, tmp_path: Path) -> None:
    from peft_sweep import TokenMeanTrainer, tokenise
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    spec = _spec(tiny_llama, tmp_path)
    rows = tokenise(Path(spec.dev), tiny_llama.tokenizer, spec)
    tiny_llama.tokenizer.pad_token = tiny_llama.tokenizer.eos_token

    def dev_loss(kind: type[Trainer], batch_size: int) -> float:
        trainer = kind(
            stock_model(tiny_llama),
            TrainingArguments(str(tmp_path), per_device_eval_batch_size=batch_size, use_cpu=True, report_to="none"),
            eval_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tiny_llama.tokenizer),
        )
        return trainer.evaluate()["eval_loss"]

    whole = dev_loss(Trainer, len(rows))  # one batch, so the mean of its tokens
    assert dev_loss(TokenMeanTrainer, 1) == pytest.approx(whole, abs=1e-5)
    assert abs(dev_loss(Trainer, 1) - whole) > 1e-4, "rows are not equally long"


@pytest.mark.sweeps
def test_a_flat_prefix_by_hand_starts_as_random_tokens_in_front(
    tiny_llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_sweep import with_prefix

    base = stock_model(tiny_llama)
    ids, row = torch.tensor([[7, 100, 31, 8, 55]]), torch.arange(10, 20)[None]
    monkeypatch.setattr(torch, "randint", lambda *_: ids)
    with torch.no_grad():
        in_front = base(torch.cat([ids, row], dim=1)).logits[:, 5:]
        model = with_prefix(base, {"preseqlen": 5, "mid_dim": None})
        behind = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    torch.testing.assert_close(behind, in_front)


def _run(arm: str, repeat: int, wall: float, losses: list[list[float]], idle: float | None = None) -> Any:  # noqa: ANN401
    from sweep_spec import TrialTimes
    from sweep_tables import Run

    trials = [TrialTimes(100.0, 101.0, 100.0 + wall, 10 * len(curve), curve, "ended") for curve in losses]
    run = Run(arm, "sweep", 2, len(trials), repeat, started=100.0, idle_share=idle, trials=trials)
    run.note_trials(20)
    return run


def test_tables_have_the_median_of_repeats_and_ratios_of_runs_side_by_side() -> None:
    from sweep_tables import Run, outcome_table, time_table

    runs = [
        *(_run("PEFT fp32", repeat, wall, [[3.0, 2.0], [2.5]]) for repeat, wall in enumerate((100, 120, 200))),
        *(_run("prefixray", 0, 10, [[3.0, 2.1], [1.0]], 0.1), _run("prefixray", 1, 20, [[2.0, 1.9]], 0.2)),
        _run("prefixray", 2, 40, [[2.0, float("nan")], [2.0, 1.8]], 0.06),
    ]
    assert [Run.load(json.loads(json.dumps(asdict(run)))).wall for run in runs] == [100, 120, 200, 10, 20, 40]
    by_hand, ours = (line[26:] for line in time_table(runs).splitlines()[1:3])
    assert ours.split()[:6] == ["20.0", "[10.0,", "40.0]", "6.00", "[5.00,", "10.00]"]
    assert by_hand.split()[:7] == ["120.0", "[100.0,", "200.0]", "1.00", "[1.00,", "1.00]", "-"]
    by_hand, ours = (line[26:].split() for line in outcome_table(runs).splitlines()[1:3])
    assert ours == ["1.900", "[1.800,", "2.100]", "1", "0", "30", "10", "%", "[6,", "20]", "0.00", "2"]
    assert by_hand == ["2.000", "[2.000,", "2.000]", "1", "0", "30", "-", "0.00", "2"]


def test_repeats_are_in_turn_and_what_is_known_is_not_run_again(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import whole_sweep
    from sweep_arms import ARMS
    from sweep_cases import CASES, own_rules

    spec = _spec(tiny_llama, tmp_path)
    rungs = [ARMS[name].spec(spec).rungs[0] for name in ("PEFT fp32", "PEFT fp32, our rung")]
    assert rungs == [4, own_rules(spec).rungs[0]] == [4, 2]
    options = argparse.Namespace(arms=["PEFT fp32", "prefixray"], trials=[16, 32], repeats=2, parts=["sweep"])
    runs = list(whole_sweep.planned(options, CASES["tiny"]))
    each = [("PEFT fp32", 16, 2), ("prefixray", 16, 8), ("PEFT fp32", 32, 2), ("prefixray", 32, 8)]
    assert [(run.arm, run.num_trials, run.at_once) for run in runs] == each * 2
    assert [run.repeat for run in runs] == [0] * 4 + [1] * 4
    assert not whole_sweep.read_known(tmp_path, spec)
    (tmp_path / "results.json").write_text(json.dumps([asdict(run) for run in runs[:5]]))
    known = whole_sweep.read_known(tmp_path, spec)
    assert [any(run.is_same(other) for other in known) for run in runs] == [True] * 5 + [False] * 3
    with pytest.raises(SystemExit, match="another case"):
        whole_sweep.read_known(tmp_path, replace(spec, num_steps=21))
