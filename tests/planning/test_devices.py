"""A measured speed replaces the assumed one."""

from pathlib import Path

import pytest
import torch
from support.small_plan import speed

from prefixray.config.schema import SweepConfig
from prefixray.planning.estimate import count_sweep
from prefixray.planning.speeds import store_speeds
from prefixray.planning.text import plan_text


@pytest.mark.skipif(torch.cuda.is_available(), reason="the speeds are a CPU's")
def test_a_measured_speed_replaces_the_assumed_one_and_says_so(config: SweepConfig, file: Path) -> None:
    store_speeds([speed("other", "shared", 7e9), speed("other", "alone", 2e9)])
    store_speeds([speed(config.base, "shared", 3e9), speed(config.base, "decode", 1e9, precision="bf16")])
    store_speeds([speed("far larger", "alone", 9e9, num_parameters=30_000_000), speed("third", "shared", 8e9)])
    here = count_sweep(config).costs[0].device
    assert (here.rates["shared"], here.rates["alone"]) == (3e9, 2e9)
    assert here.rates_from["shared"] == "measured: 3 GFLOP/s in sweep earlier (2026-01-01)"
    assert here.rates_from["alone"].endswith("(2026-01-01), with another base")
    assert here.rates_from["decode"].startswith("estimated")
    assert "measured: 3 GFLOP/s" in " ".join(plan_text(config, file, {}).split())


def test_a_gpu_of_the_table_takes_the_speed_of_its_like(config: SweepConfig) -> None:
    store_speeds([speed(config.base, "shared", 5e13, device="NVIDIA A100-SXM4-40GB")])
    rates = {cost.device.name: cost.device.rates["shared"] for cost in count_sweep(config).costs}
    assert rates["A100 40GB"] == 5e13 and rates["A100 80GB"] != 5e13
