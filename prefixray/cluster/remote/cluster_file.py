"""Check a cluster's file for `ray up`, without a network: Ray's own rules, and further ones.

`ray up` has no dry run, and a mistake that it misses costs a started machine, a lost sweep or a port that is open to
the world. So this module asks more of a file than Ray does; each rule below says why.
"""

import io
import json
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

from prefixray.cluster.remote.node_config import check_node_configs, mapping_or_empty
from prefixray.system.path_or_hub import expanded
from prefixray.system.yaml_document import Document, Key, Value, read_document

HOME = "PREFIXRAY_HOME"
"""The environment variable with the folder of the sweeps, on a file system that all machines see."""
_COMMON = ("initialization_commands", "setup_commands")
_HEAD = (*_COMMON, "head_setup_commands", "head_start_ray_commands")
_WORKERS = (*_COMMON, "worker_setup_commands", "worker_start_ray_commands")
_TAKES_A_VALUE = ("-r", "-c", "-i", "-p", "-t", "-f", "--python", "--index-url", "--extra-index-url", "--requirement")
_SEPARATOR = re.compile(r"&&|\|\||[;|\n()]")  # of the commands in a line of shell
_WORLD = ("0.0.0.0/0", "::/0")
_TYPES: Key = ("available_node_types",)


@dataclass(frozen=True)
class ClusterFile:
    """The facts of a checked file that a submission needs."""

    path: Path
    name: str  # the cluster's
    most_workers: int  # machines besides the head
    home: str  # the folder of the sweeps on its machines

    def __str__(self) -> str:
        return f"{self.path}: cluster {self.name}, a head and up to {self.most_workers} workers"


@dataclass(frozen=True)
class _Command:
    key: Key
    text: str


def check_cluster(path: Path) -> ClusterFile:
    """Read a cluster's file; raises `UserError` with all its problems, a line each."""
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
    """Check Ray's schema, every problem with its line; where the file meets it, run Ray's other checks."""
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
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            validate_config(prepare_config(yaml.safe_load(path.read_text(encoding="utf-8-sig"))))
    except Exception as error:  # of any kind: Ray's checks run into whatever the file breaks
        reason = str(error) or " ".join(printed.getvalue().split())
        document.complain((), f"Ray refuses it: {reason or type(error).__name__}")


def _check_counts(document: Document) -> None:
    """Refuse machines that could never be started: Ray takes the smaller number without a word."""
    overall = _int(document.values.get("max_workers"))
    for name, node in _node_types(document).items():
        low, high = _int(node.get("min_workers")) or 0, _int(node.get("max_workers"))
        if high is not None and low > high:
            document.complain((*_TYPES, name, "min_workers"), f"{low}: is above the type's max_workers ({high})")
        if high is not None and overall is not None and high > overall:
            document.complain((*_TYPES, name, "max_workers"), f"{high}: is above the cluster's max_workers ({overall})")
    for name in ("available_node_types", "head_node_type") if not _is_local(document) else ():
        if name not in document.values:
            document.miss((name,))  # Ray would take machines of its own choice
    if overall is None and not _is_local(document):
        document.miss(("max_workers",))  # Ray's default of 2 is nobody's choice


def _check_head(document: Document) -> None:
    """Keep the head for the driver: a worker there would fight with it."""
    if _is_local(document):  # the file describes no machines: `ray start` itself tells what the head offers
        starts = [c for c in _commands(document, _HEAD) if "ray start" in c.text and "--head" in c.text]
        if starts and "--num-cpus=0" not in starts[-1].text:
            document.complain(starts[-1].key, "the head's `ray start` must have --num-cpus=0")
        return
    head = document.values.get("head_node_type")
    if not isinstance(head, str) or head not in (types := _node_types(document)):
        return  # Ray's schema has refused it
    resources = mapping_or_empty(types[head].get("resources"))
    key: Key = (*_TYPES, head, "resources")
    if resources.get("CPU") != 0:
        document.complain(key, "the head must offer CPU: 0, so that no worker is started there")
    if _int(types[head].get("max_workers")):
        document.complain((*_TYPES, head, "max_workers"), "must be 0: workers of the head's type would hold trials")


def _check_files(document: Document) -> None:
    """Require that the files which `ray up` copies exist here, and that it copies no results."""
    mounts = mapping_or_empty(document.values.get("file_mounts"))
    copies_a_folder = False
    for remote, local in mounts.items():
        path = expanded(str(local))
        copies_a_folder = copies_a_folder or path.is_dir()
        if not path.exists():
            hint = "; make it with `ray get-auth-token --generate`" if path.name == "auth_token" else ""
            document.complain(("file_mounts", remote), f"{local}: no such file or folder here{hint}")
    if copies_a_folder and "runs" not in _list(document.values.get("rsync_exclude")):
        document.complain(("rsync_exclude",), "must have runs, or results are copied to every machine")
    for name in ("ssh_private_key", "ssh_public_key"):
        key_file = _at(document, ("auth", name))
        if key_file is not None and not expanded(str(key_file)).is_file():
            document.complain(("auth", name), f"{key_file}: no such file here")


def _check_commands(document: Document) -> None:
    """Refuse unpinned packages, since machines of one cluster come days apart; and require that `ray start` scales."""
    for command in _commands(document, (*_HEAD, *_WORKERS)):
        for requirement in _unpinned(command.text):
            document.complain(command.key, f"{requirement}: is installed in any version: pin it (==), or bound it (<)")
    is_of_cloud = _at(document, ("provider", "type")) in ("aws", "gcp")
    for key in ("setup_commands", "head_setup_commands") if is_of_cloud else ():
        if key not in document.values:
            document.complain((key,), "must be there, if only as []: else Ray installs packages in any version")
    for keys, option in ((_HEAD, "--autoscaling-config"), (_WORKERS, "--address")):
        starts = [command for command in _commands(document, keys) if "ray start" in command.text]
        if not any(option in command.text for command in starts):
            document.complain((keys[-1],), f"must `ray start` with {option}: without it no worker ever comes")


