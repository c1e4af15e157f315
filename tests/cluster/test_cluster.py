"""A sweep on a cluster of several machines: a head that offers no CPU, and nodes that come and go.

The nodes are real Ray nodes on this machine, and what they offer is CPUs: without GPUs a cluster has a worker per node.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.node import Node
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster as Machines
from support.sweep_process import end_all, start_driver

from prefixray.cluster.nodes import AUTOSCALER_FILE, drain, present
from prefixray.cluster.worker_handle import away_from

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: {num_steps}, warmup_steps: 1, precision: fp32}}
arms:
  {arm}
search: {{num_trials: {num_trials}, concurrency: 4, rungs: [20], keep: 1.0, seed: 3}}
final: {{num_seeds: 1, metric: test/bleu, num_beams: 2, max_new_tokens: 8}}
"""
PREFIX = "prefix: {preseqlen: {int: [1, 20]}, mid_dim: null, init_token: pub, learning_rate: 1e-3}"
FINETUNE = "finetune: {learning_rate: {log_uniform: [1e-5, 1e-3]}}"
AUTOSCALER = """
cluster_name: small
max_workers: 2
idle_timeout_minutes: 0.1
provider: {type: external, module: ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider,
           head_node_id: HEAD, launch_multiple: true, use_node_id_as_ip: true, disable_node_updaters: true,
           disable_launch_config_check: true, gcs_address: "GCS"}
head_node_type: ray.head.default
available_node_types:
  ray.head.default: {resources: {CPU: 0}, node_config: {}, max_workers: 0}
  on_demand: {resources: &small {CPU: 1, object_store_memory: 80000000}, node_config: {}, max_workers: 2, priority: 0}
  spot: {resources: *small, node_config: {}, max_workers: 2, priority: 1, labels: {kind: spot}}
upscaling_speed: 100
auth: {}
docker: {}
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
"""
DRIVER = """
import sys
from prefixray.cluster import fleet, worker_handle
fleet.IDLE_SECONDS, worker_handle.MOVE_SECONDS = 2.0, 1.0
from prefixray.sweep import main
sys.exit(main())
"""


class Sweep:
    """A driver on the head, as a user would start it."""

    def __init__(
        self, folder: Path, address: str, *, base: Path, num_steps: int, num_trials: int, arm: str = PREFIX
    ) -> None:
        text = SWEEP.format(base=base, num_steps=num_steps, num_trials=num_trials, arm=arm)
        (folder / "small.yaml").write_text(text)
        self.num_trials = num_trials
        (folder / "driver.py").write_text(DRIVER)
        self.results = folder / "runs" / "small"
        self.process = start_driver(folder, [sys.executable, "driver.py", "small.yaml", "--address", address])

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
    """A head that offers no CPU."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
    machines = Machines(initialize_head=True, head_node_args=head)
    yield machines
    ray.shutdown()
    machines.shutdown()
    end_all()


def _add_node(machines: Machines) -> Node:
    node: Node = machines.add_node(num_cpus=1, object_store_memory=80 << 20)
    return node


def test_nothing_is_started_on_machines_that_are_shunned(machines: Machines) -> None:
    nodes = [_add_node(machines).node_id for _ in range(2)]
    ray.init(address=machines.address, log_to_driver=False)

    @ray.remote(num_cpus=1)
    class Somewhere:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    for shunned, other in (nodes, nodes[::-1]):
        actor = Somewhere.options(**away_from([shunned])).remote()
        assert ray.get(actor.node.remote()) == other
        ray.kill(actor)
    waiting = Somewhere.options(**away_from(nodes)).remote().node.remote()
    assert not ray.wait([waiting], timeout=3.0)[0]
    third = _add_node(machines).node_id
    assert ray.get(waiting, timeout=60) == third


def test_a_node_that_joins_is_used_and_the_trials_of_one_that_dies_go_on_there(
    machines: Machines, tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    first = _add_node(machines)
    sweep = Sweep(tmp_path, machines.address, base=base_folders["llama"], num_steps=600, num_trials=10)
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
    spot = _add_node(machines)
    sweep = Sweep(tmp_path, machines.address, base=base_folders["llama"], num_steps=1000, num_trials=4)
    sweep.wait_for(lambda: sweep.log().count("is placed on worker-0") == 4)
    _add_node(machines)
    sweep.wait_for(lambda: "worker-1: " in sweep.log())
    assert drain(machines.address, spot.node_id, "a notice", seconds=600)
    sweep.wait_for(lambda: "is placed on worker-1" in sweep.log())
    _add_node(machines)
    sweep.wait_for(lambda: sweep.log().count(" slots on cpu") == 3)  # a worker may get a lost one's name
    sweep.finish()
    assert "its machine is about to go" in sweep.log()
    assert re.search(r"worker-\d is idle: its device is free", sweep.log())


@pytest.fixture
def autoscaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head whose autoscaler starts nodes for those who wait for a CPU, at most two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    monkeypatch.setenv("HOME", str(tmp_path))  # where `ray up` would have left the file
    config = tmp_path / AUTOSCALER_FILE.name
    config.write_text(AUTOSCALER.replace("GCS", address).replace("HEAD", FAKE_HEAD_NODE_ID))
    environment = {  # the autoscaler's second version, as `ray up` starts it
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        **dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID),
    }
    command = f"ray start --head --block --port={port} --num-cpus=0 --include-dashboard=false"
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: a short path
        head = subprocess.Popen(
            [
                *[sys.executable, "-m", "ray.scripts.scripts", *command.split()[1:], f"--temp-dir={folder}"],
                *[f"--autoscaling-config={config}", "--object-store-memory=80000000"],
            ],
            env={**os.environ, **environment},
        )
        yield address
        ray.shutdown()
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def test_machines_come_for_the_trials_that_wait_and_go_when_there_are_none(
    autoscaled: str, tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ray.init(address=autoscaled, logging_level="ERROR", log_to_driver=False)
            break
        except (ConnectionError, RuntimeError):
            assert time.monotonic() < deadline
            time.sleep(1)
    node_counts, kinds = [len(present()) - 1], set[str | None]()
    base = base_folders["llama"]
    sweep = Sweep(tmp_path, autoscaled, base=base, num_steps=60, num_trials=4, arm=FINETUNE)

    def watch() -> bool:
        now = len(present()) - 1
        if now != node_counts[-1]:
            node_counts.append(now)
            kinds.update(node["Labels"].get("kind") for node in ray.nodes() if node["Resources"].get("CPU"))
        return sweep.process.poll() is not None

    while not watch():
        time.sleep(0.2)
    sweep.finish()
    assert "0 GPUs, 0 CPUs, up to 2 workers" in sweep.log()
    deadline = time.monotonic() + 120
    while node_counts[-1]:
        assert time.monotonic() < deadline, node_counts
        watch()
    assert node_counts[0] == node_counts[-1] == 0 and max(node_counts) == 2
    assert kinds == {"spot"}, "by their priority"
