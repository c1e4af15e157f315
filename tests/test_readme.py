"""The README is the manual: it names every key of a sweep file, and its links and modules exist."""

import re
from pathlib import Path

import pytest

from prefixray.config import (
    METHODS,
    FinalConfig,
    SearchConfig,
    SweepConfig,
    TaskConfig,
    TrackingConfig,
    TrainConfig,
)

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = [SweepConfig, TaskConfig, TrainConfig, SearchConfig, FinalConfig, TrackingConfig, *METHODS.values()]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_a_section_is_explained(section: type) -> None:
    keys = set(section.model_fields) - {"method"}  # type: ignore[attr-defined]
    missing = [key for key in keys if not re.search(rf"`{key}`|`{key}:|\*\*{key}\*\*", README)]
    assert not missing


def test_every_module_is_in_the_list_of_files() -> None:
    listed = README[README.index("## Files") : README.index("**To add a method:**")]
    modules = {path.name for path in (ROOT / "prefixray").glob("*.py")} - {"__init__.py"}
    assert not [name for name in modules if name not in listed]


def test_every_path_that_is_named_exists() -> None:
    paths = re.findall(r"`((?:prefixray|sweeps|tests)/[A-Za-z0-9_./]+)`", README)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