def _check_access(document: Document) -> None:
    """Require a token, since anybody who reaches Ray's ports can run anything; and open no port to the world."""
    for keys in (_HEAD, _WORKERS):
        if not any("RAY_AUTH_MODE=token" in command.text for command in _commands(document, keys)):
            document.complain((keys[-1],), "must have RAY_AUTH_MODE=token, here or in setup_commands")
    if not any(remote.endswith(".ray/auth_token") for remote in mapping_or_empty(document.values.get("file_mounts"))):
        document.complain(("file_mounts",), "must bring the token: /home/USER/.ray/auth_token: ~/.ray/auth_token")
    for command in _commands(document, (*_HEAD, *_WORKERS)):
        if match := re.search(r"--(?:dashboard-)?host[= ](?:0\.0\.0\.0|::)(?!\S)", command.text):
            document.complain(command.key, f"{match[0]}: opens a port to the world; take 127.0.0.1 and a tunnel")
    rules = _list(_at(document, ("provider", "security_group", "IpPermissions")))
    for index, rule in enumerate(rules):
        if any(world in json.dumps(rule) for world in _WORLD):
            document.complain(("provider", "security_group", "IpPermissions", index), "is open to the world")
    if _at(document, ("provider", "type")) == "aws":
        for name, node in _node_types(document).items():
            config = mapping_or_empty(node.get("node_config"))
            if not config.get("SecurityGroupIds") and not config.get("NetworkInterfaces"):
                problem = "needs SecurityGroupIds: the group that Ray makes otherwise opens SSH to the world"
                document.complain((*_TYPES, name, "node_config"), problem)


def _check_machines(document: Document) -> None:
    """Refuse typos in the machines that a cloud is asked for, and spot machines that do not watch for their notice."""
    provider = str(_at(document, ("provider", "type")))
    types = _node_types(document)
    keys: list[Key] = [(*_TYPES, name, "node_config") for name, node in types.items() if "node_config" in node]
    check_node_configs(document, keys, provider)
    for key in keys if provider == "aws" else ():
        config = mapping_or_empty(_at(document, key))
        is_in_template = "LaunchTemplate" in config and "ImageId" not in config
        if not is_in_template and config.get("ImageId") in (None, "", "latest_dlami"):
            problem = (
                "must have an ImageId of your own: Ray's latest_dlami has Ubuntu 18.04, which is too old for torch"
            )
            document.complain(key, problem)
    spot = [name for name, node in types.items() if _is_spot(mapping_or_empty(node.get("node_config")))]
    if spot and not any("prefixray.spot" in command.text for command in _commands(document, _WORKERS)):
        problem = f"must start python -m prefixray.spot: {', '.join(spot)} are taken back on short notice"
        document.complain(("worker_start_ray_commands",), problem)


def _check_home(document: Document) -> None:
    """Require a folder that all machines mount: studies, locks and checkpoints have to outlive a machine."""
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
    """The folders that shell commands export as `HOME`."""
    matches = (re.search(rf"{HOME}=[\"']?([^\s;\"']+)", command.text) for command in commands)
    return [match[1] for match in matches if match is not None]


def _check_edited(document: Document) -> None:
    """Refuse what a template leaves to be filled in."""
    for key, text in _texts((), document.values):
        if match := re.search(r"[^\s/:]*YOUR-[A-Z]+[^\s/:]*", text):
            document.complain(key, f"{match[0]}: put your own in its place")


def _texts(key: Key, value: Value) -> Iterator[tuple[Key, str]]:
    """Every text in the file, with its key."""
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
    """All shell commands under these keys, in their order; for workers also those of each node type."""
    lists: list[tuple[Key, Value]] = [((key,), document.values.get(key)) for key in keys]
    if keys == _WORKERS:
        setup = "worker_setup_commands"
        lists += [((*_TYPES, name, setup), node.get(setup)) for name, node in _node_types(document).items()]
    return [_Command((*key, index), str(text)) for key, texts in lists for index, text in enumerate(_list(texts))]


def _unpinned(command: str) -> Iterator[str]:
    """The requirements of `pip install` in a shell command that do not bound the version."""
    for part in _SEPARATOR.split(command):
        if (match := re.search(r"\bpip3?\s+install\s+(.*)", part)) is None:
            continue
        words = iter(_words(match[1]))
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
    """The folders that a shell command mounts, or requires to be mounted."""
    mounts = [part for part in _SEPARATOR.split(command) if re.search(r"\b(?:mount|mountpoint)\s", part)]
    return [words[-1] for part in mounts if (words := part.split()) and words[-1].startswith("/")]


def _is_spot(config: dict[str, Value]) -> bool:
    aws = mapping_or_empty(config.get("InstanceMarketOptions")).get("MarketType") == "spot"
    gcp = mapping_or_empty(config.get("scheduling"))
    return aws or gcp.get("provisioningModel") == "SPOT" or gcp.get("preemptible") is True


def _is_local(document: Document) -> bool:
    return _at(document, ("provider", "type")) == "local"


def _node_types(document: Document) -> dict[str, dict[str, Value]]:
    types = mapping_or_empty(_at(document, _TYPES))
    return {name: mapping_or_empty(node) for name, node in types.items()}


def _at(document: Document, key: Key) -> Value:
    """The value at this key; None where there is none."""
    value: Value = document.values
    for name in key:
        value = mapping_or_empty(value).get(str(name))
    return value


def _list(value: Value) -> list[Value]:
    return value if isinstance(value, list) else []


def _int(value: Value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
