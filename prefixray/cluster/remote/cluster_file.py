"""A cluster's file, as `ray up` takes it, checked without a network: what Ray's own validator says, and what it misses.

`ray up` has no dry run, and what it does not see costs a started machine, a lost sweep or a port that the world can
reach. So more is asked of a file here than Ray asks: each rule below says why.
"""

import io
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from prefixray.cluster.remote.node_config import check_node_configs
from prefixray.system.yaml_document import Document, Key, Value, read_document

HOME = "PREFIXRAY_HOME"
"""The variable that tells where the sweeps lie: on a file system that all machines see."""
_COMMON = ("initialization_commands", "setup_commands")
_HEAD = (*_COMMON, "head_setup_commands", "head_start_ray_commands")
_WORKERS = (*_COMMON, "worker_setup_commands", "worker_start_ray_commands")
_HEAD_OPTIONS = "--num-cpus=0 --resources='{\"trial\": 256}'"
_TAKES_A_VALUE = ("-r", "-c", "-i", "-p", "-t", "-f", "--python", "--index-url", "--extra-index-url", "--requirement")
_WORLD = ("0.0.0.0/0", "::/0")
_TYPES: Key = ("available_node_types",)


@dataclass(frozen=True)
class ClusterFile:
    """What of a checked file others need to know."""

    path: Path
    name: str
    most_workers: int  # machines besides the head
    home: str  # where the sweeps lie on its machines

    def __str__(self) -> str:
        return f"{self.path}: cluster {self.name}, a head and up to {self.most_workers} workers"


@dataclass(frozen=True)
class _Command:
    key: Key
    text: str


def check_cluster(path: Path) -> ClusterFile:
    """Read a cluster's file; raises `UserError` with all that is wrong with it, a line each."""
    document = read_document(path)
    _check_as_ray_does(document, path)
    _check_counts(document)
    _check_head(document)
    _check_files(document)
    _check_commands(document)
    _check_access(document)
    _check_machines(document)
    _check_home(document)
    _check_edited(document)
    document.raise_problems()
    most = _int(document.values.get("max_workers")) or len(_list(_at(document, ("provider", "worker_ips"))))
    return ClusterFile(path, str(document.values["cluster_name"]), most, _homes(_commands(document, _HEAD))[-1])


def _check_as_ray_does(document: Document, path: Path) -> None:
    """Ray's schema, all of its problems with their lines; then, where it is met, the rest of what Ray checks."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    errors = list(jsonschema.Draft7Validator(schema).iter_errors(document.values))
    for error in errors:
        key: Key = tuple(error.absolute_path)
        match error.validator:
            case "additionalProperties":
                for name in [name for name in error.instance if name not in error.schema.get("properties", {})]:
                    document.reject((*key, name), error.schema.get("properties", {}))
            case "required":
                for name in [name for name in error.validator_value if name not in error.instance]:
                    document.miss((*key, name))
            case _:
                document.complain(key, error.message)
    if errors:
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            validate_config(prepare_config(yaml.safe_load(path.read_text(encoding="utf-8-sig"))))
    except Exception as error:  # of whatever kind: Ray's checks end in what the file happens to break
        reason = str(error) or " ".join(said.getvalue().split())
        document.complain((), f"Ray refuses it: {reason or type(error).__name__}")


def _check_counts(document: Document) -> None:
    """Machines that could never be started: Ray takes the smaller number without a word."""
    overall = _int(document.values.get("max_workers"))
    for name, node in _node_types(document).items():
        low, high = _int(node.get("min_workers")) or 0, _int(node.get("max_workers"))
        if high is not None and low > high:
            document.complain((*_TYPES, name, "min_workers"), f"{low}: is above the type's max_workers ({high})")
        if high is not None and overall is not None and high > overall:
            document.complain((*_TYPES, name, "max_workers"), f"{high}: is above the cluster's max_workers ({overall})")
    if overall is None and not _is_local(document):
        document.miss(("max_workers",))  # Ray's default of 2 is nobody's choice


def _check_head(document: Document) -> None:
    """The head drives: a worker or another's task on it would fight with the driver, and trials belong nowhere else."""
    if _is_local(document):  # the file describes no machines: `ray start` itself says what the head offers
        if starts := [c for c in _commands(document, _HEAD) if "ray start" in c.text and "--head" in c.text]:
            for option in ("--num-cpus=0", '"trial"'):
                if option not in starts[-1].text:
                    document.complain(starts[-1].key, f"the head's `ray start` must have {_HEAD_OPTIONS}")
                    break
        return
    head = document.values.get("head_node_type")
    if not isinstance(head, str) or head not in (types := _node_types(document)):
        return  # Ray has said so
    resources = _mapping(types[head].get("resources"))
    key: Key = (*_TYPES, head, "resources")
    if resources.get("CPU") != 0:
        document.complain(key, "the head must offer CPU: 0, so that no worker is started there")
    if not _int(resources.get("trial")):
        document.complain(key, "the head must offer trial: 256 or so, the place of the trials' thin processes")
    if _int(types[head].get("max_workers")):
        document.complain((*_TYPES, head, "max_workers"), "must be 0: workers of the head's type would hold trials")


