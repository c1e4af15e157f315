"""What a cloud takes as the description of a machine: the part of a cluster's file that Ray hands on unread.

AWS's is checked against botocore's own model of the call that Ray makes, without a network; GCP's by its names alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from prefixray.system.yaml_document import Document, Key, Value, shown

_RAYS_OWN = ("SubnetIds",)  # Ray chooses one of them
_GCP = tuple(
    """
    advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description disks displayDevice
    guestAccelerators hostname keyRevocationActionType labels machineType metadata minCpuPlatform name
    networkInterfaces networkPerformanceConfig params privateIpv6GoogleAccess reservationAffinity resourcePolicies
    scheduling serviceAccounts shieldedInstanceConfig sourceInstanceTemplate sourceMachineImage tags zone
    """.split()  # noqa: SIM905
)
_KINDS: Mapping[str, type[int] | type[float] | type[str]] = {
    "string": str,
    "integer": int,
    "long": int,
    "boolean": bool,
    "float": float,
    "double": float,
}
_OPEN_ENDED = 20  # a list of names this long, of instance types say, grows: a name may be younger than botocore


class _Shape(Protocol):
    """botocore's description of a value, as far as it is used here."""

    type_name: str
    members: Mapping[str, "_Shape"]
    member: "_Shape"
    enum: Sequence[str]


def check_node_configs(document: Document, keys: Sequence[Key], provider: str) -> None:
    """Add what a cloud would refuse of the machines described at these keys; of other providers nothing is known."""
    if provider == "gcp":
        for key in keys:
            for name in _mapping(document.at(key)):
                if name not in _GCP:
                    document.reject((*key, name), _GCP)
    if provider == "aws":
        shape = _run_instances()
        for key in keys:
            if shape is None:
                document.complain(key, "cannot be checked without boto3: pip install 'prefixray[cluster]'")
            else:
                _check(document, key, shape, extra=_RAYS_OWN)


@cache
def _run_instances() -> _Shape | None:
    """What EC2's RunInstances takes; None where botocore is not installed."""
    try:
        from botocore.session import get_session  # type: ignore[import-untyped]
    except ImportError:
        return None
    shape: _Shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return shape


def _check(document: Document, key: Key, shape: _Shape, extra: Sequence[str] = ()) -> None:
    """Walk the value and the shape down together."""
    value = document.at(key)
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in value:
            if name in shape.members:
                _check(document, (*key, name), shape.members[name])
            elif name not in extra:
                document.reject((*key, name), shape.members)
    elif shape.type_name == "list" and isinstance(value, list):
        for index in range(len(value)):
            _check(document, (*key, index), shape.member)
    elif shape.type_name in ("structure", "list"):
        document.refuse(key, f"must be a {'mapping' if shape.type_name == 'structure' else 'list'}")
    elif (kind := _KINDS.get(shape.type_name)) is not None:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            document.refuse(key, f"must be a {shape.type_name}")
        elif kind is str and len(shape.enum) in range(1, _OPEN_ENDED) and value not in shape.enum:
            document.refuse(key, f"must be one of {', '.join(map(shown, shape.enum))}")


def _mapping(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}
