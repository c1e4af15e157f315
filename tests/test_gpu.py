"""On a GPU: training, validation, checkpoints, decoding and a whole sweep, with the CPU's numbers.

pytest -n 0 -m gpu                                                  # on a machine with a GPU
python -m pytest -n 0 -m gpu -p tests.support.pretend_gpu.plugin    # on one without: see its __init__.py
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.on_gpu import (
    DECODER_ONLY,
    METHODS,
    TOLERANCE,
    every_base,
    every_dtype,
    needs_gpu,
    pretended_alone,
    spec_of,
    task_of,
    trials_for,
)
from support.packs import EXAMPLES, SEEDS, rows_of, trial_of
from support.pretend_gpu import device as pretended
from support.taught import taught_rows
from support.tiny_bases import MakeOn

from prefixray.artifacts.store import load_artifact, restore_method
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import TrainConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.model.binding.insert import Insert
from prefixray.training.pack import Pack
from prefixray.training.trainer import Trainer, load_trainer
from prefixray.trial import Report

pytestmark = needs_gpu

SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 100, num_dev: 8, num_test: 4}}
train: {{batch_size: 4, num_steps: 8, warmup_steps: 1}}
arms:
  prefix: {{preseqlen: {{choice: [1, 3]}}, mid_dim: null, init_token: null, learning_rate: 1e-2}}
  finetune: {{learning_rate: 1e-3}}
search: {{num_trials: 2, concurrency: 2, rungs: [4], seed: 3}}
final: {{num_seeds: 1, metric: test/bleu, reference: finetune, num_beams: 2, max_new_tokens: 6}}
"""


@every_dtype
@every_base
def test_every_method_trains_and_validates_with_the_numbers_of_the_cpu(
    make_on: MakeOn, architecture: str, dtype: torch.dtype
) -> None:
    losses: dict[str, list[float]] = {}
    trials = trials_for(architecture)
    for device in ("cpu", "cuda"):
        base = make_on(architecture, dtype, device)
        pack = Pack(base, rows_of(base), pad_id=0)
        for key, config in trials.items():
            pack.admit(key, config, SEEDS)
        steps = [pack.step(trials) for _ in range(2)]
        scores = pack.evaluate(trials, rows_of(base)[:6])
        assert all(outcome.failed is None for step in steps for outcome in step.values())
        for key in trials:
            of_trial = [step[key].loss for step in steps] + [scores[key]]
            losses.setdefault(key, []).extend(of_trial)
            devices = {p.device.type for p in pack.members[key].method.parameters()}
            assert devices == {device}, key
    for key, of_both in losses.items():
        assert of_both[:3] == pytest.approx(of_both[3:], rel=0, abs=TOLERANCE[dtype]), key


@pretended_alone
@pytest.mark.parametrize("method", ["flat", "network", "lora", "adapter"])
def test_a_step_uploads_and_waits_once_and_a_further_trial_launches_little(make_on: MakeOn, method: str) -> None:
    base, launches = make_on("gpt2", torch.bfloat16, "cuda"), []
    for count in (2, 3):
        pack = Pack(base, rows_of(base), pad_id=0)
        for number in range(count):
            pack.admit(f"{number}", trial_of(METHODS[method], 1e-3, batch_size=3, max_grad_norm=1e-6), SEEDS)
        pack.step(pack.members)
        with pretended.counting():
            pack.step(pack.members)
        assert pretended.waited == {"download": 1, "upload": 1}
        launches.append(pretended.launched.total())
    assert launches[1] - launches[0] <= (27 if method == "network" else 0)  # of its network, and of its dropout


