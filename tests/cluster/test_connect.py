"""Which Ray is joined or started, and the workers that its devices allow."""

import signal
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from prefixray.cluster.connect import Cluster, connected
from prefixray.cluster.nodes import AUTOSCALER_FILE
from prefixray.errors import SweepFailed, UserError
from prefixray.system.exit_codes import interruptible


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


@pytest.mark.parametrize("num_failures", [1, 2])
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
            told = r"^Ray did not start .* tried twice: The current node timed out during startup\.; end other work"
            with pytest.raises(SweepFailed, match=told), connected("local"):
                pass
        signal.signal(signal.SIGTERM, ours)


def test_who_has_no_token_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str, **_: object) -> None:
        raise AuthenticationError("Token authentication is enabled but no authentication token was found.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    told = r"--address: 10.0.0.1:6379: does not let us in: Token .* no authentication"
    with pytest.raises(UserError, match=told), connected("10.0.0.1:6379"):
        pass


def test_a_worker_asks_for_a_gpu_or_for_all_its_threads() -> None:
    common = {"address": "auto", "namespace": "n", "num_cpus": 8, "num_gpus": 0, "num_workers": 0, "most_workers": 2}
    on_gpu = Cluster(**common, device="cuda", num_threads=4, trial_resources={"trial": 1.0})  # type: ignore[arg-type]
    on_cpu = Cluster(**common, device="cpu", num_threads=4, trial_resources={"trial": 1.0})  # type: ignore[arg-type]
    assert on_gpu.worker_resources == {"num_gpus": 1, "num_cpus": 1}
    assert on_cpu.worker_resources == {"num_cpus": 4}
    assert str(on_gpu) == "the Ray cluster at auto: 0 GPUs, 8 CPUs, up to 2 workers"
