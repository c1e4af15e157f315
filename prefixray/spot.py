"""Watch for the notice that a cloud takes this machine back, then tell Ray, which has its work go on elsewhere.

python -m prefixray.spot --address $RAY_HEAD_IP:6379     # on every spot machine of a cluster: see cluster.yaml
"""

import argparse
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Literal, assert_never

from prefixray.system.exit_codes import leave

POLL_SECONDS = 5.0  # as AWS advises
_TIMEOUT = 2.0
_METADATA = "http://169.254.169.254"  # of either cloud
_GCP_SECONDS = 30.0  # all the time that GCP leaves
_TOKEN_SECONDS = 21600

Cloud = Literal["aws", "gcp"]


@dataclass(frozen=True)
class Notice:
    """That the machine is taken back."""

    text: str  # what the cloud said
    seconds: float  # until then


def main(argv: Sequence[str] | None = None) -> int:
    """Watch until the notice comes, drain this node, and end; 1 where Ray knows no such node."""
    options = _parser().parse_args(argv)
    while (notice := read_notice(options.cloud, options.metadata)) is None:
        time.sleep(options.every)
    from prefixray.cluster.nodes import drain, node_at

    ip = _own_ip(options.address)
    print(f"{ip} is taken back in {notice.seconds:.0f} s: {notice.text}", flush=True)
    node = options.node or node_at(options.address, ip)
    if node is None or not drain(options.address, node, notice.text, notice.seconds):
        print(f"{options.address}: Ray knows no node at {ip}, or does not let it go", file=sys.stderr)
        return 1
    return 0


def read_notice(cloud: Cloud, metadata: str) -> Notice | None:
    """The notice, where the machine's metadata server has one; None where it has none, or does not answer now."""
    try:
        match cloud:
            case "aws":
                return _read_aws(metadata)
            case "gcp":
                said = _get(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
                return Notice("preempted", _GCP_SECONDS) if said.strip() == "TRUE" else None
            case _:
                assert_never(cloud)
    except OSError:  # HTTP's 404 is one too: there is no notice
        return None
    except (HTTPException, LookupError, TypeError, ValueError):  # half an answer, or another than a notice
        return None


def _read_aws(metadata: str) -> Notice:
    """IMDSv2: a token for the session, then the instance action, which is there when there is a notice."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
    token = _get(f"{metadata}/latest/api/token", lifetime, method="PUT")
    said = _get(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    action = json.loads(said)  # {"action": "terminate", "time": "2026-11-24T17:02:07Z"}
    at = datetime.fromisoformat(action["time"])
    return Notice(action["action"], max(0.0, (at - datetime.now(UTC)).total_seconds()))


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        text: str = answer.read().decode("utf-8")
    return text


def _own_ip(address: str) -> str:
    """The address from which this machine reaches that one: the one by which Ray knows it."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prefixray.spot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", required=True, help="Ray's control service: HEAD:6379")
    parser.add_argument("--cloud", choices=["aws", "gcp"], default="aws", help="whose notice (aws)")
    parser.add_argument("--node", help="the id of this machine's Ray node; else found by its address")
    parser.add_argument("--metadata", default=_METADATA, help="another metadata server than the cloud's")
    parser.add_argument("--every", type=float, default=POLL_SECONDS, metavar="SECONDS", help="between two looks (5)")
    return parser


if __name__ == "__main__":
    leave(main)
