"""A sweep of three arms through the real driver, from its file to its table."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from support.sweep_process import DrivenSweep, end_all, wait_for

wait_long = partial(wait_for, seconds=120)

NUM_TRIALS = 5
NUM_SEEDS = 2
SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: {num_steps}, warmup_steps: 1, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [1, 3, 8]}}
    mid_dim: {{choice: [null, 16]}}
    init_token: {{choice: [pub, null]}}
    learning_rate:
      - {{log_uniform: [1e-3, 3e-2], when: {{mid_dim: [null]}}}}
      - {{log_uniform: [3e-4, 1e-2], when: {{mid_dim: [16]}}}}
  lora: {{rank: {{choice: [1, 2, 4, 8]}}, learning_rate: {{log_uniform: [1e-3, 1e-2]}}, num_trials: 3}}
  finetune: {{learning_rate: 1e-3}}
search: {{num_trials: {num_trials}, concurrency: 2, rungs: [{first}, {second}], keep: 0.5, seed: 3}}
final: {{num_seeds: {num_seeds}, metric: test/bleu, reference: finetune, num_beams: 2, max_new_tokens: 8}}
"""


class Sweep(DrivenSweep):
    """The sweep of this file."""

    def write(self, *, num_steps: int = 40, num_trials: int = NUM_TRIALS, num_seeds: int = NUM_SEEDS) -> None:
        """Write the sweep file."""
        numbers = {"num_steps": num_steps, "num_trials": num_trials, "num_seeds": num_seeds}
        text = SWEEP.format(base=self.base, first=num_steps // 4, second=num_steps // 2, **numbers)
        (self.folder / "small.yaml").write_text(text)

    def finish(self, *options: str) -> str:
        """Run the driver to its end; what it printed."""
        process = self.start(*options)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def result_texts(self) -> dict[Path, str]:
        """What the result files of all trials that have ended hold."""
        return {path: path.read_text() for path in self.result_files()}

    def control(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Ask something of the driver, from another process."""
        command = [sys.executable, "-m", "prefixray.control", "small", "--wait", "60", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)


@contextmanager
def table_sweep(folder: Path, base: Path) -> Iterator[Sweep]:
    """The sweep in a folder; no process of it is left behind."""
    sweep = Sweep(folder, base)
    sweep.write()
    try:
        yield sweep
    finally:
        end_all()


def assert_complete(sweep: Sweep, *, num_seeds: int = NUM_SEEDS, num_failed: int = 0) -> None:
    """Exactly the trials that were asked for, each ended once, each with one run in MLflow, nothing left running."""
    states = sweep.states()
    assert {name: sum(counts.values()) for name, counts in states.items()} == {
        "prefix": NUM_TRIALS,
        "lora": 3,
        "final/prefix": num_seeds,
        "final/lora": num_seeds,
        "final/finetune": num_seeds,
    }
    assert not any(counts["RUNNING"] or counts["WAITING"] for counts in states.values()), states
    assert sum(counts["FAIL"] for counts in states.values()) == num_failed, states
    runs = sweep.runs()
    keys = Counter(run.data.tags.get("prefixray.key", "sweep") for run in runs)
    assert set(keys.values()) == {1} and len(keys) == NUM_TRIALS + 3 + 3 * num_seeds + 2, keys
    folders = {path.relative_to(sweep.results).as_posix() for path in sweep.results.glob("final/*-*/")}
    assert {key for key in keys if key.startswith("final/")} == folders, "a final run has one name everywhere"
    statuses = Counter(run.info.status for run in runs)
    assert statuses == Counter(FINISHED=len(runs) - num_failed, FAILED=num_failed)


def results_of(sweep: Sweep) -> dict[str, Any]:
    """The results as they are on disk."""
    results: dict[str, Any] = json.loads((sweep.results / "results.json").read_text())
    return results
