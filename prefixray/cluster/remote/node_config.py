"""Check the descriptions of machines in a cluster's file, which Ray hands on to the cloud unread.

For AWS they are checked against botocore's own model of the call that Ray makes, without a network; for GCP by the
names of their keys alone.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from prefixray.system.yaml_document import Document, Key, Value, shown

_RAYS_OWN = ("SubnetIds",)  # a key for Ray itself, which chooses one of the subnets
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
_OPEN_ENDED = 20  # names in an enumeration that still grows, as instance types do: botocore may not know the newest


class _Shape(Protocol):
    """The part of botocore's description of a value that is used here."""

    type_name: str
    members: Mapping[str, "_Shape"]
    member: "_Shape"
    enum: Sequence[str]


def check_node_configs(document: Document, keys: Sequence[Key], provider: str) -> None:
    """Add what a cloud would refuse in the descriptions at these keys; other providers are not checked."""
    if provider == "gcp":
        for key in keys:
            for name in mapping_or_empty(document.at(key)):
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
    """The input of EC2's RunInstances; None where botocore is not installed."""
    try:
        from botocore.session import get_session  # type: ignore[import-untyped]
    except ImportError:
        return None
    shape: _Shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return shape


def _check(document: Document, key: Key, shape: _Shape, extra: Sequence[str] = ()) -> None:
    """Check a value against its shape, and what is inside."""
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


def mapping_or_empty(value: Value) -> dict[str, Value]:
    """The value where it is a mapping; else an empty one."""
    return value if isinstance(value, dict) else {}
