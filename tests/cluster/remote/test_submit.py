"""A sweep started on a cluster from elsewhere: a head on this machine, with a job server that wants a token.

What is not run here is SSH: `tunnel` is replaced by the job server's own address, and tested for what it would run.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
import pytest
from ray.job_submission import JobStatus

from prefixray.cluster.remote import submit as submit_module
from prefixray.cluster.remote.submit import run_on_cluster, submit, tunnel, tunnel_command
from prefixray.config.load import load_sweep
from prefixray.config.schema import FinalConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

CLUSTER = """
cluster_name: small
provider: {type: local, head_ip: 127.0.0.1, worker_ips: [127.0.0.1]}
auth: {ssh_user: nobody}
file_mounts: {/home/me/.ray/auth_token: ~/.ray/auth_token}
setup_commands: [mountpoint FOLDER, export RAY_AUTH_MODE=token PREFIXRAY_HOME=FOLDER/home]
head_start_ray_commands:
  - >-
    ray start --head --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands: [ray start --address=$RAY_HEAD_IP:6379]
"""
SWEEP = """
name: small
base: {base}
task: {{name: custom, train: data/train.jsonl, dev: data/dev.jsonl, test: data/test.jsonl}}
train: {{batch_size: 4, num_steps: 100, precision: fp32}}
arms:
  prefix: {{preseqlen: {{int: [1, 20]}}, mid_dim: null, init_token: pub, learning_rate: 1e-3}}
