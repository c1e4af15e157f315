"""On a GPU: running out of memory, and what is computed of it beforehand."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.on_gpu import METHODS, TOLERANCE, every_base, needs_gpu, spec_of, task_of
from support.packs import SEEDS, rows_of, trial_of
from support.tiny_bases import MakeOn

from prefixray.batching.lengths import row_lengths
from prefixray.config.trials import LoraTrial, PrefixTrial
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.errors import NoMemory
from prefixray.methods.catalog import trained_parameters
from prefixray.planning.memory import BYTES_PER_TRAINED, Load, pack_bytes
from prefixray.planning.slots import num_slots
from prefixray.training.device.measure import measure
from prefixray.training.pack import Pack
from prefixray.training.trainer import Trainer

pytestmark = needs_gpu

MIB = 1 << 20


@contextmanager
def memory_for(more: int) -> Iterator[None]:
    """Let the device have so many bytes more than it holds now."""
    gc.collect()  # what earlier tests have left would be freed while this one counts
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


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
