"""A plan's memory, slots and times."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from prefixray.config.schema import SweepConfig
from prefixray.config.trials import FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.methods.catalog import trained_parameters
from prefixray.planning.estimate import START_SECONDS, count_sweep, plan_sweep
from prefixray.planning.memory import BYTES_PER_TRAINED, Load, largest_trial, pack_bytes
from prefixray.planning.slots import num_slots


def test_memory_and_slots_are_those_of_sizes(config: SweepConfig) -> None:
    plan = count_sweep(config)
    shape, gpu = plan.known.shape, next(cost for cost in plan.costs if cost.device.name == "A10G")
    largest = max(largest_trial(arm, shape) for arm in config.arms if not arm.exclusive)
    assert gpu.slots == num_slots(24e9 - 4 * shape.num_parameters, largest) == 64
    rows, lengths = 6, plan.known.train
    load = Load(rows, math.ceil(rows * lengths.decoder), math.ceil(rows * lengths.targets))
    assert gpu.alone == pack_bytes([FinetuneTrial()], shape, load, weight_bytes=4, on_gpu=True)
    assert gpu.alone > BYTES_PER_TRAINED * shape.num_parameters
    widest = trained_parameters(PrefixTrial(preseqlen=5, mid_dim=16, init_token="eagle"), shape)
    assert gpu.pack is not None and gpu.pack > 4 * shape.num_parameters + 3 * BYTES_PER_TRAINED * widest


def test_on_a_gpu_all_trials_have_their_gradients_at_once(config: SweepConfig) -> None:
    shape = plan_sweep(config).known.shape
    method = PrefixTrial(preseqlen=5, mid_dim=2000, init_token=None)
    trained, load = trained_parameters(method, shape), Load(8, 400, 100)
    here, there = (pack_bytes([method] * 8, shape, load, weight_bytes=2, on_gpu=on_gpu) for on_gpu in (False, True))
    assert there > 8 * BYTES_PER_TRAINED * trained > here
    lora = LoraTrial(rank=4)
    one, two = (pack_bytes([lora] * count, shape, load, on_gpu=True) for count in (1, 2))
    assert two - one == (BYTES_PER_TRAINED + 6) * trained_parameters(lora, shape), "with their part of the stacks"


def test_times_add_up(config: SweepConfig) -> None:
    for cost in count_sweep(config).costs:
        assert cost.decode is not None and min(cost.search, cost.final, cost.decode) > 0
        assert cost.seconds == START_SECONDS + cost.search + cost.final + cost.decode


def test_a_plan_is_made_of_a_file_with_a_programs_rows_and_printed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("name : The Mill", "A mill.")] * 5
    plan = plan_sweep(file, train=rows, overrides=["search.num_trials=2"])
    assert (len(plan.known.task.train), len(plan.known.task.dev)) == (5, 2) if plan.known.task else False
    assert plan.config.search.num_trials == 2
    lines = str(plan).splitlines()
    assert lines[0].startswith("small: ") and " at once, " in lines[1]
    assert len(lines) == 1 + len(plan.costs) + len(plan.cautions)


def test_a_printed_plan_says_what_is_not_known_what_does_not_fit_and_what_may_end_the_search(
    config: SweepConfig,
) -> None:
    limits = {"stop_when": {"no_better": 3}, "max_hours": 2.0, "max_gpu_hours": 9.0}
    plan = count_sweep(config.model_copy(update={"search": config.search.model_copy(update=limits)}))
    here, *gpus = plan.costs
    small, large = replace(gpus[0].device, name="small", memory=1 << 10), replace(gpus[1], decode=None)
    printed = str(replace(plan, costs=(here, replace(gpus[0], device=small), large)))
    for told in ("(search.stop_when)", "No trial starts after 2 hours", "No trial starts after 9 device hours"):
        assert printed.count(told) == 1
    assert "small: does not fit: " in printed and "small: 64 at once" not in printed
    minutes = large.seconds / 60
    assert f", at least {minutes:.1f} min (" in printed and printed.count(", decoding not known)") == 1
