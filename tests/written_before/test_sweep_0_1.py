"""A sweep that version 0.1.0 has written is read, decoded and continued by this version.

`sweep_0_1` was run by 0.1.0 (commit 9791ab3) on a tiny base: three trials of the prefix arm ended; `control add` then
asked for one more, and the driver was killed when that trial had its first checkpoint. `train` made an infix beside it.
`report.txt` is what `report` printed of the sweep, `train.txt` what the killed trial prints when nothing kills it.
Removed afterwards: logs, tables, pages, references, most sources, two artifacts of the search. MLflow was off. An
artifact names its base by an absolute path; here the path is `base`, and the record's checksum fits it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefixray.decoding.tuned_model import Tuned, generate_together, open_base
from prefixray.reporting.notebook import open_sweep

WRITTEN = Path(__file__).parent / "sweep_0_1"
OLD = Path("runs/old")
ENDED = ("trials/prefix/[012]/*.json", "final/*/*.json", "final/*/test.hyp", "final/*/artifact/*")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sweep's folder, in which commands run."""
    shutil.copytree(WRITTEN, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run(command: str, *arguments: str) -> str:
    """What a command prints."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    offline |= {"RAY_worker_niceness": "0"}  # Ray's 15 would let other tests that run meanwhile starve the workers
    argv = [sys.executable, "-m", f"prefixray.{command}", *arguments]
    ran = subprocess.run(argv, env={**os.environ, **offline}, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_its_report_is_the_same(folder: Path) -> None:
    added = run("report", "runs/old")
    assert "1 trial has begun or gone on since this table was made" in added and "prefix/3" in added
    (OLD / "study.journal").unlink()
    assert run("report", "runs/old") == (folder / "report.txt").read_text()
    assert "<table" in (OLD / "report.html").read_text()


def test_its_results_open_in_a_notebook(folder: Path) -> None:
    sweep = open_sweep("old")
    stored = json.loads((OLD / "results.json").read_text())
    assert list(sweep.trials["dev_loss"])[:3] == [trial["dev_loss"] for trial in stored["search"]]
    assert list(sweep.trials["state"])[3:] == ["running"], "the trial that was added after the final stage"
    assert sweep.best["prefix"] == stored["search"][2]["config"] and sweep.best["lora"] == {}


@pytest.mark.sweeps
def test_its_best_runs_decode_to_the_same_hypotheses(folder: Path) -> None:
    """In fp32 another CPU moves scores by 1e-6; a hypothesis would change only where two beams are that close."""
    printed = run("decode", "runs/old", "--arm", "adapter")
    assert "4 of 4 hypotheses are those of the final stage" in printed
    base = open_base("base")
    for arm in ("prefix", "lora"):
        (artifact,) = OLD.glob(f"final/{arm}-*/artifact")
        decoded = generate_together(_sources(), [base.bind(artifact)] * 4)
        assert decoded == _lines(artifact.parent / "test.hyp")
    assert Tuned.best("runs/old").generate(_sources()[:1]) == _lines(OLD / "final" / "prefix-2-1" / "test.hyp")[:1]


@pytest.mark.sweeps
def test_an_infix_made_by_train_decodes_to_the_same_hypotheses(folder: Path) -> None:
    (artifact,) = OLD.glob("train/*/artifact")
    run("decode", str(artifact), "--out", "again")
    assert _lines(Path("again/test.hyp")) == _lines(artifact.parent / "test.hyp")


@pytest.mark.ray
@pytest.mark.sweeps
def test_the_sweep_continues_from_its_checkpoint_adds_a_trial_and_keeps_the_rest(folder: Path) -> None:
    ended = {path: path.read_bytes() for pattern in ENDED for path in OLD.glob(pattern)}
    journal, stored = (OLD / "study.journal").read_text(), json.loads((OLD / "results.json").read_text())
    run("sweep", "runs/old/sweep.yaml", "--set", "search.num_trials=5")
    assert len(ended) > 15 and {path: path.read_bytes() for path in ended} == ended
    assert (OLD / "study.journal").read_text().startswith(journal)
    log = (OLD / "sweep.log").read_text()
    joined, begun = (set(re.findall(rf"(\S+) {did}", log)) for did in ("asks to join", "begins its first step"))
    searched = {"prefix/3", "prefix/4"}  # others train only in the final stage, where the winner has changed
    assert searched <= joined and all(key.startswith("final/prefix-") for key in joined - searched)
    assert "prefix/4" in begun and "prefix/3" not in begun, "prefix/3 continues after step 4"
    results = json.loads((OLD / "results.json").read_text())
    assert [trial["number"] for trial in results["search"]] == [0, 1, 2, 3, 4]
    assert results["search"][:3] == stored["search"]
    continued = results["search"][3]
    undisturbed = dict(re.findall(r"step (\d+)/12 .* dev/loss (\S+)", (folder / "train.txt").read_text()))
    assert (continued["state"], [step for step, _ in continued["curve"]]) == ("done", [4, 12])
    assert [loss for _, loss in continued["curve"]] == [
        pytest.approx(float(undisturbed[at]), abs=1e-3) for at in ("4", "12")
    ]
    before = {arm["arm"]: arm["scores"] for arm in stored["arms"]}
    assert all(arm["scores"] == before[arm["arm"]] for arm in results["arms"] if arm["arm"] in ("untuned", "lora"))


def _sources() -> list[str]:
    return _lines(OLD / "final" / "lora-0-1" / "test.src")


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]
