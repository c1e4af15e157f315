"""The suite with the oldest versions that pyproject.toml allows, in a new environment: yours is not touched.

python .ci/floors.py                     # installs every lower bound and runs the suite
python .ci/floors.py tests/config        # what stands behind goes to pytest
python .ci/floors.py --list              # prints the bounds, as pip's constraints
python .ci/floors.py --resolve           # asks pip whether they go together, and installs nothing
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def floors() -> list[str]:
    """Each dependency at its lower bound: torch==2.13."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in project["dependencies"]]
    assert all(bounds), f"a dependency has no lower bound: {project['dependencies']}"
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None]


def main(arguments: list[str]) -> int:
    """Install and run; returns pip's or pytest's exit code."""
    if arguments == ["--list"]:
        print("\n".join(floors()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "floors.txt"
        constraints.write_text("\n".join(floors()), encoding="utf-8")
        if arguments == ["--resolve"]:
            wanted = [*_PIP, "--dry-run", "--ignore-installed", "--quiet", "-c", str(constraints), str(ROOT)]
            return subprocess.run([sys.executable, *wanted]).returncode
        venv.create(Path(folder) / "venv", with_pip=True)
        python = Path(folder) / "venv" / "bin" / "python"
        installed = subprocess.run([python, *_PIP, "-c", constraints, "-e", ".[test]"], cwd=ROOT).returncode
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return installed or subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode


_PIP = ("-m", "pip", "install")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