search: {{num_trials: 4, concurrency: 2, rungs: [], seed: 3}}
final: {{num_seeds: 1, metric: test/bleu, num_beams: 2, max_new_tokens: 8}}
"""
CLIENT = """
import contextlib, sys
from prefixray.cluster.remote import submit
submit.tunnel = lambda cluster: contextlib.nullcontext("URL")  # in place of SSH
from prefixray.sweep import main
sys.exit(main())
"""


def test_the_tunnel_is_rays_own_and_a_head_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tunnel_command(Path("cluster.yaml"), 8266)[1:] == [
        *["-m", "ray.scripts.scripts", "dashboard", "cluster.yaml", "--port", "8266"]
    ]
    Path("cluster.yaml").write_text("cluster_name: x")
    with pytest.raises(UserError, match=r"no way to its head; is it up \(ray up cluster.yaml\)\?"):
        tunnel(Path("cluster.yaml")).__enter__()


def test_a_tunnel_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = "import http.server, sys; http.server.test(port=int(sys.argv[1]), bind='127.0.0.1')"
    ssh = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {serve!r}, sys.argv[1]])"  # as Ray has it
    monkeypatch.setattr(
        "prefixray.cluster.remote.submit.tunnel_command", lambda cluster, port: [sys.executable, "-c", ssh, str(port)]
    )
    monkeypatch.chdir(tmp_path)
    with tunnel(Path("cluster.yaml")) as url:
        port = int(url.rpartition(":")[2])
        listening = [c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"]  # type: ignore[union-attr]
        (process,) = map(psutil.Process, listening)  # type: ignore[arg-type]
    psutil.wait_procs([process], timeout=5)
    assert not process.is_running()


class PlayedHead:
    """The job server of a head, whose connection to us has its troubles."""

    def __init__(
        self, *, trouble: Exception | None = None, status: JobStatus = JobStatus.RUNNING, code: int | None = None
    ) -> None:
        self.trouble, self.status, self.code = trouble, status, code

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "prefix/0 started\n"
        if self.trouble is not None:
            raise self.trouble

    def get_job_status(self, job: str) -> JobStatus:
        return self.status

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(driver_exit_code=self.code, message="as it was")


@pytest.mark.parametrize(
    "head",
    [
        PlayedHead(trouble=RuntimeError("WebSocket connection closed unexpectedly with close code 1006")),
        PlayedHead(trouble=aiohttp.ServerDisconnectedError()),
        PlayedHead(),  # closed in good order, as by a dashboard that is started again
    ],
)
def test_a_connection_that_ends_before_the_job_is_told_and_the_sweep_goes_on(
    head: PlayedHead, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run_on(head, monkeypatch) == 130
    said = capsys.readouterr()
    assert "prefix/0 started" in said.out and "the connection broke" in said.err
    assert "the sweep goes on there; the same command shows it again" in said.err


@pytest.mark.parametrize(
    ("head", "code", "is_fetched"),
    [
        (PlayedHead(status=JobStatus.SUCCEEDED, code=0), 0, True),
        (PlayedHead(status=JobStatus.FAILED, code=1), 1, True),  # an arm is not in the table
        (PlayedHead(status=JobStatus.FAILED, code=2), 2, False),  # the file was refused
        (PlayedHead(status=JobStatus.STOPPED), 1, False),
    ],
)
def test_after_a_table_the_line_that_fetches_results_is_printed(
    head: PlayedHead, code: int, is_fetched: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run_on(head, monkeypatch) == code
    line = "to have it here: mkdir -p runs && ray rsync-down cluster.yaml /shared/runs/small/ runs/small/"
    assert (line in capsys.readouterr().out) == is_fetched


def _run_on(head: PlayedHead, monkeypatch: pytest.MonkeyPatch) -> int:
    """Show the sweep that runs on this head, to its end; the exit code."""
    checked = SimpleNamespace(name="small", path=Path("cluster.yaml"), home="/shared")
    monkeypatch.setattr(submit_module, "check_cluster", lambda cluster: checked)
    monkeypatch.setattr(submit_module, "tunnel", lambda cluster: contextlib.nullcontext("http://127.0.0.1:1"))
    monkeypatch.setattr(submit_module, "_client", lambda url, cluster: head)
    monkeypatch.setattr(submit_module, "running_job", lambda client, sweep: "prefixray-small-1")
    monkeypatch.setattr(submit_module, "STATE_SECONDS", 0.1)
    config: Any = SimpleNamespace(name="small")
    return run_on_cluster(config, Path("small.yaml"), Path("cluster.yaml"), [], sys.stdout)


@pytest.fixture
def laptop(tmp_path: Path, base_folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep, its data, a cluster's file and a token; the sweeps on the cluster lie in its `home`."""
    folder = tmp_path / "laptop"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    rows = [{"source": f"name : The {word}", "target": f"The {word} is a pub."} for word in ("Eagle", "Mill", "Vaults")]
    for split in ("train", "dev", "test"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "small.yaml").write_text(SWEEP.format(base=base_folders["llama"]))
    (folder / "cluster.yaml").write_text(CLUSTER.replace("FOLDER", str(tmp_path)))
    monkeypatch.setenv("HOME", str(folder))
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"], check=True, capture_output=True
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return folder


