"""The devices that a sweep could run on and their speed: this machine, and GPUs by their data sheets.

A speed that an earlier sweep has measured replaces the assumed one; `rates_from` says where each speed comes from.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prefixray.config.schema import SweepConfig
from prefixray.model.base import choose_device, choose_dtype
from prefixray.planning.slots import cpu_workers
from prefixray.planning.speeds import Kind, Speed, load_speeds
from prefixray.system.machine import available_bytes, num_cpus

SHARE_OF_MATMUL: Mapping[Kind, float] = {
    "shared": 0.4,
    "alone": 0.3,
    "decode": 0.4,
}
"""The share of a matrix product's speed that sweeps/e2e_small.yaml reached on 2 cores."""
MOST_UNLIKE = 4.0  # a base's speed counts for another with up to 4 times, and down to 1/4, of its parameters
SHARE_OF_PEAK: Mapping[Kind, float] = {"shared": 0.2, "alone": 0.2, "decode": 0.03}
"""The share of a GPU's peak that is assumed: modelled from counted operators and launches, never measured."""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet."""

    name: str
    memory_gb: int  # billions of bytes
    bf16_tflops: float  # peaks of dense matrix products; H100 and H200 as SXM
    fp32_tflops: float


GPUS = (
    Gpu("A10G", 24, 70, 35),
    Gpu("L4", 24, 121, 30.3),
    Gpu("A100 40GB", 40, 312, 19.5),
    Gpu("A100 80GB", 80, 312, 19.5),
    Gpu("H100", 80, 989, 67),
    Gpu("H200", 141, 989, 67),
)


@dataclass(frozen=True)
class Device:
    """Something that workers could run on."""

    name: str
    memory: float  # bytes of a worker
    num_workers: int
    precision: str
    rates: Mapping[Kind, float]  # FLOPs a second, of a worker
    rates_from: Mapping[Kind, str]
    is_gpu: bool


def this_machine(config: SweepConfig, num_parameters: int) -> Device:
    """This machine's devices, with the speeds measured on them, else with a share of a matrix product's speed."""
    device = choose_device("auto")
    if device == "cuda":
        name, num_workers, num_threads = torch.cuda.get_device_properties(0).name, torch.cuda.device_count(), 1
        memory: float = torch.cuda.mem_get_info(0)[0]
    else:
        name = device
        num_workers, num_threads = cpu_workers(num_cpus())
        memory = available_bytes() / num_workers
    dtype = choose_dtype(config.train.precision, device)
    precision = "4bit" if config.train.precision == "4bit" else "bf16" if dtype == torch.bfloat16 else "fp32"
    matmul = _matmul_flops(device, dtype, num_threads)
    rates = {kind: share * matmul for kind, share in SHARE_OF_MATMUL.items()}
    rates_from = {
        kind: f"estimated: {share:.0%} of the {matmul / 1e9:,.0f} GFLOP/s of a {precision} matrix product, measured now"
        for kind, share in SHARE_OF_MATMUL.items()
    }
    for speed in _speeds(config, num_parameters):
        is_same = (speed.device, speed.precision) == (name, precision)
        if is_same and (device == "cuda" or speed.num_threads == num_threads):
            rates[speed.kind], rates_from[speed.kind] = speed.flops_per_second, _origin(speed, config)
    is_gpu = device == "cuda"
    return Device(name, memory, num_workers, precision, rates, rates_from, is_gpu)


def named_gpu(gpu: Gpu, config: SweepConfig, num_parameters: int) -> Device:
    """One of `GPUS`, with the speeds measured on its like, else with an assumed share of the data sheet's peak."""
    precision = config.train.precision if config.train.precision != "auto" else "bf16"
    peak = 1e12 * (gpu.fp32_tflops if precision == "fp32" else gpu.bf16_tflops)
    rates = {kind: share * peak for kind, share in SHARE_OF_PEAK.items()}
    rates_from = dict.fromkeys(rates, "assumed")
    for speed in _speeds(config, num_parameters):
        is_named = all(part in speed.device.replace("-", " ").split() for part in gpu.name.split())
        if is_named and speed.precision == precision:
            rates[speed.kind], rates_from[speed.kind] = speed.flops_per_second, _origin(speed, config)
    return Device(gpu.name, gpu.memory_gb * 1e9, 1, precision, rates, rates_from, is_gpu=True)


def _speeds(config: SweepConfig, num_parameters: int) -> list[Speed]:
    """Measured speeds of bases of like size; those of this base come last, so that they replace the others."""
    ratios = ((speed, speed.num_parameters / num_parameters) for speed in load_speeds())
    alike = [speed for speed, ratio in ratios if 1 / MOST_UNLIKE <= ratio <= MOST_UNLIKE]
    return sorted(alike, key=lambda speed: speed.base == config.base)


def _origin(speed: Speed, config: SweepConfig) -> str:
    other = "" if speed.base == config.base else ", with another base"
    return f"measured: {speed.flops_per_second / 1e9:,.0f} GFLOP/s in sweep {speed.sweep} ({speed.date}){other}"


def _matmul_flops(device: str, dtype: torch.dtype, num_threads: int) -> float:
    """Operations per second of a square matrix product here, measured for a fifth of a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    size = 8192 if device == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    try:
        _multiply(matrix)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            _multiply(matrix)
            count += 1
        return count * 2 * size**3 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)


def _multiply(matrix: torch.Tensor) -> None:
    product = matrix @ matrix
    if product.is_cuda:
        torch.cuda.synchronize()
