"""What the hub is asked for: files and commits of bases, and what is said where it does not give them."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    errors,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from prefixray.errors import first_line

NoAnswer: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
"""What the hub's client raises where the hub breaks off; only some of these errors are an `OSError`, too."""

VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm"),
)
"""Files of which nearly every tokenizer has one; those of bytes have none."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """The hub has not given something, and the cache has no copy; the message says why."""


def hub_answers() -> bool:
    """Whether the hub can be reached; transformers would find out in minutes."""
    if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 3.0).close()
    except OSError:
        return False
    return True


def is_offline() -> bool:
    """Whether the hub is not to be asked, or does not answer."""
    return constants.HF_HUB_OFFLINE or not hub_answers()


def hub_problem(error: BaseException) -> str:
    """A line about why the hub has not given something: what stands behind the library's error, where that is known."""
    if isinstance(error, HubError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    match cause:
        case GatedRepoError():
            return f"its owner asks for consent to terms: give it on the hub's page, then {_LOG_IN}"
        case RepositoryNotFoundError():
            return f"the hub has no such repository, or it is private: {_LOG_IN}"
        case HfHubHTTPError() if (status := cause.response.status_code) in (401, 403):
            return f"the hub answers {status}: {_LOG_IN}"
    return first_line(error)


def hub_file(name: str, file: str, commit: str | None = None) -> Path | None:
    """A file of a model on the hub, by default of its newest commit; from the cache if the hub does not answer.

    None where the model has no such file, or the cache has none of an offline machine. Raises `HubError` where the hub
    refuses the file or breaks off, and the cache has none.
    """
    if commit is not None and try_to_load_from_cache(name, file, revision=commit) is _CACHED_NO_EXIST:
        return None
    offline = is_offline()
    try:
        return Path(hf_hub_download(name, file, revision=commit, local_files_only=offline))
    except EntryNotFoundError as error:
        if offline or not isinstance(error, LocalEntryNotFoundError):
            return None
        problem = hub_problem(error)
    except (NoAnswer, OSError, ValueError) as error:
        problem = hub_problem(error)
    try:
        return Path(hf_hub_download(name, file, revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        raise HubError(f"{file}: {problem}") from None


def fetch_tokenizer(name: str, commit: str | None = None) -> None:
    """Have all files of a tokenizer in the cache: transformers makes another one without those that it does not get.

    What lists the tokens comes last, so with that the others are there. By default it is looked for in the newest
    commit that is known here, and fetched from the newest. Raises `HubError` as `hub_file`, and where there is none.
    """
    if any(isinstance(try_to_load_from_cache(name, file, revision=commit), str) for file in VOCABULARIES):
        return
    commit = commit or newest_commit(name)
    files = [hub_file(name, file, commit) for file in ("chat_template.jinja", "tokenizer_config.json")]
    if not any(hub_file(name, file, commit) for file in VOCABULARIES) and files[-1] is None:
        where = "the cache" if is_offline() else "the hub"
        raise HubError(f"{where} has no tokenizer of it")


def exported_data(repository: str, config: str, splits: Iterable[str], *, is_local: bool) -> Path:
    """The folder of the hub's own export of a data set: a folder for each of these splits, with Parquet files.

    `is_local`: as the cache has it. Raises the hub's errors.
    """
    folder = snapshot_download(
        repository,
        repo_type="dataset",
        revision="refs/convert/parquet",
        allow_patterns=[f"{config}/{part}{split}/*.parquet" for split in splits for part in ("", "partial-")],
        local_files_only=is_local,
    )
    return Path(folder, config)


def newest_commit(base: str) -> str:
    """The newest commit of a base of the hub, or the one in the cache if the hub does not answer.

    Raises `HubError` where neither has it.
    """
    config = hub_file(base, "config.json")
    if config is None:
        raise HubError(
            "the hub cannot be asked, and the cache has no copy" if is_offline() else "it has no config.json"
        )
    return config.parent.name
