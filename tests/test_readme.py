"""The README is the manual: it names every key of a sweep file, and its links, modules and imports exist."""

import ast
import re
from pathlib import Path

import pytest

from prefixray.config import METHODS, FinalConfig, SearchConfig, SweepConfig, TaskConfig, TrackingConfig, TrainConfig

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


def test_every_link_leads_somewhere() -> None:
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    headings = {_anchor(title) for title in re.findall(r"^#+ (.*)$", prose, flags=re.M)}
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    broken = [link for link in links if not _leads_somewhere(link, headings)]
    assert not broken


def _leads_somewhere(link: str, headings: set[str]) -> bool:
    if link.startswith(("https://", "mailto:")):
        return True
    path, _, anchor = link.partition("#")
    return (anchor in headings if not path else (ROOT / path).exists()) and not link.startswith("/")


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S))
def test_the_python_of_the_manual_names_what_exists(code: str) -> None:
    lines = ast.parse(code).body
    imports = [line for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "README", "exec"), {})


def test_every_path_that_is_named_exists() -> None:
    paths = re.findall(r"`((?:prefixray|sweeps|tests)/[A-Za-z0-9_./]+)`", README)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
