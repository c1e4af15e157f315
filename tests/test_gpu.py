"""On a GPU: training, validation, checkpoints, decoding and running out of memory, with the CPU's numbers.

pytest -n 0 -m gpu                                                  # on a machine with a GPU
python -m pytest -n 0 -m gpu -p tests.support.pretend_gpu.plugin    # on one without: see its __init__.py
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.packs import EXAMPLES, SEEDS, rows_of, trial_of
from support.pretend_gpu import device as pretended
from support.taught import taught_rows

from prefixray.artifacts.store import load_artifact, restore_method
from prefixray.batching.lengths import row_lengths
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import (
    AdapterTrial,
    AnyTrial,
    FinetuneTrial,
    LoraTrial,
    PrefixTrial,
    TrainConfig,
    TrialConfig,
)
from prefixray.data import Example, Sourced, Task
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.errors import NoMemory
from prefixray.methods.catalog import trained_parameters
from prefixray.model.base import Base, load_base, wrap_model
from prefixray.model.binding.insert import Insert
from prefixray.planning.memory import BYTES_PER_TRAINED, Load, pack_bytes
from prefixray.planning.slots import num_slots
from prefixray.training.device.measure import measure
from prefixray.training.pack import Pack
from prefixray.training.trainer import Trainer, load_trainer
from prefixray.trial import Report, TrialSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]

MakeOn = Callable[[str, torch.dtype, str], Base]

DECODER_ONLY = ("gpt2", "llama")  # Llama has two key/value heads for four query heads
ARCHITECTURES = (*DECODER_ONLY, "bart", "t5")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}  # of losses per token of about 6
METHODS: Mapping[str, AnyTrial] = {
    "flat": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    "network": PrefixTrial(preseqlen=6, mid_dim=16, init_token="restaurant", prefix_dropout=0.1),
    "embedding": PrefixTrial(preseqlen=5, mid_dim=8, init_token=None, prefix_mode="embedding"),
    "infix": PrefixTrial(preseqlen=4, mid_dim=16, init_token=None, format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=7),
    "adapters in sub-layers": AdapterTrial(bottleneck=7, design=2),
    "lora": LoraTrial(rank=3),
    "lora with dropout": LoraTrial(rank=3, alpha=5.0, dropout=0.2),
    "finetune": FinetuneTrial(),
    "finetune top": FinetuneTrial(top_layers=1, tune_embeddings=False),
}
MIB = 1 << 20
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
pretended_alone = pytest.mark.skipif(not pretended.is_there(), reason="only a pretended GPU counts")
every_base = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def make_on(base_folders: Mapping[str, Path]) -> MakeOn:
    """A function from an architecture, a dtype and a device to a base of its own."""

    def make(architecture: str, dtype: torch.dtype, device: str) -> Base:
        loaded = load_base(str(base_folders[architecture]), dtype=dtype, device=device)
        return wrap_model(loaded.model, loaded.tokenizer, name=loaded.name, digest=loaded.digest)

    return make


def trials_for(architecture: str, **recipe: object) -> dict[str, TrialConfig]:
    """A trial of each method that the architecture knows, and one with the dropout of the base."""
    known = {key: method for key, method in METHODS.items() if architecture in DECODER_ONLY or key != "infix"}
    trials = {key: trial_of(method, 1e-3, batch_size=3, **recipe) for key, method in known.items()}
    return trials | {"base dropout": trial_of(METHODS["flat"], 1e-3, batch_size=3, base_dropout=True, **recipe)}


def task_of(num_dev: int) -> Task:
    """The examples, of which some are for dev."""
    sources = tuple(Sourced(example.source, (example.target,)) for example in EXAMPLES[:2])
    parts = {"train": EXAMPLES, "dev": EXAMPLES[:num_dev], "dev_sources": sources, "test_sources": sources}
    return Task(name="custom", num_test_total=2, metrics=("bleu",), **parts)  # type: ignore[arg-type]


def spec_of(folder: Path, key: str, config: TrialConfig) -> TrialSpec:
    return TrialSpec(key, config, seed=1, replicate=0, rungs=(), folder=str(folder / key))


@contextmanager
def memory_for(more: int) -> Iterator[None]:
    """Let the device have so many bytes more than it holds now."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


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