@pretended_alone
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_a_step_of_many_rows_that_share_prompts_uploads_once(make_on: MakeOn, dtype: torch.dtype) -> None:
    base = make_on("gpt2", dtype, "cuda")
    pack = Pack(base, rows_of(base) * 10, pad_id=0)
    for key in ("one", "two"):
        pack.admit(key, trial_of(METHODS["flat"], 1e-3, batch_size=120, label_smoothing=0.1), SEEDS)
    with pretended.counting():
        pack.step(pack.members)
    assert pretended.waited == {"download": 1, "upload": 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_distilling_uploads_and_waits_once_a_step_with_the_numbers_of_the_cpu(
    make_on: MakeOn, architecture: str, dtype: torch.dtype
) -> None:
    rows = taught_rows(make_on(architecture, dtype, "cpu"), 6)
    trials = {
        "distilled": trial_of(METHODS["flat"], 1e-3, batch_size=3, objective="distill", temperature=2.5),
        "beside": trial_of(METHODS["flat"], 1e-3, batch_size=3, label_smoothing=0.1),
    }
    for keys in (["distilled"], list(trials)):
        losses: list[float] = []
        for device in ("cpu", "cuda"):
            pack = Pack(make_on(architecture, dtype, device), rows, pad_id=0)
            for key in keys:
                pack.admit(key, trials[key], SEEDS)
            for _ in range(2):
                with pretended.counting() if pretended.is_there() else nullcontext():
                    losses += [outcome.loss for outcome in pack.step(keys).values()]
            assert device == "cpu" or not pretended.is_there() or pretended.waited == {"download": 1, "upload": 1}
            losses += pack.evaluate(keys, rows).values()
        half = len(losses) // 2
        assert losses[:half] == pytest.approx(losses[half:], rel=0, abs=TOLERANCE[dtype]), keys


@pretended_alone
@pytest.mark.parametrize("rules", [{}, {"length_with_prompt": 1, "ban_line_breaks": 1, "no_repeat_ngram_size": 3}])
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("architecture", DECODER_ONLY)
def test_no_decoded_token_waits_or_uploads(
    make_on: MakeOn, architecture: str, num_beams: int, rules: dict[str, int]
) -> None:
    base, waits = make_on(architecture, torch.float32, "cuda"), []
    template, sources = make_template(base, TaskConfig(name="custom")), [example.source for example in EXAMPLES[:3]]
    for length in (4, 20):
        lengths = {"min_new_tokens": length, "max_new_tokens": length}
        decoding = DecodingSettings(num_beams=num_beams, **lengths, **rules)  # type: ignore[arg-type]
        with pretended.counting():
            generate(base, template, sources, [Insert()] * 3, decoding)
        waits.append(dict(pretended.waited))
    assert waits[1] == waits[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@every_base
def test_trials_go_away_and_come_back_by_checkpoint_here_and_on_a_cpu(
    make_on: MakeOn, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    trials = trials_for(architecture, num_steps=3, eval_every=3)

    def trainer(device: str, folder: str) -> Trainer:
        made = Trainer(make_on(architecture, dtype, device), task_of(2), TaskConfig(name="custom"))
        for key, config in trials.items():
            made.admit(spec_of(tmp_path / folder, key, config))
        return made

    def rest(made: Trainer) -> dict[str, Report]:
        return {report.key: report for _ in range(3) for report in made.run()}

    first, undisturbed = trainer("cuda", "moved"), rest(trainer("cuda", "stays"))
    first.run()
    first.checkpoint(trials)
    for device in ("cpu", "cuda"):
        again = trainer(device, "moved")
        assert set(again.steps().values()) == {1}
        reports = rest(again)
        for key, report in undisturbed.items():
            assert report.state == "done"
            wanted, found = report.metrics["dev/loss"], reports[key].metrics["dev/loss"]
            assert found == pytest.approx(wanted, rel=0, abs=TOLERANCE[dtype]), (device, key)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@every_base
def test_artifacts_decode_to_what_the_cpu_writes(
    make_on: MakeOn, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    """In bf16, where two tokens may be as likely as each other, that something is written is all that is compared."""
    base = make_on(architecture, dtype, "cuda")
    trainer = Trainer(base, task_of(2), TaskConfig(name="custom"))
    trials = trials_for(architecture, num_steps=1)
    for key, config in trials.items():
        trainer.admit(spec_of(tmp_path, key, config))
    assert {report.state for report in trainer.run()} == {"done"}
    texts: list[list[str]] = []
    for device in ("cuda", "cpu"):
        on = make_on(architecture, dtype, device)
        pack, found = Pack(on, rows_of(on), pad_id=0), []
        for key in trials:
            method = restore_method(on, pack.binder.record, *load_artifact(tmp_path / key / "artifact"))
            running = on if method.own_model is None else replace(on, model=method.own_model)
            template, sources = (
                make_template(on, TaskConfig(name="custom")),
                [example.source for example in EXAMPLES[:3]],
            )
            for num_beams in (1, 3):
                decoding = DecodingSettings(num_beams=num_beams, max_new_tokens=6)
                with torch.no_grad():
                    found += generate(running, template, sources, [method.insert(None)] * 3, decoding)
        texts.append(found)
    assert len(set(texts[0])) > 3
    assert texts[0] == texts[1] if dtype == torch.float64 else len(texts[0]) == len(texts[1])


def test_workers_on_gpus_do_without_cudnns_attention(base_folders: Mapping[str, Path]) -> None:
    """From torch 2.10 on cuDNN is preferred on Hopper and plans anew for every shape."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        task, train = TaskConfig(name="e2e", num_train=4, num_dev=2, num_test=1), TrainConfig(num_steps=1)
        sizes = {"device": "cuda", "num_threads": 1, "max_new_tokens": 4}
        trainer = load_trainer(str(base_folders["gpt2"]), task, train, **sizes)  # type: ignore[arg-type]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    facts = trainer.describe()
    assert facts.device == torch.cuda.get_device_name() and facts.free_bytes > 0


@pytest.mark.ray
def test_a_sweep_runs_on_a_gpu(tmp_path: Path, base_folders: Mapping[str, Path]) -> None:
    for library in ("ray", "optuna", "mlflow"):
        pytest.importorskip(library)
    from support.sweep_process import DrivenSweep, end_all

    sweep = DrivenSweep(tmp_path, base_folders["gpt2"])
    (tmp_path / "small.yaml").write_text(SWEEP.format(base=sweep.base))
    try:
        process = sweep.start(PREFIXRAY_CACHE=str(tmp_path / "cache"))
        printed, _ = process.communicate(timeout=500)
    finally:
        end_all()
    assert process.returncode == 0, printed
    states = sweep.states()
    assert sorted(counts.total() for counts in states.values()) == [1, 1, 2], printed
    assert not any("FAIL" in counts for counts in states.values()), printed
    assert len(list(sweep.results.glob("final/*/test.hyp"))) == 3, "the base, the prefix, the fine-tuned model"
    devices = {speed["device"] for speed in json.loads((tmp_path / "cache" / "throughput.json").read_text())}
    assert devices == {torch.cuda.get_device_name()}
