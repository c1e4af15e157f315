"""The sweep that faults hit, and the same without any fault."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.small_sweep import Sweep, assert_complete
from support.sweep_process import end_all


@pytest.fixture
def sweep(tmp_path: Path, base_folders: Mapping[str, Path]) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path, base_folders["llama"])
    sweep.write()
    yield sweep
    end_all()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base_folders: Mapping[str, Path]) -> Sweep:
    """The same sweep without any fault."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), base_folders["llama"])
    sweep.write()
    sweep.finish()
    assert_complete(sweep)
    return sweep
