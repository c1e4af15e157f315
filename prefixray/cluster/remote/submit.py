"""Start a sweep on a cluster from elsewhere: its driver is a Ray job on the head, and outlives this command.

The way to the head is an SSH tunnel to its dashboard, which answers on 127.0.0.1 alone and requires the token. A sweep
that runs already is shown, not started: the same command starts it, and shows it again.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from prefixray.cluster.remote.cluster_file import HOME, ClusterFile, check_cluster
from prefixray.config.schema import SweepConfig
from prefixray.errors import UserError
from prefixray.metrics.own import local_source

TUNNEL_SECONDS = 120.0  # until the head is found and the tunnel stands
_STOP_SECONDS = 60  # that `ray job stop` leaves the driver, for checkpoints and for MLflow
STATE_SECONDS = 30.0  # from a job's last line to its end
MOST_BYTES = 200 << 20  # of local files that are sent along
_IGNORED = shutil.ignore_patterns(".gitignore", ".rayignore")  # by them Ray would leave out data
_OVER = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


def run_on_cluster(config: SweepConfig, file: Path, cluster: Path, options: Sequence[str], shown: TextIO) -> int:
    """Start the sweep on the cluster's head, or find it there; show its output, and return the driver's exit code.

    `options` are options of the command there. Raises `UserError` where the cluster's file has problems, its head
    cannot be reached, or a file of the sweep cannot be sent.
    """
    checked = check_cluster(cluster)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with tunnel(cluster) as url:
        client = _client(url, cluster)
        job = running_job(client, config.name)
        if job is None:
            job, state = submit(client, config, file, options), f"started on {checked.name}"
        else:
            state = f"runs on {checked.name} already, with the file it was started with"
        try:
            print(f"{job}: {state}", file=shown, flush=True)
            asyncio.run(_show(client, job, shown))
            return _exit_code(client, job, checked, config.name, shown)
        except (KeyboardInterrupt, RuntimeError, OSError) as error:
            why = "" if isinstance(error, KeyboardInterrupt) else f"the connection broke ({error}); "
            print(f"\n{why}{_goes_on(job, checked)}", file=sys.stderr)
            return 130


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """The URL of the head's dashboard on this machine, through Ray's own SSH tunnel with the cluster's own keys."""
    port = _free_port()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            tunnel_command(cluster, port), stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + TUNNEL_SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    printed.seek(0)
                    lines = [line.strip() for line in printed.read().splitlines() if line.strip()]
                    raise UserError(f"{cluster}: no way to its head; is it up (ray up {cluster})?", *lines[-5:])
                time.sleep(0.5)
            yield url
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children: Ray's command would leave its ssh behind, and so the tunnel."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for inner in psutil.Process(process.pid).children(recursive=True):
            inner.terminate()
    process.terminate()
    process.wait()


def tunnel_command(cluster: Path, port: int) -> list[str]:
    """The command that forwards a port of this machine to the dashboard on the head."""
    return [sys.executable, "-m", "ray.scripts.scripts", "dashboard", str(cluster), "--port", str(port)]


def running_job(client: JobSubmissionClient, sweep: str) -> str | None:
    """The job that drives a sweep now; None where there is none."""
    jobs: list[JobDetails] = client.list_jobs()
    running = [job for job in jobs if _is_of(job, sweep) and job.status not in _OVER]
    return max((str(job.submission_id) for job in running), default=None)


def submit(client: JobSubmissionClient, config: SweepConfig, file: Path, options: Sequence[str]) -> str:
    """Send the sweep's file, the local files that it names by a relative path, and modules with metrics.

    Then the driver is started on the head. An absolute path names a file on the cluster. Returns the job's id.
    """
    own = [local_source(metric) for metric in config.final.named_metrics]
    named = (str(file), config.base, *config.task.paths.values(), *(source for source in own if source is not None))
    local = [path for path in named if not Path(path).is_absolute() and Path(path).exists()]
    outside = [path for path in local if ".." in Path(path).parts]
    if outside or Path(file).is_absolute():
        name = outside[0] if outside else str(file)
        raise UserError(f"{name}: must lie below the folder that the command runs in, as it will there")
    for path in local:
        _check_is_no_result(path, config.name)
    size = sum(_size(Path(path)) for path in local)
    if size > MOST_BYTES:
        raise UserError(
            f"{file}: names {size / 2**20:.0f} MiB of local files, above {MOST_BYTES >> 20}: copy them to the "
            "cluster's file system (ray rsync-up), and name them by their absolute path there"
        )
    command = shlex.join(["python", "-m", "prefixray.sweep", str(file), *options])
    with tempfile.TemporaryDirectory() as folder:
        for path in local:
            _copy(Path(path), Path(folder) / path)
        whole = [path for path in local if Path(path).is_dir() and Path(path).parts[:1] not in ((), ("runs",))]
        return _submit(client, config.name, f"{_unpack(config.name, whole)} && exec {command}", folder)


