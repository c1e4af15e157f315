"""A small sweep to be planned, and speeds that earlier sweeps could have measured."""

import json
from pathlib import Path

from prefixray.planning.slots import cpu_workers
from prefixray.planning.speeds import Speed
from prefixray.system.machine import num_cpus

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
search: {{num_trials: 8, concurrency: 2, policy: stop, rungs: [2, 4], keep: 0.5}}
final: {{candidates: 2, num_seeds: 3, max_new_tokens: 10, num_beams: 2, batch_size: 4}}
"""
EXAMPLES = [{"source": f"name : The Mill | food : {food}", "target": f"{food} food."} for food in ("Thai", "French")]


def write_sweep(folder: Path, base: Path) -> Path:
    """Write the data and the sweep file; return the file."""
    data, path = folder / "data.jsonl", folder / "small.yaml"
    data.write_text("\n".join(json.dumps(example) for example in EXAMPLES) + "\n")
    path.write_text(FILE.format(base=base, data=data))
    return path


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
    return cpu_workers(num_cpus())[1]
