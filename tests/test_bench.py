"""The benchmark runs on a bare GPU machine: it needs neither Ray nor Optuna nor MLflow; and a profile is a trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefixray.profiling import profiled

BENCH = Path(__file__).parent / "bench"


def test_the_table_of_a_tiny_case_needs_nothing_of_a_search(tmp_path: Path) -> None:
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text("import sys\nfor name in ('ray', 'optuna', 'mlflow'):\n    sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(BENCH / "table.py"), "--case", "tiny", "--rounds", "1", "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    losses: dict[str, set[str]] = {}
    part = ""
    for line in done.stdout.splitlines():
        part = line if line.startswith(("training", "validation")) else part
        if "fp32 " in line and line.startswith(("PEFT", "pack")):
            losses.setdefault(part, set()).add(" ".join(line.split()[-2:]))
    assert [len(own) for own in losses.values()] == [1, 1]  # every arm has trained to the same losses


def test_a_profile_is_a_trace_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with profiled(tmp_path / "trace.json"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert any(
        "mm" in str(event.get("name")) for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    )
    assert "Self CPU" in capsys.readouterr().out
