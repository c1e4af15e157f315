"""A trial on disk: its resumable checkpoints, and the artifact that decoding needs.

Both are folders of two files: tensors as safetensors, everything else as JSON, no pickle. The JSON holds one SHA-256
over its own content and the tensors, which finds a truncated file or a flipped byte. A folder is written under a
temporary name, synced and renamed, so that a reader finds either the whole folder or none.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefixray.artifacts.record import FORMAT, ConvertedConfig, check_record, commit_of, trial_method
from prefixray.config.trials import METHODS, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.contract import Method, Recorder
from prefixray.model.base import Base
from prefixray.results.artifacts import find_origin
from prefixray.system.atomic_files import clear_scratch, whole_folder
from prefixray.system.path_or_hub import is_commit
from prefixray.trial import TrialFolder

logger = logging.getLogger(__name__)

_NUM_KEPT = 2
_NUM_SHOWN = 10


class _Damaged(Exception):
    """The two files differ from those that were written."""


def artifact_meta(
    base: Base,
    config: TrialConfig | ConvertedConfig,
    *,
    task: TaskConfig,
    template: Mapping[str, Any],
    decoding: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
    document: str | None = None,
) -> dict[str, Any]:
    """An artifact's record: the base and task that it belongs to, and how its hypotheses are made.

    `document` is the name of the document that it is about, where the task has documents.
    """
    return {
        "format": FORMAT,
        "method": config.method.method,
        "config": config.model_dump(mode="json"),
        "base": {"name": base.name, "digest": base.digest, "shape": asdict(base.shape)},
        "precision": base.precision,
        "positions": base.positions,
        "task": task.model_dump(mode="json"),
        **({} if document is None else {"document": document}),
        "template": dict(template),
        "decoding": None if decoding is None else dict(decoding),
        "scores": dict(scores or {}),
    }


def save_artifact(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a folder with `METHOD_config.json` and `METHOD.safetensors`; it replaces the folder that was there.

    Raises `OSError` where the disk does.
    """
    _write(folder, tensors, meta, stems=_artifact_stems(meta["method"]))
    clear_scratch(folder.parent, folder.name)