def _check_is_no_result(path: str, sweep: str) -> None:
    """Refuse what lies in the results of another sweep: there, it would be written into those of the cluster's."""
    parts = Path(path).parts
    if parts[0] == "runs" and len(parts) > 1 and parts[1] != sweep and Path("runs", parts[1], "sweep.json").is_file():
        problem = f"is sent into runs/{parts[1]} of the cluster, whose sweep may still write there"
        remedy = "copy it to another folder and name that, or name what is there by its absolute path"
        raise UserError(f"{path}: {problem}: {remedy}")


def _unpack(sweep: str, whole: Sequence[str]) -> str:
    """The shell command that puts what was sent into a folder of the sweep's own on the head, and goes there.

    So no file of another sweep is overwritten. The folders `whole` have then what was sent now, and nothing of an
    earlier submission. The results are in one folder, `runs`, for all sweeps.
    """
    own = f'"${{{HOME}:?}}"/sweeps/{shlex.quote(sweep)}'
    older = "".join(f" {own}/{shlex.quote(path)}" for path in whole)
    return (
        f'mkdir -p {own} "${HOME}"/runs && ln -sfn ../../runs {own}/runs && rm -rf --{older} && '
        f"tar -cf - . | tar --keep-directory-symlink -xf - -C {own} && cd {own}"
    )


def _submit(client: JobSubmissionClient, sweep: str, entrypoint: str, folder: str) -> str:
    """Start the job; a head that has just come up gets the time to start its job server."""
    deadline = time.monotonic() + TUNNEL_SECONDS
    while True:
        try:
            job: str = client.submit_job(
                entrypoint=entrypoint,
                submission_id=f"{_prefix(sweep)}{time.strftime('%Y%m%d-%H%M%S')}",
                metadata={"sweep": sweep},
                runtime_env={"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise UserError(f"the head does not take the job: {' '.join(str(error).split())}") from None
            time.sleep(2.0)
        else:
            return job


async def _show(client: JobSubmissionClient, job: str, shown: TextIO) -> None:
    import aiohttp  # it is installed where Ray has a job server

    try:
        async for text in client.tail_job_logs(job):
            shown.write(text)
            shown.flush()
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error)) from error


def _exit_code(client: JobSubmissionClient, job: str, cluster: ClusterFile, sweep: str, shown: TextIO) -> int:
    """Wait for the job's final state, which comes a moment after its last line, and say how to fetch the results.

    Raises `ConnectionError` where that state does not come: the line was not the last one.
    """
    deadline = time.monotonic() + STATE_SECONDS
    while (status := client.get_job_status(job)) not in _OVER:
        if time.monotonic() > deadline:
            raise ConnectionError("the job server closed it")
        time.sleep(0.5)
    details = client.get_job_info(job)
    code = 0 if status is JobStatus.SUCCEEDED else details.driver_exit_code
    if code is None or status is JobStatus.STOPPED:
        print(f"{job}: {status.lower()}: {details.message}", file=sys.stderr)
    elif code in (0, 1):  # also where an arm has failed, there is a table
        folder = f"{cluster.home}/runs/{sweep}/"
        fetch = f"mkdir -p runs && ray rsync-down {shlex.quote(str(cluster.path))} {folder} runs/{sweep}/"
        print(f"\nto have it here: {fetch}", file=shown)
    return code or int(status is not JobStatus.SUCCEEDED)


def _goes_on(job: str, cluster: ClusterFile) -> str:
    stop = f"ray exec {shlex.quote(str(cluster.path))} 'ray job stop {job}'"
    return f"the sweep goes on there; the same command shows it again; to stop it: {stop}"


def _client(url: str, cluster: Path) -> JobSubmissionClient:
    try:
        return JobSubmissionClient(url)
    except (RayError, RuntimeError, ConnectionError) as error:  # no token, an older Ray, nobody there
        reason = " ".join(str(error).split())
        raise UserError(f"{cluster}: its head does not let us in: {reason}") from None


def _prefix(sweep: str) -> str:
    return f"prefixray-{sweep}-"


def _is_of(job: JobDetails, sweep: str) -> bool:
    return (job.metadata or {}).get("sweep") == sweep and str(job.submission_id).startswith(_prefix(sweep))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return sum(file.stat().st_size for file in files)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, dirs_exist_ok=True, ignore=_IGNORED)
    else:
        shutil.copyfile(path, to)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    """Whether a server answers, be it by asking for a token."""
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
