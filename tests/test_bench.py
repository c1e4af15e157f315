"""The benchmarks of steps: what the table does not need, what a profile is, that two makes do the same work."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixray.model.base import Base
from prefixray.training.profiling import profiled

BENCH = Path(__file__).parent / "bench"
LEFT_ALONE = """
import subprocess, sys
holds = "import time; held = b'1' * 200_000_000; time.sleep(3)"
subprocess.Popen([sys.executable, "-c", holds], start_new_session=True)
"""


def _run(tmp_path: Path, *command: str) -> str:
    """What a benchmark prints in a Python without the search's libraries."""
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text("import sys\nfor name in ('ray', 'optuna', 'mlflow'):\n    sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    whole = [sys.executable, str(BENCH / command[0]), "--case", "tiny", "--rounds", "1", *command[1:]]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sweeps
def test_the_table_of_a_tiny_case_needs_nothing_of_a_search(tmp_path: Path) -> None:
    losses: dict[str, list[list[float]]] = {}
    part = ""
    for line in _run(tmp_path, "table.py", "--precision", "fp32").splitlines():
        part = line if line.startswith(("training", "validation")) else part
        if "fp32 " in line and line.startswith(("PEFT", "pack")):
            losses.setdefault(part, []).append([float(loss) for loss in line.split()[-2:]])
    assert len(losses) == 2
    for first, *others in losses.values():  # every arm has trained to the same losses, which are printed to 1e-4
        assert len(others) > 1 and all(other == pytest.approx(first, abs=1.5e-4) for other in others)


@pytest.mark.sweeps
def test_decoding_is_timed_on_hypotheses_that_are_the_same_in_every_arm(tmp_path: Path) -> None:
    lines = _run(tmp_path, "decode.py", "--precision", "fp32", "--new-tokens", "6", "--trials", "2").splitlines()
    same = {line[:24].strip(): line.split("  ")[-1] for line in lines if " fp32 " in line and " of " in line}
    assert same == {
        "PEFT, one at a time fp32": "12 of 12",
        "PEFT, 16 at once fp32": "12 of 12",
        "ours, 1 trial fp32": "12 of 12",
        "ours, 2 trials fp32": "24 of 24",
    }


def test_serving_is_timed_on_answers_that_are_those_of_stock_transformers(
    tiny_llama: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--clients", "4", "--artifacts", "2", "--preseqlen", "3", "--tokens", "6", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["serving.py", "--base", tiny_llama.name, *options])
    runpy.run_path(str(BENCH / "serving.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    ways = ("stock transformers, one after the other", "served, one seat", "served, 4 seats")
    assert [line[:40].strip() for line in lines[2:]] == list(ways)
    assert all(line.endswith("4 of 4") for line in lines[2:])


@pytest.mark.sweeps
def test_each_trick_is_switched_off_and_on_again(tmp_path: Path) -> None:
    lines = _run(tmp_path, "ablation.py", "--precision", "fp32").splitlines()
    assert lines[1].split() == ["fp32", "step", "fp32", "validation", "fp32", "decoding"]
    assert {"all of fast_cpu", "rows in a line", "blocks before top-k"} <= {line[:24].strip() for line in lines}


@pytest.mark.slow
def test_the_allocators_settings_are_timed_in_processes_of_their_own(tmp_path: Path) -> None:
    lines = [line.split() for line in _run(tmp_path, "allocator.py").splitlines()[2:]]
    assert [line[1:3] for line in lines] == [[arm, part] for arm in ("ours", "PEFT") for part in ("step", "validation")]
    assert all(float(number) > 0 for line in lines for number in line[3:6])


@pytest.mark.sweeps
def test_more_threads_give_the_same_losses(tmp_path: Path) -> None:
    lines = _run(tmp_path, "threads.py", "--precision", "fp32").splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["1", "2", "4"]
    losses = [[float(loss) for loss in line.replace(",", "").split()[-2:]] for line in lines]
    assert all(more == pytest.approx(one, abs=1.5e-4) for one, more in losses)


def test_a_profile_is_a_trace_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with profiled(tmp_path / "trace.json"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert any(
        "mm" in str(event.get("name")) for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    )
    assert "Self CPU" in capsys.readouterr().out


def test_memory_is_counted_of_a_process_whose_parent_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from processes import Watched

    with Watched([sys.executable, "-c", LEFT_ALONE], tmp_path, {}) as watched:
        watched.process.wait(30)
        time.sleep(2.5)
    assert watched.peak_bytes > 200_000_000
    assert not watched.processes()


def test_graphs_gain_where_launches_bound_a_step_and_shapes_recur(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    graphs = runpy.run_path(str(BENCH / "graphs.py"))
    recurring, gain, found = graphs["recurring"], graphs["gain"], graphs["Recurring"]
    rows = np.array([[50, 20], [60, 31]] * 10)
    always, rare = (recurring(rows, 2, multiples, 50) for multiples in ((4096, 4096), (1, 1)))
    assert (always.shapes, always.hits) == (1, 0.98) and always.fillers > 2
    assert rare.fillers <= 0 and rare.shapes > 5 and rare.hits < always.hits
    bound = {"launches": 1000, "gigaflops": 553.0, "megabytes": 0.0}  # a millisecond of the device's time
    assert gain(bound, 5.0, found(0.0, 1, 1.0)) == pytest.approx(5.0)
    assert gain(bound, 5.0, found(0.25, 1, 0.5)) == pytest.approx(5.0 / (0.5 * 1.25 + 0.5 * 10))
    assert gain(bound, 0.5, found(0.25, 1, 1.0)) == pytest.approx(1 / 1.25)