def _check_files(document: Document) -> None:
    """What `ray up` copies must be here, and results must not be copied along."""
    mounts = _mapping(document.values.get("file_mounts"))
    folders = False
    for remote, local in mounts.items():
        path = Path(os.path.expanduser(str(local)))
        folders = folders or path.is_dir()
        if not path.exists():
            hint = "; make it with `ray get-auth-token --generate`" if path.name == "auth_token" else ""
            document.complain(("file_mounts", remote), f"{local}: no such file or folder here{hint}")
    if folders and "runs" not in _list(document.values.get("rsync_exclude")):
        document.complain(("rsync_exclude",), "must have runs, or results are copied to every machine")
    for name in ("ssh_private_key", "ssh_public_key"):
        named = _at(document, ("auth", name))
        if named is not None and not Path(os.path.expanduser(str(named))).is_file():
            document.complain(("auth", name), f"{named}: no such file here")


def _check_commands(document: Document) -> None:
    """Nothing unpinned is installed, since machines of one cluster come days apart; and the head scales."""
    for command in _commands(document, (*_HEAD, *_WORKERS)):
        for requirement in _unpinned(command.text):
            document.complain(command.key, f"{requirement}: is installed in any version: pin it (==), or bound it (<)")
    for keys, what in ((_HEAD, "--autoscaling-config"), (_WORKERS, "--address")):
        starts = [command for command in _commands(document, keys) if "ray start" in command.text]
        if not any(what in command.text for command in starts):
            document.complain((keys[-1],), f"must `ray start` with {what}: without it no worker ever comes")


def _check_access(document: Document) -> None:
    """Whoever reaches Ray's ports runs what he likes, unless he needs a token; and none is open to the world."""
    for keys in (_HEAD, _WORKERS):
        if not any("RAY_AUTH_MODE=token" in command.text for command in _commands(document, keys)):
            document.complain((keys[-1],), "must have RAY_AUTH_MODE=token, here or in setup_commands")
    if not any(remote.endswith(".ray/auth_token") for remote in _mapping(document.values.get("file_mounts"))):
        document.complain(("file_mounts",), "must bring the token: /home/USER/.ray/auth_token: ~/.ray/auth_token")
    for command in _commands(document, (*_HEAD, *_WORKERS)):
        if found := re.search(r"--(?:dashboard-)?host[= ](?:0\.0\.0\.0|::)(?!\S)", command.text):
            document.complain(command.key, f"{found[0]}: opens a port to the world; take 127.0.0.1 and a tunnel")
    rules = _list(_at(document, ("provider", "security_group", "IpPermissions")))
    for index, rule in enumerate(rules):
        if any(world in json.dumps(rule) for world in _WORLD):
            document.complain(("provider", "security_group", "IpPermissions", index), "is open to the world")
    if _at(document, ("provider", "type")) == "aws":
        for name, node in _node_types(document).items():
            config = _mapping(node.get("node_config"))
            if not config.get("SecurityGroupIds") and not config.get("NetworkInterfaces"):
                problem = "needs SecurityGroupIds: the group that Ray makes otherwise opens SSH to the world"
                document.complain((*_TYPES, name, "node_config"), problem)


def _check_machines(document: Document) -> None:
    """Typos in what a cloud is asked for, and spot machines whose end nobody would hear coming."""
    provider = str(_at(document, ("provider", "type")))
    types = _node_types(document)
    keys: list[Key] = [(*_TYPES, name, "node_config") for name, node in types.items() if "node_config" in node]
    check_node_configs(document, keys, provider)
    spot = [name for name, node in types.items() if _is_spot(_mapping(node.get("node_config")))]
    if spot and not any("prefixray.spot" in command.text for command in _commands(document, _WORKERS)):
        problem = f"must start python -m prefixray.spot: {', '.join(spot)} are taken back on short notice"
        document.complain(("worker_start_ray_commands",), problem)