@every_base
def test_a_step_without_memory_runs_in_smaller_pieces_with_the_same_numbers(make_on: MakeOn, architecture: str) -> None:
    base = make_on(architecture, torch.float32, "cuda")
    rows = rows_of(base) * 20
    trials = {"flat": trial_of(METHODS["flat"], 1e-2, batch_size=200), "lora": trial_of(METHODS["lora"], 1e-2)}
    whole, short = (Pack(base, rows, pad_id=0) for _ in range(2))
    for pack in (whole, short):
        for key, config in trials.items():
            pack.admit(key, config, SEEDS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    expected = whole.step(trials)
    taken = torch.cuda.max_memory_reserved() - before
    with memory_for(taken // 2):
        found = short.step(trials)
    num_tokens = sum(sum(row.lengths) for row in rows)
    assert taken > 16 * MIB and short.token_budget < num_tokens < whole.token_budget
    for key in trials:
        assert found[key].failed is None and math.isfinite(found[key].loss)
        assert found[key].loss == pytest.approx(expected[key].loss, abs=TOLERANCE[torch.float32])
        assert found[key].grad_norm == pytest.approx(expected[key].grad_norm, rel=1e-4)


def test_a_pack_that_is_as_large_as_was_measured_does_not_run_out_of_memory(
    make_on: MakeOn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"The {place} {number}" for number in range(100) for place in ("Eagle", "Mill", "Vaults", "Pier")]
    rows = [Example(f"name : {name} | food : tea | area : riverside", f"{name} serves tea.") for name in names]
    task = replace(task_of(2), train=tuple(rows))
    trainer = Trainer(make_on("gpt2", torch.float32, "cuda"), task, TaskConfig(name="custom"))
    network = PrefixTrial(preseqlen=2, mid_dim=4000, init_token=None)
    with memory_for(128 * MIB):
        measure(trainer.pack, trainer.train_lengths)
        facts, costs = trainer.describe(), trainer.pack.layout.costs
        assert costs is not None and costs.step_bytes == facts.step_bytes
        assert costs.token_budget == trainer.pack.token_budget < 1 << 16 and facts.free_bytes <= 128 * MIB
        trained = trained_parameters(network, facts.shape)
        slots = num_slots(facts.free_bytes, BYTES_PER_TRAINED * trained, facts.step_bytes)
        assert slots > 3
        for number in range(slots):
            trainer.admit(spec_of(tmp_path, f"{number}", trial_of(network, 1e-3, batch_size=160, num_steps=2)))
        reports = [report for _ in range(2) for report in trainer.run()]
    assert [report.state for report in reports] == ["done"] * slots
    assert "out of memory" not in caplog.text and trainer.pack.token_budget == costs.token_budget


@pytest.mark.parametrize("method", ["network", "lora"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_computed_memory_of_a_pack_is_enough_and_not_much_more(make_on: MakeOn, method: str, count: int) -> None:
    base = make_on("gpt2", torch.bfloat16, "cuda")
    trained = PrefixTrial(preseqlen=5, mid_dim=20_000, init_token=None) if method == "network" else LoraTrial(rank=4)
    rows = rows_of(base)
    pack = Pack(base, rows, pad_id=0)
    pack.admit("warm", trial_of(METHODS["lora"], 1e-3), SEEDS)
    pack.step(["warm"])  # libraries take their own memory
    pack.drop("warm")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    keys = [f"{number}" for number in range(count)]
    for key in keys:
        pack.admit(key, trial_of(trained, 1e-3, batch_size=12), SEEDS)
    for _ in range(2):
        assert all(result.failed is None for result in pack.step(keys).values())
    taken = torch.cuda.max_memory_allocated() - before
    lengths, num_rows = row_lengths(rows), count * len(rows)
    load = Load(num_rows, round(num_rows * lengths.decoder), round(num_rows * lengths.targets))
    weights = 2 * base.shape.num_parameters
    computed = pack_bytes([trained] * count, base.shape, load, weight_bytes=2, on_gpu=True) - weights
    assert taken <= computed <= 1.6 * taken, (taken, computed)


@pytest.mark.parametrize("room", [20, 60, 100], ids=["for no gradients", "for gradients", "for one of two moments"])
def test_an_update_without_memory_ends_its_trial_alone(make_on: MakeOn, room: int) -> None:
    """A network of 37 MiB: its gradients take as much, and its two moments take twice that."""
    base = make_on("gpt2", torch.float32, "cuda")
    large = PrefixTrial(preseqlen=2, mid_dim=60_000, init_token=None)
    trials = {"large": trial_of(large, 1e-3), "small": trial_of(METHODS["flat"], 1e-3)}
    pack, alone = (Pack(base, rows_of(base), pad_id=0) for _ in range(2))
    alone.admit("small", trials["small"], SEEDS)
    expected = [alone.step(["small"])["small"].loss for _ in range(2)]
    for key, config in trials.items():
        pack.admit(key, config, SEEDS)
    with memory_for(room * MIB):
        outcomes = pack.step(trials)
        assert outcomes["small"].failed is None
        reason = str(outcomes["large"].failed)
        assert reason.startswith("out of memory alone") and "mid_dim 60000" in reason
        pack.drop("large")
        losses = [outcomes["small"].loss, pack.step(["small"])["small"].loss]
    assert losses == pytest.approx(expected, abs=TOLERANCE[torch.float32])


def test_a_trial_without_memory_to_be_built_leaves_the_pack_as_it_was(make_on: MakeOn, tmp_path: Path) -> None:
    trainer = Trainer(make_on("gpt2", torch.float32, "cuda"), task_of(2), TaskConfig(name="custom"))
    trainer.admit(spec_of(tmp_path, "small", trial_of(METHODS["flat"], 1e-3, num_steps=2)))
    large = PrefixTrial(preseqlen=2, mid_dim=100_000, init_token=None)
    with memory_for(30 * MIB):
        with pytest.raises(NoMemory, match=r"out of memory while it is built: method prefix, .*mid_dim 100000"):
            trainer.admit(spec_of(tmp_path, "large", trial_of(large, 1e-3)))
        assert trainer.keys() == ["small"] == list(trainer.pack.members)
        assert [report.state for _ in range(2) for report in trainer.run()] == ["done"]


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
