"""The watcher of a spot machine: it speaks to a real HTTP server that stands for the cloud's metadata service."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as Machines
from ray.exceptions import RpcError

from prefixray.cluster import nodes
from prefixray.cluster.nodes import present
from prefixray.spot import Notice, read_notice, watch

TOKEN = "AQAEAK"


class Metadata(ThreadingHTTPServer):
    """IMDSv2 and GCP's service, as far as spot notices go; `notice` is what the cloud has to say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.notice: str | None = None
        self.num_asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        is_token = self.path == "/latest/api/token" and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._say(200 if is_token else 404, TOKEN)

    def do_GET(self) -> None:
        self.server.num_asked += 1
        match self.path:
            case "/latest/meta-data/spot/instance-action":
                if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                    self._say(401, "")
                else:
                    self._say(404 if self.server.notice is None else 200, self.server.notice or "")
            case "/computeMetadata/v1/instance/preempted":
                is_google = self.headers["Metadata-Flavor"] == "Google"
                self._say(200 if is_google else 403, "FALSE" if self.server.notice is None else "TRUE")
            case _:
                self._say(404, "")

    def _say(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _in(seconds: float) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return f'{{"action": "terminate", "time": "{at:%Y-%m-%dT%H:%M:%SZ}"}}'


def test_awss_notice_says_when(metadata: Metadata) -> None:
    assert read_notice("aws", metadata.url) is None and metadata.num_asked == 1
    metadata.notice = _in(120)
    notice = read_notice("aws", metadata.url)
    assert notice is not None and notice.text == "terminate" and 100 < notice.seconds <= 120
    metadata.notice = _in(-5)
    assert read_notice("aws", metadata.url) == Notice("terminate", 0.0)


def test_gcps_notice_leaves_half_a_minute(metadata: Metadata) -> None:
    assert read_notice("gcp", metadata.url) is None
    metadata.notice = "yes"
    assert read_notice("gcp", metadata.url) == Notice("preempted", 30.0)


def test_a_metadata_service_that_does_not_answer_is_asked_again_later(metadata: Metadata) -> None:
    metadata.shutdown()
    metadata.server_close()
    assert read_notice("aws", metadata.url) is None


@pytest.mark.parametrize("said", ["<html>busy</html>", "{}", "[]", '{"action": "stop", "time": "soon"}'])
def test_what_is_no_notice_does_not_end_the_watch(metadata: Metadata, said: str) -> None:
    metadata.notice = said
    assert read_notice("aws", metadata.url) is None


def test_an_answer_that_breaks_off_does_not_end_the_watch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nAQ")

        threading.Thread(target=answer, daemon=True).start()
        assert read_notice("aws", f"http://127.0.0.1:{server.getsockname()[1]}") is None


@pytest.mark.parametrize("seconds", [60, 0])
def test_a_control_service_that_does_not_answer_is_asked_again_until_the_machine_goes(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    metadata.notice = _in(seconds)
    answers, drained = [RpcError("UNAVAILABLE"), None, "node"], []

    def node_at(address: str, ip: str) -> str | None:
        answer = answers.pop(0)
        if isinstance(answer, RpcError):
            raise answer
        return answer

    monkeypatch.setattr(nodes, "_DRAIN_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "node_at", node_at)
    monkeypatch.setattr(nodes, "drain", lambda *given: drained.append(given) or True)
    code = watch("127.0.0.1:6379", metadata=metadata.url)
    if seconds:
        ((address, node, reason, left),) = drained
        assert code == 0 and (address, node, reason) == ("127.0.0.1:6379", "node", "terminate") and 50 < left < 60
    else:
        assert code == 1 and not drained and len(answers) == 2, "it is tried once, however late"


@pytest.mark.ray
@pytest.mark.slow
def test_the_notice_drains_the_node_in_a_real_cluster(metadata: Metadata) -> None:
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        spot = machines.add_node(num_cpus=1)
        ray.init(address=machines.address)
        command = [sys.executable, "-m", "prefixray.spot", "--address", machines.address, "--node", spot.node_id]
        watcher = subprocess.Popen(
            [*command, "--metadata", metadata.url, "--every", "0.1"], stdout=subprocess.PIPE, text=True
        )
        while metadata.num_asked < 2:
            assert watcher.poll() is None
        assert spot.node_id in present()
        metadata.notice = _in(600)
        said, _ = watcher.communicate(timeout=60)
        assert watcher.returncode == 0 and "terminate" in said
        assert spot.node_id not in present()  # it is being drained, or, as it was idle, gone already
    finally:
        ray.shutdown()
        machines.shutdown()
        for process in psutil.Process().children(recursive=True):
            process.kill()
