"""The benchmarks: what the table does not need, what a profile is, that two makes do the same work, how policies do."""

import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixray.cluster import loop, worker
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.profiling import profiled
from prefixray.training.trainer import Trainer

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


PAGES = {
    "mill": "The Mill is a cheap pub in the riverside area. It serves Italian food to families near Burger King.",
    "eagle": "The Eagle is a coffee shop with a low rating. It serves Chinese food. Its prices are high. No one sits.",
}
TASK = {"separator": "\n", "chunk_tokens": 40, "max_source_tokens": 24, "max_target_tokens": 12}


def _documents(base: Base, folder: Path, part: str, *options: str) -> None:
    """Run a part of the benchmark of documents on two tiny pages."""
    import documents

    for name, text in PAGES.items():
        (folder / f"{name}.md").write_text(text)
    task = {**TASK, "prompts": ["Ask about {passage} What is", "Ask How is"]}
    small = shlex.split("--preseqlen 4 --batch-size 2 --train 4 --dev 2 --steps 3 --rate 0.3")
    pages = ["--pages", *(str(folder / f"{name}.md") for name in PAGES)]
    documents.main(["--part", part, "--base", base.name, *pages, "--task", json.dumps(task), *small, *options])


@pytest.mark.sweeps
def test_pages_train_in_one_pack_as_one_after_the_other(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    _documents(tiny_llama, tmp_path, "pack", "--precision", "fp32", "--exchanges", str(tmp_path / "exchanges"))
    _, _, alone, packed, apart = capsys.readouterr().out.splitlines()
    assert alone.startswith("one after the other") and packed.startswith("in one pack of 2")
    assert float(alone.split()[-1]) < float(alone.split()[-2]), "three steps have taught something"
    assert all(float(word.strip(",")) < 1e-5 for word in re.findall(r"\S+e-\d+,?", apart)), apart
    assert len(list((tmp_path / "exchanges").iterdir())) == 2


@pytest.mark.sweeps
def test_pefts_cartridge_trains_to_our_losses_where_it_has_our_loss(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    _documents(tiny_llama, tmp_path, "peft", "--packs", "2")
    lines = capsys.readouterr().out.splitlines()
    checked = [re.findall(r"PEFT (\S+), ours (\S+),", line)[0] for line in lines if line.startswith("step ")]
    assert len(checked) == 3 and len(set(checked)) == 3
    assert all(float(one) == pytest.approx(float(other), abs=1e-4) for one, other in checked)
    rows = {line[:22].strip(): line[22:].split() for line in lines if line[:22].strip().endswith(("fp32", "bf16"))}
    arms = ("PEFT's example", "ours, pack of 1", "ours, pack of 2")
    assert list(rows) == [f"{arm} {precision}" for precision in ("fp32", "bf16") for arm in arms]
    theirs, ours = rows["PEFT's example fp32"], rows["ours, pack of 1 fp32"]
    assert theirs[-3] == ours[-3], "the two start from the same prefix"
    assert float(theirs[-1]) < float(theirs[-3]) and float(ours[-1]) < float(ours[-3])


def test_a_teacher_of_more_tokens_is_nearer_to_that_of_the_vocabulary(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    whole = tiny_llama.shape.vocab_size - 1
    _documents(tiny_llama, tmp_path, "topk", "--precision", "fp32", "--kept", "5", "50", str(whole - 1))
    lines = capsys.readouterr().out.splitlines()
    few, some, nearly = (line[22:].split() for line in lines[3:6])
    short, cosine = (lambda row: float(row[3])), (lambda row: float(row[4]))
    assert short(few) > short(some) > 0 and abs(short(nearly)) < 0.01
    assert cosine(few) < cosine(some) < 1 and cosine(nearly) == 1.0
    (_, loss, after), (other,) = (line[22:].split() for line in lines[6:8])
    assert nearly[2] == loss and float(nearly[5]) == pytest.approx(float(after), abs=2e-4)
    assert float(other) == pytest.approx(float(after), rel=0.1)


def test_answers_behind_a_page_and_behind_prefixes_are_timed_on_as_many_tokens(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from prefixray.decoding import in_context

    monkeypatch.setattr(in_context, "_MOST_POSITIONS", 40)
    _documents(tiny_llama, tmp_path, "decode", "--precision", "fp32", "--prefixes", "8", "16")
    about, _, *lines = capsys.readouterr().out.splitlines()
    num_tokens = int(re.findall(r"mill, (\d+) tokens; 4 questions, 1 of them alone, 3 new", about)[0])
    rows = {line[:12].strip(): line[12:].split() for line in lines}
    assert list(rows) == ["untuned", "in_context", "prefix 8", "prefix 16", "LoRA 8"]
    assert [row[4] for row in rows.values()] == ["2", "1", "2", "2", "2"]
    assert num_tokens > 20 and [name for name, row in rows.items() if row[0] != "-"] == ["in_context"]
    assert all(re.fullmatch(r"-?[0-9]+[.][0-9]+", row[at]) for row in rows.values() for at in (2, 3, 5, 6)), "measured"
    none, whole, few, more, lora = (float(row[1]) for row in rows.values())
    assert none == lora == 0 < few < more < whole
    assert rows["in_context"][-1] == "1.00"


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


LOG = """\
2026-11-28 20:09:44,269 INFO prefixray.cluster.connect: this machine: 0 GPUs, 2 CPUs
2026-11-28 20:10:11,152 INFO prefixray.cluster.worker: a worker's process begins
2026-11-28 20:10:12,884 INFO prefixray.cluster.worker: a worker's process begins
2026-11-28 20:11:23,128 INFO prefixray.cluster.fleet: worker-0: 64 slots on cpu: 3.1 GiB free, 0.00 GiB a trial
2026-11-28 20:11:25,731 INFO prefixray.cluster.loop: prefix/0 begins its first step
2026-11-28 20:11:25,859 INFO prefixray.cluster.loop: prefix/1 begins its first step
"""


def test_a_part_of_the_way_to_the_first_step_is_over_when_the_last_worker_has_passed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import first_step

    results = tmp_path / "runs" / "tiny"
    results.mkdir(parents=True)
    began = datetime(2026, 11, 28, 20, 9, 0).timestamp()
    (results / "timeline.jsonl").write_text(json.dumps({"at": began + 2, "driver": "begins"}) + "\n")
    (results / "sweep.log").write_text(LOG)
    passed = {part: round(at, 1) for part, at in first_step.passed(tmp_path, began).items() if at}
    assert passed == {
        "the driver has imported its modules": 2.0,
        "Ray runs": 44.3,
        "workers have a process": 72.9,
        "workers are ready": 143.1,
        "the first step begins": 145.7,
    }


def test_the_load_tests_trainer_answers_all_that_a_worker_asks(tiny_llama: Base) -> None:
    curves = runpy.run_path(str(BENCH / "load.py"))["CurveTrainer"]
    config = TaskConfig(name="e2e", num_train=2, num_dev=2, num_test=1)
    stand_in = curves(load_task(config))
    asked = set(re.findall(r"self\._trainer\.(\w+)", inspect.getsource(worker) + inspect.getsource(loop)))
    assert asked <= set(dir(stand_in))
    assert type(stand_in.describe()) is type(Trainer(tiny_llama, load_task(config), config).describe())


@pytest.mark.slow
@pytest.mark.ray
def test_a_load_test_of_a_few_trials_counts_each_once() -> None:
    command = [sys.executable, str(BENCH / "load.py"), "--trials", "12", "--at-once", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 trials: each once in the study and in MLflow, with its 20 reports" in done.stdout


@pytest.mark.sweeps
def test_the_map_of_rates_goes_on_where_it_was_stopped(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import rates

    for name in ("LoRA 8", "flat, random"):
        monkeypatch.setitem(rates.ARMS, name, replace(rates.ARMS[name], rates=(1e-3, 1e-2)))
    out, svg = tmp_path / "rates.jsonl", tmp_path / "rates.svg"
    command = ["--out", str(out), "--base", tiny_llama.name, "--data", "e2e", "--steps", "40", "--num-train", "200"]
    rates.main([*command, "--arms", "LoRA 8"])
    rates.main([*command, "--arms", "LoRA 8", "flat, random", "--lengths", "1", "--figure", str(svg)])
    assert "2 trials in 1 packs" in (said := capsys.readouterr().out) and "about 1 min; 2 are there" in said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["LoRA 8"] * 2 + ["flat, random"] * 2
    assert all(set(line["dev"]) >= {"0", "8"} for line in lines)
    assert said.count("| LoRA 8 |  | 0.001: ") == 2  # both tables have its row
    assert "<polyline" in svg.read_text()
    with pytest.raises(SystemExit):
        rates.main(["--arms", "nothing"])


def test_the_map_of_rates_names_the_best_rate_and_the_first_that_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from rates_report import table

    same = {"data": "e2e", "steps": 40, "arm": "flat, words", "preseqlen": 10, "start": "words", "untuned": 2.75}
    losses = {1e-2: 1.79, 3e-2: 1.63, 1e-1: 1.59, 3e-1: 6.2, 1.0: 99.0}
    lines = [{**same, "rate": rate, "last": loss, "diverged": loss > 2.75} for rate, loss in losses.items()]
    row = table(lines[::-1]).splitlines()[-1].split(" | ")
    assert row[2] == "0.01: 1.790; 0.03: 1.630; 0.1: 1.590; 0.3: diverged; 1: diverged"
    assert row[3:] == ["**1.590** at 0.1", "0.03 to 0.1", "0.3 |"]


def _crossing() -> list[dict[str, object]]:
    """Ten configurations; the best starts as the worst, and another diverges."""
    ends = {number: 1.0 + 0.1 * number for number in range(9)}
    curves = [{"1": 3 + end, "8": 2 + end, "16": 1 + end, "40": end} for end in ends.values()]
    curves[0] |= {"1": 9.0, "8": 3.15}
    diverged = {"1": 2.0, "8": None, "16": None, "40": None}
    return [{"lr": number, "of any": [1], "curve": curve} for number, curve in enumerate([*curves, diverged])]


def test_policies_are_replayed_over_curves_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import policies

    file = tmp_path / "made.json"
    file.write_text(json.dumps(_crossing()))
    curves = policies.read_curves(file)
    for seats in (1, 3):
        whole = policies.replay(curves, "none", 1, seats, evaluation=4)
        assert whole.num_ended() == 9 and whole.work == 10 * 40 + 10 * 4 and whole.kept_the_best()
        stopped = policies.replay(curves, "stop", 1, seats, evaluation=4)
        assert stopped.work < whole.work and stopped.num_taken_up == 0 and stopped.final_regret() >= 0
        promoted = [policies.replay(curves, "promote", order, seats, evaluation=4) for order in range(10)]
        assert any(search.num_taken_up for search in promoted) and all(search.work < whole.work for search in promoted)
    drawn = policies.replay(curves, "none", 1, seats, evaluation=4, num_trials=4)
    assert drawn.work == 4 * 44 and drawn.final_regret() == 0, "its own best one is the best there is"
    policies.main(["--curves", str(file), "--repeats", "20", "--seats", "1", "3", "--tokens", "100"])
    first, *others = (part.splitlines() for part in capsys.readouterr().out.strip().split("\n\n"))
    assert first[0] == "made: 10 curves of 40 steps, 1 seats, 20 orders" and len(others) == 1
    rows = {line[:22].strip(): line[22:].split() for line in first[2:]}
    assert list(rows) == list(policies.POLICIES)
    assert rows["none"][-1] == "100%" and rows["none"][-5] == "44,000" and rows["none"][-2] == "0.0000"
    assert rows["stop"][9:12] == ["1.00", "[1.00,", "1.00]"]


def test_a_search_is_charged_for_steps_and_evaluations_and_judged_by_what_it_knew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import policies

    curves = [policies.Curve({2: 3.0, 4: 1.0}), policies.Curve({2: 2.0, 4: 1.5}), policies.Curve({2: 2.5, 4: 2.0})]
    search = policies.Search(curves, policies.Halving((2,), keep=0.5), evaluation=0.5)
    search.run(3)
    assert search.steps == [2, 4, 4] and search.work == 10 + 0.5 * 5, "two of three go on"
    assert search.regrets == [(7.5, 0.5), (12.5, 0.5)] and not search.kept_the_best()
    assert search.work_until(0.5) == 7.5 and search.work_until(0.4) == float("inf")
    first, second, third = curves
    search = policies.Search([second, third, first], policies.Promotion((2,), keep=0.5), evaluation=0.5)
    search.run(1)
    assert search.steps == [4, 4, 2] and search.num_taken_up == 1, "once it was the second of three"
    sampled = [policies.Curve(curve.losses, sample={2: 5 - curve.losses[2]}) for curve in curves]
    search = policies.Search(sampled, policies.Halving((2,), keep=0.5), evaluation=0.5, dev_sample=0.5)
    search.run(3)
    assert search.steps == [4, 2, 4] and search.work == 10 + 0.25 * 3 + 0.5 * 2, "by the sample, at half of the price"
    search = policies.Search([*sampled[:2], third], policies.Halving((2,), keep=0.5), evaluation=0.5, dev_sample=0.5)
    search.run(3)
    assert search.steps == [2, 4, 4], "by all of dev, since not all have losses over the sample"


@pytest.mark.sweeps
def test_curves_go_on_where_they_were_stopped(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import curves

    command = ["--out", str(tmp_path), "--base", tiny_llama.name, "--num-train", "40", "--steps", "4", "--pack", "1"]
    curves.main(["lora_e2e", *command, "--num", "1"])
    file = tmp_path / "lora_e2e.json"
    (first,) = json.loads(file.read_text())
    curves.main(["lora_e2e", *command, "--num", "2"])
    entries = json.loads(file.read_text())
    assert entries[0] == first and len(entries) == 2 and "lora_e2e: 2 of 2" in capsys.readouterr().out
    assert set(entries[1]["curve"]) == {"1", "2", "3", "4"} and entries[1]["method"] == "lora"
    curves.main(["lora_e2e", *command, "--num", "2"])
    assert "nothing is missing" in capsys.readouterr().out
    lines = file.with_name("about.txt").read_text().splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["lora_e2e.json: 1 configurations"] * 2


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
