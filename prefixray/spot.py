"""Watch for the notice that the cloud takes this machine back, then tell Ray, so that the work goes on elsewhere.

python -m prefixray.spot --address $RAY_HEAD_IP:6379     # on every spot machine of a cluster: see cluster.yaml
"""

import json
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Annotated, Literal, assert_never

import typer

from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave

POLL_SECONDS = 5.0  # as AWS advises
_TIMEOUT = 2.0
_METADATA = "http://169.254.169.254"  # the metadata server of either cloud
_GCP_SECONDS = 30.0  # from GCP's notice to the end of the machine
_TOKEN_SECONDS = 21600

Cloud = Literal["aws", "gcp"]


@dataclass(frozen=True)
class Notice:
    """The notice that the machine is taken back."""

    text: str  # the cloud's word for it
    seconds: float  # that are left


def watch(
    address: Annotated[str, typer.Option(help="Ray's control service: HEAD:6379")],
    *,
    cloud: Annotated[Cloud, typer.Option(help="the cloud that gives notice")] = "aws",
    node: Annotated[
        str | None, typer.Option(help="the id of this machine's Ray node; if not given, found by its address")
    ] = None,
    metadata: Annotated[str, typer.Option(help="the metadata server to ask")] = _METADATA,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="the time between two looks")] = POLL_SECONDS,
) -> int:
    """Watch until the notice comes, then drain this node; returns 1 where Ray has not taken note until the end."""
    while (notice := read_notice(cloud, metadata)) is None:
        time.sleep(every)
    from prefixray.cluster.nodes import drain_in_time

    ip = _own_ip(address)
    print(f"{ip} is taken back in {notice.seconds:.0f} s: {notice.text}", flush=True)
    if not drain_in_time(address, ip, node=node, reason=notice.text, seconds=notice.seconds):
        print(f"{address}: Ray does not answer, knows no node at {ip}, or does not let it go", file=sys.stderr)
        return 1
    return 0


def read_notice(cloud: Cloud, metadata: str) -> Notice | None:
    """The notice of the machine's metadata server; None where there is none, or the server does not answer now."""
    try:
        match cloud:
            case "aws":
                return _read_aws(metadata)
            case "gcp":
                answer = _get(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
                return Notice("preempted", _GCP_SECONDS) if answer.strip() == "TRUE" else None
            case _:
                assert_never(cloud)
    except OSError:  # among them HTTP's 404: there is no notice
        return None
    except (HTTPException, LookupError, TypeError, ValueError):  # half an answer, or one that is no notice
        return None


def _read_aws(metadata: str) -> Notice:
    """Ask by IMDSv2: first for a session's token, then for the instance action, which exists once there is a notice."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
    token = _get(f"{metadata}/latest/api/token", lifetime, method="PUT")
    answer = _get(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    action = json.loads(answer)  # {"action": "terminate", "time": "2026-11-24T17:02:07Z"}
    at = datetime.fromisoformat(action["time"])
    return Notice(action["action"], max(0.0, (at - datetime.now(UTC)).total_seconds()))


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        text: str = answer.read().decode("utf-8")
    return text


def _own_ip(address: str) -> str:
    """The IP from which this machine reaches `address`; by that one Ray knows this machine."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


main = Entry(watch, "python -m prefixray.spot", __doc__)

if __name__ == "__main__":
    leave(main)
