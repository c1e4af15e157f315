"""What a driver refuses before it starts anything."""

import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from support.fake_ray import FACTS

from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.driver.run import Outcome, _Sweep
from prefixray.errors import UserError
from prefixray.results.hypotheses import check_data
from prefixray.results.record import Results

SWEEP = """
name: small
base: {base}
task: {{name: e2e, num_train: 20, num_dev: 4, num_test: 4}}
train: {{batch_size: 4, num_steps: 4, precision: {precision}}}
arms: {{prefix: {{preseqlen: 1, mid_dim: null, init_token: null, learning_rate: {{log_uniform: [1e-3, 1e-2]}}}}}}
search: {{num_trials: 1, rungs: []}}
final: {{num_seeds: 1, metric: test/bleu}}
"""
COMMANDS = """
import sys
from prefixray import export, sweep
codes = [sweep.main([name]) for name in sys.argv[1:]]
codes.append(export.main(["runs/small", "--out", "full"]))
print(codes, *(name for name in ("torch", "transformers") if name in sys.modules))
import ray
assert not ray.is_initialized()
"""


def test_what_cannot_run_here_is_refused_before_ray_and_torch_start(
    tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "no-model").mkdir()
    wrong = {
        "offline": (
            "nobody/nothing",
            "fp32",
            "is not on this machine, and the hub cannot be asked (HF_HUB_OFFLINE is set)",
        ),
        "folder": ("./no-model", "fp32", "is no model: it has no config.json and no weights and no tokenizer"),
        "package": ("llm_nothing:some.gguf", "fp32", "the package llm_nothing is not installed"),
        "precision": (str(base_folders["gpt2"]), "4bit", "train.precision: 4bit: needs a GPU, and this is a CPU"),
        "warm_start": (str(base_folders["gpt2"]), "fp32", "search.warm_start: runs/none: is no sweep's folder"),
    }
    for name, (base, precision, _) in wrong.items():
        text = SWEEP.format(base=base, precision=precision)
        if name == "warm_start":
            text = text.replace("rungs: []", "rungs: [], warm_start: runs/none")
        (tmp_path / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-c", COMMANDS, *(f"{name}.yaml" for name in wrong)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["[2, 2, 2, 2, 2, 2]"], ran
    *lines, last = ran.stderr.splitlines()
    assert last == "--out: full: is not empty; name a new folder"
    for line, (_, _, told) in zip(lines, wrong.values(), strict=True):
        assert told in line


def test_a_notebook_shows_where_an_outcome_lies_not_its_whole_record() -> None:
    outcome = Outcome(Path("runs/small"), cast(Results, {"sweep": "small"}), None)
    assert repr(outcome) == "Outcome(folder=PosixPath('runs/small'), tracking_uri=None, runs_page=None)"


def test_ray_tune_is_imported_while_the_workers_load_and_not_before_they_are_started() -> None:
    code = "import sys, prefixray.driver.run; print(*{'ray.tune', 'pandas', 'torch', 'mlflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("documents", [[], ["manual"]])
def test_a_sweep_keeps_what_its_tokens_were_whatever_the_base_and_the_data_are(documents: list[str]) -> None:
    pool = SimpleNamespace(facts=replace(FACTS, rows_digest="r1", base_digest="a" * 40))
    driver = SimpleNamespace(_pool=pool, _config=SimpleNamespace(base="owner/name"), _documents=documents)
    digests = {"train.precision": "fp32", "task in tokens of base": "r1", **({} if documents else {"task": "0"})}
    assert _Sweep._digests(driver) == {"commit of base": "a" * 40, **digests}  # type: ignore[arg-type]
    pool.facts = replace(pool.facts, base_digest="0")
    assert _Sweep._digests(driver) == {"base": "0", **digests}  # type: ignore[arg-type]


def test_a_driver_does_not_score_by_other_data_than_the_workers_have_read(tmp_path: Path) -> None:
    lines = [f'{{"source": "s{number}", "target": "t{number}"}}\n' for number in (2, 1)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    task = TaskConfig(name="custom", path=str(tmp_path))
    pool = SimpleNamespace(facts=SimpleNamespace(data_digest=load_task(task).digest))
    driver = SimpleNamespace(_config=SimpleNamespace(task=task), _folder=None, _pool=pool)
    assert _Sweep._task.func(driver) == load_task(task)  # type: ignore[arg-type]
    (tmp_path / "test.jsonl").write_text("".join(sorted(lines)))
    with pytest.raises(UserError, match=r"^task\.path: .*: is not what the sweep's first worker has read; undo the"):
        _Sweep._task.func(driver)  # type: ignore[arg-type]


def test_a_driver_that_reads_other_data_than_its_workers_starts_no_search(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"source": "The Mill", "target": "a pub"}\n')
    task = TaskConfig(name="custom", path=str(tmp_path))
    digest = check_data(task, ())
    assert digest == load_task(task).digest
    pool = SimpleNamespace(wait=lambda arms: None, facts=SimpleNamespace(data_digest="that of another folder"))
    live, closed = SimpleNamespace(during=lambda view: nullcontext()), list[str]()
    driver = SimpleNamespace(
        _engine=SimpleNamespace(live=live),
        _start_view=None,
        _pool=pool,
        _config=SimpleNamespace(task=task, arms=()),
        _tracker=SimpleNamespace(close=closed.append),
    )
    with pytest.raises(UserError, match="is not what the sweep's first worker has read"):
        _Sweep.run(driver, digest)  # type: ignore[arg-type]
    assert closed == ["failed"]
