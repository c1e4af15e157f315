"""The hub's cache with a model of several commits, where no hub answers."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from huggingface_hub import constants

from prefixray.model.base import Base

NAME = "owner/tiny"


def keep_in_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, base: Base, commits: Iterable[str]) -> None:
    """Keep a base in a cache as `owner/tiny`, under each of these commits; the last one is the newest."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = cache / "models--owner--tiny"
    (model / "refs").mkdir(parents=True)
    for commit in commits:
        base.model.save_pretrained(model / "snapshots" / commit)
        base.tokenizer.save_pretrained(model / "snapshots" / commit)
        (model / "refs" / "main").write_text(commit)
