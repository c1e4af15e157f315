"""The sweep that faults hit: a fixed list of configurations in fp32 without early stopping; what it must end with."""

import json
import subprocess
from collections import Counter
from functools import partial
from typing import Any

import pytest

from support.sweep_process import DrivenSweep, wait_for

wait_long = partial(wait_for, seconds=600)

TOLERANCE = 1e-4  # of a dev loss in fp32, whose sums depend on who shares a batch
NUM_STEPS = 240
NUM_TRIALS = 4
SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: {num_steps}, eval_every: 40, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [1, 3, 5, 8]}}
    mid_dim: null
    init_token: pub
    learning_rate: 2e-3
    first: [{{preseqlen: 1}}, {{preseqlen: 3}}, {{preseqlen: 5}}, {{preseqlen: 8}}]
  lora: {{rank: 2, learning_rate: 1e-3}}
search: {{num_trials: {num_trials}, concurrency: 4, rungs: [], seed: 3, max_failures: 1}}
final: {{num_seeds: 1, metric: test/bleu, reference: lora, num_beams: 2, max_new_tokens: 8}}
"""


class Sweep(DrivenSweep):
    """The sweep, seen from outside its driver."""

    def write(self, *, num_steps: int = NUM_STEPS) -> None:
        """Write the sweep file."""
        text = SWEEP.format(base=self.base, num_steps=num_steps, num_trials=NUM_TRIALS)
        (self.folder / "small.yaml").write_text(text)

    def finish(self, *options: str) -> str:
        """Run the driver to its end; what it printed."""
        return output_of(self.start(*options))

    def losses(self) -> dict[str, float]:
        """The dev loss that each trial of the search and the final stage has ended with."""
        paths = {str(path.parent.relative_to(self.results)): path for path in self.result_files()}
        ended = {key: json.loads(path.read_text()) for key, path in paths.items()}
        return {key: result["metrics"]["dev/loss"] for key, result in ended.items() if result["state"] == "done"}

    def curves(self) -> list[list[Any]]:
        """The curves of the search, in the order of its trials."""
        search = json.loads((self.results / "results.json").read_text())["search"]
        return [trial["curve"] for trial in sorted(search, key=lambda trial: int(trial["number"]))]


def output_of(process: "subprocess.Popen[str]", code: int = 0, seconds: float = 900) -> str:
    """Wait for the driver to end; what it printed."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


def assert_complete(sweep: Sweep, uri: str | None = None) -> None:
    """Exactly the trials that were asked for, each ended once, each with one run in MLflow that has its curve."""
    assert sweep.states() == {
        "prefix": Counter(COMPLETE=NUM_TRIALS),
        "final/prefix": Counter(COMPLETE=1),
        "final/lora": Counter(COMPLETE=1),
    }
    runs = sweep.runs(uri)
    keys = Counter(run.data.tags.get("prefixray.key", "sweep") for run in runs)
    assert set(keys.values()) == {1} and len(keys) == NUM_TRIALS + 2 + 2, keys
    assert {run.info.status for run in runs} == {"FINISHED"}
    named = {run.data.tags.get("prefixray.key"): run for run in runs}
    assert "test/bleu" in named.pop("untuned").data.metrics and "dev/loss" not in named.pop(None).data.metrics
    assert all("dev/loss" in run.data.metrics for run in named.values())


def assert_same(sweep: Sweep, undisturbed: Sweep, tolerance: float = TOLERANCE) -> None:
    """The numbers of every trial, and what was decoded with the winners, are those of the undisturbed run."""
    assert sweep.losses() == pytest.approx(undisturbed.losses(), abs=tolerance)
    for ours, theirs in zip(sweep.curves(), undisturbed.curves(), strict=True):
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=tolerance)
    for file in undisturbed.results.glob("final/*/test.hyp"):
        assert (sweep.results / file.relative_to(undisturbed.results)).read_text() == file.read_text()
