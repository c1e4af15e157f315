"""What is installed: the wheel has the corpus, the licences and every module; the sources suit every supported Python.

That the wheel works by itself, and that importing it warns of nothing deprecated, `.ci/run` shows.
"""

import ast
import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted([*(ROOT / "prefixray").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
# PEP 594, and lib2to3
REMOVED_IN_313 = {"aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap", "msilib", "nis"}
REMOVED_IN_313 |= {"nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from a copy without what git ignores."""
    source, out = tmp_path_factory.mktemp("source") / "prefixray", tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "shared")
    shutil.copytree(ROOT, source, ignore=ignored)
    code = f"from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return out


def test_the_wheel_has_every_module_the_corpus_and_the_licences_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    tracked = subprocess.run(["git", "ls-files", "prefixray"], cwd=ROOT, capture_output=True, text=True)
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "prefixray").rglob("*") if path.is_file()}
    sweeps = (path.relative_to(ROOT).as_posix() for path in (ROOT / "sweeps").rglob("*") if path.is_file())
    shipped = {f"prefixray/{path}" for path in sweeps}  # a document of a sweep is a link into docs/
    assert {"prefixray/sweeps/quickstart.yaml", "prefixray/sweeps/paper/e2e.yaml"} <= shipped <= package
    there |= shipped  # by way of a link, which holds no copy
    there = {name for name in there if "__pycache__" not in name and ".egg-info" not in name}
    assert package == there and (tracked.returncode != 0 or set(tracked.stdout.split()) - {"prefixray/sweeps"} <= there)
    assert {name for name in package if "/data/e2e/" in name} >= {"prefixray/data/e2e/NOTICE"}
    licences = {name.partition(".dist-info/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "prefixray/data/e2e/NOTICE"}


def test_the_source_distribution_has_the_same(built: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive, zipfile.ZipFile(wheel) as other:
        names = {name.partition("/")[2] for name in archive.getnames()}
        package = {name for name in other.namelist() if name.startswith("prefixray/")}
    assert package | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_metadata_says_what_it_needs_and_how_it_is_called(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == PROJECT["license"]
    assert "prefixray = prefixray.cli:" in scripts
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert versions == ["3.11", "3.12", "3.13"]


def test_every_dependency_has_an_upper_bound() -> None:
    everything = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    assert [line for line in everything if "<" not in line and not line.startswith("prefixray[")] == []


def test_the_floors_are_the_lower_bounds_of_all_dependencies_and_of_the_extras_for_users() -> None:
    printed = subprocess.run([sys.executable, ROOT / ".ci" / "floors.py", "--list"], capture_output=True, text=True)
    extras = [
        line
        for extra in ("cluster", "cmaes", "meteor", "4bit", "serve")
        for line in PROJECT["optional-dependencies"][extra]
    ]
    names = [re.match(r"[\w.-]+", line)[0] for line in [*PROJECT["dependencies"], *extras]]  # type: ignore[index]
    floors = dict(line.split("==") for line in printed.stdout.split())
    assert list(floors) == list(dict.fromkeys(names)) and {"datasets", "boto3"} <= set(floors) and all(floors.values())


def test_everything_that_a_sweep_may_use_is_one_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"cluster", "cmaes", "meteor", "4bit", "serve", "docs", "all", "test"} <= set(extras)
    assert extras["all"] == ["prefixray[cluster,cmaes,meteor,4bit,serve]"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_is_python_311_and_uses_nothing_that_313_removes(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} & REMOVED_IN_313 == set()
