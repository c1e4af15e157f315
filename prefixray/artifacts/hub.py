"""Artifacts on the hub: the artifact's two files, a model card, and PEFT's form of the artifact where there is one.

No path of this machine is published: a local base or data file is named by the last part of its path.
"""

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prefixray.artifacts.model_card import Facts, model_card
from prefixray.artifacts.peft import PEFT_FILES, write_peft
from prefixray.artifacts.record import check_new, is_on_hub
from prefixray.artifacts.store import artifact_files, load_as_decoded, save_artifact
from prefixray.config.trials import METHODS
from prefixray.data.entries import TASK_PATHS
from prefixray.errors import UserError, first_line
from prefixray.results.artifacts import find_origin
from prefixray.system.hub import NoAnswer
from prefixray.system.path_or_hub import is_path, local_path

logger = logging.getLogger(__name__)

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def export_hub(artifact: Path, out: Path, *, repo: str | None = None, licence: str | None = None) -> None:
    """Write the folder that `push` uploads: PEFT finds its files beside the artifact's own.

    Raises `UserError` where the artifact is damaged, or where `out` holds something.
    """
    check_new(out)
    tensors, record = load_as_decoded(artifact)
    origin = find_origin(artifact)
    public = public_record(record)
    save_artifact(out, tensors, public)
    not_in_peft = None
    try:
        write_peft(out, out, public["base"]["name"], tensors, public)
    except UserError as error:
        not_in_peft = error.problems[0].partition(": ")[2].partition("; ")[0]
    num_stored = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(Facts(public, num_stored, origin, not_in_peft, repo, licence))
    card.save(out / "README.md")


def push(artifact: Path, repo: str, *, private: bool = False, licence: str | None = None) -> str:
    """Upload an artifact with its card to the model `USER/NAME` on the hub; return the commit's address.

    The model is created if there is none. The token is that of `hf auth login` or HF_TOKEN. Raises `UserError` where
    the hub cannot be reached or refuses.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"--push: {repo}: must be USER/NAME, the model's name on the hub")
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifact"
        export_hub(artifact, folder, repo=repo, licence=licence)
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Add an artifact of prefixray",
                delete_patterns=[*_artifact_files(), *PEFT_FILES],  # those of an artifact that was pushed before
            )
        except LocalTokenNotFoundError as error:
            raise UserError(f"--push: {repo}: no token; log in with `hf auth login`, or set HF_TOKEN") from error
        except OfflineModeIsEnabled as error:
            raise UserError(f"--push: {repo}: HF_HUB_OFFLINE is set; unset it to reach the hub") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            hint = (
                "log in with `hf auth login`, or set HF_TOKEN"
                if status == 401
                else "is the name yours, and the token's write access on?"
            )
            raise UserError(f"--push: {repo}: {api.endpoint} answers {status}; {hint}") from error
        except (NoAnswer, OSError, ValueError) as error:
            raise UserError(f"--push: {repo}: {api.endpoint} cannot be reached: {first_line(error)}") from error
    return str(commit.commit_url)


def pull(repo: str, revision: str | None = None) -> Path:
    """The folder of the artifact that the model `USER/NAME` on the hub holds: downloaded, or from the hub's cache.

    Raises `UserError` where the hub cannot be reached or has none.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo}: must be USER/NAME, the model's name on the hub (a folder: Tuned.load)")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_artifact_files()))
    except RepositoryNotFoundError as error:
        raise UserError(f"{repo}: the hub has no such model, or it is private: log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo}: the hub's model has no revision {revision}") from error
    except (HfHubHTTPError, NoAnswer, OSError, ValueError) as error:
        raise UserError(f"{repo}: cannot be had from the hub: {first_line(error)}") from error


def _artifact_files() -> list[str]:
    """The names of the artifacts' files, of all methods."""
    return [name for method in METHODS for name in artifact_files(method)]


def public_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, with the last part of each local path in place of the path."""
    base, name = record["base"], record["base"]["name"]
    is_local = not is_on_hub(base) and ":" not in name  # a folder's name can look like a hub id
    task = {
        key: _last_name(value) if key in TASK_PATHS and isinstance(value, str) and _is_path_of(key, value) else value
        for key, value in record["task"].items()
    }
    return {**record, "base": {**base, "name": _last_name(name) if is_local else name}, "task": task}


def _is_path_of(key: str, value: str) -> bool:
    """Whether the value of a key of the task is a path; that of `path` may be a data set of the hub."""
    return key != "path" or is_path(value) or local_path(value) is not None


def _last_name(path: str) -> str:
    return Path(path).name or path
