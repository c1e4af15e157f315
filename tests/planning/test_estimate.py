"""A plan's memory, slots and times."""

import math

from prefixray.config.schema import SweepConfig
from prefixray.config.trials import FinetuneTrial, PrefixTrial
from prefixray.methods.catalog import trained_parameters
from prefixray.planning.estimate import START_SECONDS, plan_sweep
from prefixray.planning.memory import BYTES_PER_TRAINED, Load, largest_trial, pack_bytes
from prefixray.planning.slots import num_slots


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


def test_times_add_up(config: SweepConfig) -> None:
    for cost in plan_sweep(config).costs:
        assert cost.decode is not None and min(cost.search, cost.final, cost.decode) > 0
        assert cost.seconds == START_SECONDS + cost.search + cost.final + cost.decode
