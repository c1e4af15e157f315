"""A small sweep that is planned, and a cache of speeds that is empty at first."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.small_plan import write_sweep

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path, base_folders: Mapping[str, Path]) -> Path:
    return write_sweep(tmp_path, base_folders["llama"])


@pytest.fixture
def config(file: Path) -> SweepConfig:
    return load_sweep(file)