@pytest.fixture
def url(laptop: Path) -> Iterator[str]:
    """The job server of a head, for those who have the token."""
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    environment = {
        **os.environ,
        "PREFIXRAY_HOME": str(laptop.parent / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: a short path
        start = f"start --head --block --num-cpus=1 --port={port} --dashboard-port={dashboard} --temp-dir={folder}"
        # The agent takes jobs. At its usual port it would not start beside another Ray.
        options = [
            f"--dashboard-agent-listen-port={agent}",
            "--dashboard-host=127.0.0.1",
            "--object-store-memory=80000000",
        ]
        command = [sys.executable, "-m", "ray.scripts.scripts", *start.split(), *options]
        head = subprocess.Popen(command, env=environment)
        yield f"http://127.0.0.1:{dashboard}"
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(laptop: Path, url: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLIENT.replace("URL", url), "small.yaml", "--cluster", "cluster.yaml"]
    return subprocess.Popen(
        command,
        cwd=laptop,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def _wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_goes_on_when_the_laptop_closes_and_is_shown_again_not_started_twice(laptop: Path, url: str) -> None:
    home = laptop.parent / "home"
    answers = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/api/version"]
    _wait_for(lambda: subprocess.run(answers, capture_output=True, text=True).stdout not in ("000", ""))
    stranger = _start(laptop, url, {**os.environ, "RAY_AUTH_MODE": "disabled"})
    _, error = stranger.communicate(timeout=120)
    assert stranger.returncode == 2 and "its head does not let us in" in error and "Traceback" not in error, error

    first = _start(laptop, url, os.environ)
    assert first.stdout is not None
    job = first.stdout.readline()
    assert re.fullmatch(r"prefixray-small-[\d-]+: started on small\n", job), (job, first.communicate())
    _wait_for(lambda: list(home.glob("runs/small/trials/prefix/*/worker")))
    first.kill()  # the laptop closes
    first.communicate()
    second = _start(laptop, url, os.environ)
    assert second.stdout is not None
    assert "runs on small already" in second.stdout.readline()
    second.send_signal(signal.SIGINT)
    output, error = second.communicate(timeout=60)
    goes_on = "the sweep goes on there; the same command shows it again"
    assert second.returncode == 130 and goes_on in error, (output, error)
    third = _start(laptop, url, os.environ)
    output, error = third.communicate(timeout=240)
    assert third.returncode == 0, (output, error)
    assert "prefix/0 started" in output and "beam 2, 1 seed" in output and "ray rsync-down cluster.yaml" in output
    assert len(list((home / "runs" / "small" / "trials" / "prefix").iterdir())) == 4
    assert (home / "sweeps" / "small" / "data" / "train.jsonl").is_file() and not (laptop / "runs").exists()


def test_what_would_have_no_place_on_the_cluster_is_refused(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(laptop)
    config = load_sweep(Path("small.yaml"))
    monkeypatch.chdir(laptop / "data")
    with pytest.raises(UserError, match=r"\.\./small\.yaml: must lie below the folder"):
        submit(None, config, Path("../small.yaml"), [])  # type: ignore[arg-type]


def test_two_sweeps_that_are_sent_keep_their_own_files_and_share_the_folder_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, programs = tmp_path / "home", tmp_path / "bin"
    (home / "runs" / "first").mkdir(parents=True)  # of a sweep that has begun
    programs.mkdir()
    (programs / "python").write_text("#!/bin/sh\npwd\ncat data/train.jsonl runs/base/config.json\nls runs\n")
    (programs / "python").chmod(0o755)
    environment = {**os.environ, "PREFIXRAY_HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
    printed: list[list[str]] = []

    def submit_job(entrypoint: str, runtime_env: Mapping[str, str], **_: object) -> str:
        folder = runtime_env["working_dir"]
        ran = subprocess.run(
            ["bash", "-c", entrypoint], cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        printed.append(ran.stdout.splitlines())
        return "job"

    client: Any = SimpleNamespace(submit_job=submit_job)
    for name in ("first", "second", "first"):
        laptop = tmp_path / name
        for folder in ("data", "runs/base"):
            (laptop / folder).mkdir(parents=True, exist_ok=True)
        (laptop / "data" / "train.jsonl").write_text(f"{name}\n")
        (laptop / "runs" / "base" / "config.json").write_text("tuned\n")
        (laptop / "small.yaml").write_text("")
        monkeypatch.chdir(laptop)
        task = TaskConfig.model_validate(
            {"name": "custom", **dict.fromkeys(("train", "dev", "test"), "data/train.jsonl")}
        )
        config: Any = SimpleNamespace(name=name, base="runs/base", task=task, final=FinalConfig(metric="test/bleu"))
        submit(client, config, Path("small.yaml"), [])
    own = str(home / "sweeps")
    expected = [[f"{own}/{name}", name, "tuned", "base", "first"] for name in ("first", "second", "first")]
    assert printed == expected
    assert (home / "sweeps" / "first" / "data" / "train.jsonl").read_text() == "first\n"
    assert (home / "sweeps" / "second" / "runs").samefile(home / "runs")