def load_artifact(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of an artifact.

    Raises `UserError` where it is damaged or of wrong types, and where the folder holds several artifacts.
    """
    methods = [method for method in METHODS if (folder / artifact_files(method)[0]).is_file()]
    whole = [method for method in methods if (folder / artifact_files(method)[1]).is_file()]
    if not methods:
        names = ", ".join(artifact_files(method)[0] for method in METHODS)
        raise UserError(f"{folder}: no artifact here; one has a file {names}")
    if len(whole) > 1:
        remedy = "delete the files of all but one, or push that one again"
        raise UserError(f"{folder}: artifacts of several methods: {', '.join(whole)}; {remedy}")
    methods = whole or methods  # PEFT's adapter_config.json lies beside no adapter.safetensors
    try:
        tensors, meta = _read(folder, stems=_artifact_stems(methods[0]))
    except _Damaged as error:
        raise UserError(f"{error}; copy or train the artifact again") from error
    check_record(str(folder / artifact_files(methods[0])[0]), meta, methods[0])
    return tensors, meta


def load_as_decoded(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `load_artifact`; the record of a final run in a finished sweep has the sweep's decoding settings.

    An artifact has those that it was trained with, and the sweep may have decoded again with others.
    """
    tensors, record = load_artifact(folder)
    if origin := find_origin(folder):
        record["decoding"] = {**(record["decoding"] or {}), **origin.results["decoding"]}
    return tensors, record


def artifact_files(method: str) -> tuple[str, str]:
    """The names of an artifact's JSON file and of its tensor file."""
    config, tensors = _artifact_stems(method)
    return f"{config}.json", f"{tensors}.safetensors"


def check_artifact(meta: Mapping[str, Any], base: Base) -> None:
    """Raise `UserError`, naming every difference, if `base` is not the base that the artifact was trained on.

    Only sizes that the artifact's record has are compared. Another commit of the same model of the hub may have the
    same weights: it is only logged.
    """
    made_for, sizes = meta["base"], _flat(asdict(base.shape))
    expected = _flat(made_for["shape"])
    problems = [
        f"artifact: base {key}: made for {expected[key]}, {base.name} has {sizes.get(key)}"
        for key in expected
        if expected[key] != sizes.get(key)
    ]
    if made_for["digest"] != base.digest:
        weights = f"{made_for['name']} with digest {made_for['digest']}"
        problem = f"artifact: base weights: made for {weights}, {base.name} has digest {base.digest}"
        if commit_of(made_for, base.name) and is_commit(base.digest):
            logger.warning("%s: another commit, which may have changed no weight", problem)
        else:
            problems.append(problem)
    if meta["positions"] != base.positions:
        problems.append(f"artifact: positions: {meta['positions']!r}: of {base.name} they are {base.positions!r}")
    if problems:
        raise UserError(*problems)


def _flat(sizes: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """{"sites": {"decoder": {"head_dim": 8}}} as {"sites.decoder.head_dim": 8}."""
    flat: dict[str, Any] = {}
    for key, value in sizes.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def restore_method(base: Base, record: Recorder, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> Method:
    """The method of a loaded artifact on its base, ready to decode. Raises `UserError` where they do not fit."""
    check_artifact(meta, base)
    method = build_method(trial_method(meta).without_start(), base, record, init_seed=0, dropout_seed=0)
    _check_tensors(method.artifact(), tensors)
    method.load_artifact(tensors)
    return method


def _check_tensors(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Raise `UserError` if the tensors are not those of the method that the artifact's record describes."""
    pairs = {name: (_described(loaded.get(name)), _described(expected.get(name))) for name in {**expected, **loaded}}
    problems = [
        f"artifact: {name}: {there}, where its configuration makes {wanted}"
        for name, (there, wanted) in sorted(pairs.items())
        if there != wanted
    ]
    if len(problems) > _NUM_SHOWN:
        problems[_NUM_SHOWN:] = [f"artifact: and {len(problems) - _NUM_SHOWN} more"]
    if problems:
        raise UserError(*problems)


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "no tensor"
    kind = "numbers" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return f"{kind} of shape {tuple(tensor.shape)}"


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder/step-K`; of the checkpoints up to it, the two newest stay.

    `state` is anything that JSON can hold. Raises `OSError` where the disk does; older checkpoints then stay.
    """
    trial = TrialFolder(folder)
    path = trial.checkpoint(step)
    _write(path, tensors, {"step": step, "state": dict(state)}, stems=_CHECKPOINT_STEMS)
    for old in [other for other in trial.checkpoint_steps() if other <= step][_NUM_KEPT:]:
        shutil.rmtree(trial.checkpoint(old), ignore_errors=True)  # the driver may be deleting an ended trial
    trial.clear_scratch_checkpoints()
    return path


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors and state of the newest checkpoint that is not damaged; None where there is none."""
    trial = TrialFolder(folder)
    for step in trial.checkpoint_steps():
        try:
            tensors, written = _read(trial.checkpoint(step), stems=_CHECKPOINT_STEMS)
        except _Damaged as error:
            logger.warning("%s; the checkpoint before it is used", error)
            continue
        return step, tensors, written["state"]
    return None


_CHECKPOINT_STEMS = ("checkpoint", "checkpoint")


def _artifact_stems(method: str) -> tuple[str, str]:
    """The names of the JSON file and of the tensor file, without their endings."""
    return f"{method}_config", method


def _write(folder: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any], *, stems: tuple[str, str]) -> None:
    with whole_folder(folder) as scratch:
        tensor_file, json_file = scratch / f"{stems[1]}.safetensors", scratch / f"{stems[0]}.json"
        _write_tensors(tensor_file, tensors)
        body = json.loads(json.dumps(content))
        digest = _digest(body, tensor_file)
        json_file.write_text(json.dumps({**body, "sha256": digest}, indent=1) + "\n", encoding="utf-8")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error


def _read(folder: Path, *, stems: tuple[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensor_file, json_file = folder / f"{stems[1]}.safetensors", folder / f"{stems[0]}.json"
    for path in (json_file, tensor_file):
        if not path.is_file():
            raise _Damaged(f"{path}: no such file")
    try:
        body = json.loads(json_file.read_text(encoding="utf-8"))
        expected = body.pop("sha256")
        is_whole = _digest(body, tensor_file) == expected
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _Damaged(f"{json_file}: not the JSON that was written") from error
    except OSError as error:
        raise _Damaged(f"{folder}: cannot be read: {error.strerror}") from error
    if not is_whole:
        raise _Damaged(f"{folder}: damaged: the checksum over {json_file.name} and {tensor_file.name} differs")
    try:
        return load_file(tensor_file), body
    except SafetensorError as error:
        raise _Damaged(f"{tensor_file}: is no safetensors file: {error}") from error


def _digest(body: Mapping[str, Any], tensor_file: Path) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    with tensor_file.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
