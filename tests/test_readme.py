"""README and docs/ are the manual: README is short, docs/ names every key of a sweep file; links and imports exist."""

import ast
import re
from pathlib import Path

import pytest

from prefixray.config.schema import FinalConfig, SearchConfig, SweepConfig, TrackingConfig
from prefixray.config.trials import METHODS, TrainConfig
from prefixray.data.task_config import TaskConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
CONTRIBUTING = PAGES[1].read_text(encoding="utf-8")
SWEEP_FILE = (ROOT / "docs" / "reference" / "sweep_file.md").read_text(encoding="utf-8")
EVERY_PAGE = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SECTIONS = [SweepConfig, TaskConfig, TrainConfig, SearchConfig, FinalConfig, TrackingConfig, *METHODS.values()]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_of_a_section_is_explained(section: type) -> None:
    keys = set(section.model_fields) - {"method"}  # type: ignore[attr-defined]
    missing = [key for key in keys if not re.search(rf"`{key}`|^## {key}$", SWEEP_FILE, flags=re.M)]
    assert not missing


def test_every_folder_and_command_is_in_the_list_of_files() -> None:
    listed = CONTRIBUTING[: CONTRIBUTING.index("## Tests")]
    modules = {path.name for path in (ROOT / "prefixray").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "prefixray").glob("*/__init__.py")}
    assert not [name for name in modules | folders if name not in listed]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", _prose(page))
    assert not [link for link in links if not _leads_somewhere(link, page)]


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def _leads_somewhere(link: str, page: Path) -> bool:
    if link.startswith(("https://", "mailto:")):
        return True
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if link.startswith("/") or not target.exists():
        return False
    return not anchor or anchor in {_anchor(title) for title in re.findall(r"^#+ (.*)$", _prose(target), flags=re.M)}


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("code", re.findall(r"^```python\n(.*?)^```", EVERY_PAGE, flags=re.M | re.S))
def test_the_python_of_the_manual_names_what_exists(code: str) -> None:
    lines = ast.parse(code).body
    imports = [line for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), "README", "exec"), {})


def test_every_path_that_is_named_exists() -> None:
    paths = re.findall(r"`((?:prefixray|sweeps|tests)/[A-Za-z0-9_./]+)`", EVERY_PAGE)
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
