"""A sweep on a cluster of several machines: a head that offers no CPU, and nodes that come and go.

The nodes are real Ray nodes on this machine, and what they offer is CPUs: without GPUs a cluster has a worker per node.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster as Machines

from prefixray.nodes import drain

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: {num_steps}, warmup_steps: 1, precision: fp32}}
arms:
  prefix: {{preseqlen: {{int: [1, 20]}}, mid_dim: null, init_token: pub, learning_rate: 1e-3}}
search: {{num_trials: {num_trials}, concurrency: 4, rungs: [20], keep: 1.0, seed: 3}}
final: {{num_seeds: 1, metric: test/bleu, num_beams: 2, max_new_tokens: 8}}
"""
DRIVER = """
import sys
from prefixray import pool
pool.IDLE_SECONDS, pool.MOVE_SECONDS = 2.0, 1.0
from prefixray.sweep import main
sys.exit(main())
"""


class Sweep:
    """A driver on the head, as a user would start it."""

    def __init__(self, folder: Path, address: str, *, base: Path, num_steps: int, num_trials: int) -> None:
        text = SWEEP.format(base=base, num_steps=num_steps, num_trials=num_trials)
        (folder / "small.yaml").write_text(text)
        self.num_trials = num_trials
        (folder / "driver.py").write_text(DRIVER)
        self.results = folder / "runs" / "small"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [sys.executable, "driver.py", "small.yaml", "--address", address],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self) -> str:
        """What the driver has said so far."""
        path = self.results / "sweep.log"
        return path.read_text() if path.is_file() else ""

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait until this is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"it took too long\n{self.log()}"
            time.sleep(0.1)

    def finish(self) -> str:
        """Wait for its end; what it printed."""
        output, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, output
        states = [trial["state"] for trial in json.loads((self.results / "results.json").read_text())["search"]]
        assert states == ["done"] * self.num_trials
        return output


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A head that offers no CPU but a place for trials."""
    head = {"num_cpus": 0, "resources": {"trial": 64}, "include_dashboard": False, "object_store_memory": 80 << 20}
    machines = Machines(initialize_head=True, head_node_args=head)
    yield machines
    ray.shutdown()
    machines.shutdown()
    for process in psutil.Process().children(recursive=True):
        process.kill()


def _add_node(machines: Machines) -> Node:
    node: Node = machines.add_node(num_cpus=1, object_store_memory=80 << 20)
    return node


def test_a_node_that_joins_is_used_and_the_trials_of_one_that_dies_go_on_there(
    machines: Machines, tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    first = _add_node(machines)
    sweep = Sweep(tmp_path, machines.address, base=base_folders["llama"], num_steps=200, num_trials=10)
    sweep.wait_for(lambda: "is placed on worker-0" in sweep.log())
    _add_node(machines)
    sweep.wait_for(lambda: "is placed on worker-1" in sweep.log())
    machines.remove_node(first, allow_graceful=False)
    sweep.finish()
    placed = re.findall(r"prefix/(\d+) is placed on (worker-\d)", sweep.log())
    moved = [number for number, worker in placed if worker == "worker-1" and (number, "worker-0") in placed]
    assert moved and len({number for number, _ in placed}) == 10


def test_a_drained_nodes_trials_go_on_elsewhere_and_a_node_without_work_is_given_back(
    machines: Machines, tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    spot, _ = _add_node(machines), _add_node(machines)
    sweep = Sweep(tmp_path, machines.address, base=base_folders["llama"], num_steps=300, num_trials=4)
    sweep.wait_for(lambda: sweep.log().count("is placed on") >= 4)
    assert drain(machines.address, spot.node_id, "a notice", seconds=600)
    sweep.wait_for(lambda: "its machine is about to go" in sweep.log())
    sweep.wait_for(lambda: sweep.log().count("is placed on") >= 6)
    _add_node(machines)
    sweep.finish()
    assert re.search(r"worker-\d is not needed", sweep.log())
