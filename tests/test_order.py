"""In fp32 a trial's numbers depend neither on how many workers there are nor on the order of the work.

Who passes a rung does. Without rungs, and where the sampler learns nothing, the whole table is the same.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.sweep_process import DrivenSweep, end_all

pytestmark = [
    pytest.mark.ray,
    pytest.mark.sweeps,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says on which CPUs a process may run"),
]

SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 200, num_dev: 16, num_test: 6}}
train: {{batch_size: 4, num_steps: 24, warmup_steps: 1, precision: fp32}}
arms:
  prefix:
    preseqlen: {{choice: [1, 3, 8]}}
    mid_dim: {{choice: [null, 16]}}
    init_token: {{choice: [pub, null]}}
    learning_rate: {{log_uniform: [1e-3, 1e-2]}}
  lora: {{rank: {{choice: [1, 2, 4]}}, learning_rate: {{log_uniform: [1e-3, 1e-2]}}, num_trials: 4}}
  adapter: {{bottleneck: 4, learning_rate: 1e-3}}
  finetune: {{learning_rate: 1e-3}}
search: {{num_trials: 8, sampler: random, keep: 0.5, seed: 3}}
final: {{num_seeds: 2, metric: test/bleu, reference: finetune, num_beams: 2, max_new_tokens: 8}}
"""


@pytest.fixture(autouse=True)
def _no_sweep_is_left() -> Iterator[None]:
    yield
    end_all()


def _run(folder: Path, base: Path, cpus: set[int], **search: str) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Run the sweep, a worker on each of these CPUs: all trials' dev losses by step, and the arms' final runs."""
    folder.mkdir()
    (folder / "small.yaml").write_text(SWEEP.format(base=base))
    sweep = DrivenSweep(folder, base)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)  # the driver inherits it
    try:
        process = sweep.start("--set", *(f"search.{key}={value}" for key, value in search.items()))
    finally:
        os.sched_setaffinity(0, allowed)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    log = (sweep.results / "sweep.log").read_text()
    assert {number for number in range(4) if f"worker-{number}: " in log} == set(range(len(cpus))), log
    curves = {
        f"{study}/{trial.number}": dict(trial.intermediate_values)
        for study, trials in sweep.trials().items()
        for trial in trials
    }
    results = json.loads((sweep.results / "results.json").read_text())
    return curves, {arm["arm"]: arm["seeds"] for arm in results["arms"]}


@pytest.mark.parametrize("rungs", ["[4,8]", "[]"])
def test_one_worker_with_one_trial_at_a_time_and_two_with_packs_of_four_give_the_same_numbers(
    tmp_path: Path, base_folders: Mapping[str, Path], rungs: str
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    base = base_folders["llama"]
    alone, arms_alone = _run(tmp_path / "alone", base, {cpus[0]}, concurrency="1", rungs=rungs)
    packed, arms_packed = _run(tmp_path / "packed", base, set(cpus[:2]), concurrency="8", rungs=rungs)
    common = [(key, step) for key in alone for step in alone[key].keys() & packed.get(key, {}).keys()]
    first = 24 if rungs == "[]" else 4
    assert len([key for key, step in common if step == first and key.startswith(("prefix/", "lora/"))]) == 12
    for key, step in common:
        assert packed[key][step] == pytest.approx(alone[key][step], rel=1e-5), (key, step)
    assert set(arms_packed) == {"untuned", "prefix", "lora", "adapter", "finetune"}
    # with rungs the winners of the searched arms are a matter of who came to the end
    for name in arms_packed.keys() - ({"prefix", "lora"} if rungs != "[]" else set()):
        for one, other in zip(arms_packed[name], arms_alone[name], strict=True):
            assert one["scores"] == other["scores"]
            assert one["dev_loss"] == (other["dev_loss"] and pytest.approx(other["dev_loss"], rel=1e-5)), name