def _check_home(document: Document) -> None:
    """Studies, locks and checkpoints outlive a machine only on a file system that is mounted by all of them."""
    for keys in (_HEAD, _WORKERS):
        commands = _commands(document, keys)
        homes = _homes(commands)
        mounted = {point for command in commands for point in _mount_points(command.text)}
        if not homes:
            problem = f"must export {HOME}=FOLDER, here or in setup_commands: where the sweeps lie"
            document.complain((keys[-1],), problem)
        elif not any(Path(homes[-1]).is_relative_to(point) for point in mounted):
            problem = f"{HOME}={homes[-1]}: no command mounts it (mount ... {homes[-1]}, or mountpoint {homes[-1]})"
            document.complain((keys[-1],), problem)


def _homes(commands: Sequence[_Command]) -> list[str]:
    found = (re.search(rf"{HOME}=[\"']?([^\s;\"']+)", command.text) for command in commands)
    return [match[1] for match in found if match is not None]


def _check_edited(document: Document) -> None:
    """What of a template is still as it came."""
    for key, text in _texts((), document.values):
        if found := re.search(r"[^\s/:]*YOUR-[A-Z]+[^\s/:]*", text):
            document.complain(key, f"{found[0]}: put your own in its place")


def _texts(key: Key, value: Value) -> Iterator[tuple[Key, str]]:
    """Every text in the file, and its place."""
    children: Iterable[tuple[str | int, Value]] = ()
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for part, child in children:
        yield from _texts((*key, part), child)


def _commands(document: Document, keys: Sequence[str]) -> list[_Command]:
    """All shell commands of these keys, in their order."""
    found = []
    for key in keys:
        for index, text in enumerate(_list(document.values.get(key))):
            found.append(_Command((key, index), str(text)))
    if keys == _WORKERS:
        for name, node in _node_types(document).items():
            for index, text in enumerate(_list(node.get("worker_setup_commands"))):
                found.append(_Command((*_TYPES, name, "worker_setup_commands", index), str(text)))
    return found


def _unpinned(command: str) -> Iterator[str]:
    """What `pip install` in a shell command would take in whatever version is the newest."""
    for part in re.split(r"&&|\|\||[;|\n()]", command):
        if (found := re.search(r"\bpip3?\s+install\s+(.*)", part)) is None:
            continue
        words = iter(_words(found[1]))
        for word in words:
            if word.startswith("-"):
                if word in _TAKES_A_VALUE:
                    next(words, None)
            elif not re.search(r"[=<>@/]|\.whl$|^\.", word) or re.fullmatch(r"[^<=@/]*>=?[^<,]*", word):
                yield word


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # cut inside a quotation
        return command.replace("'", " ").replace('"', " ").split()


def _mount_points(command: str) -> list[str]:
    """The folders that a shell command mounts, or makes sure are mounted."""
    parts = re.split(r"&&|\|\||[;|\n()]", command)
    mounts = [part for part in parts if re.search(r"\b(?:mount|mountpoint)\s", part)]
    return [words[-1] for part in mounts if (words := part.split()) and words[-1].startswith("/")]


def _is_spot(config: dict[str, Value]) -> bool:
    aws = _mapping(config.get("InstanceMarketOptions")).get("MarketType") == "spot"
    gcp = _mapping(config.get("scheduling"))
    return aws or gcp.get("provisioningModel") == "SPOT" or gcp.get("preemptible") is True


def _is_local(document: Document) -> bool:
    return _at(document, ("provider", "type")) == "local"


def _node_types(document: Document) -> dict[str, dict[str, Value]]:
    return {name: _mapping(node) for name, node in _mapping(document.values.get("available_node_types")).items()}


def _at(document: Document, names: Sequence[str]) -> Value:
    """What stands at these keys; None where nothing does."""
    value: Value = document.values
    for name in names:
        value = _mapping(value).get(name)
    return value


def _mapping(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}


def _list(value: Value) -> list[Value]:
    return value if isinstance(value, list) else []


def _int(value: Value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
