"""The benchmarks of a search: its start, its load, its rates, its curves and the policies replayed over them."""

import inspect
import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from prefixray.cluster import loop, worker
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.trainer import Trainer

BENCH = Path(__file__).parent / "bench"


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
    curves = runpy.run_path(str(BENCH / "curve_worker.py"))["CurveTrainer"]
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
    assert search.steps == [4, 4, 2] and search.num_taken_up == 2, "the better two of three"
    longer = [policies.Curve(curve.losses | {3: curve.losses[4]}) for curve in curves]
    sampled = [policies.Curve(curve.losses, sample={2: 5 - curve.losses[2]}) for curve in longer]
    search = policies.Search(sampled, policies.Halving((2, 3), keep=0.5), evaluation=0.5, dev_sample=0.5)
    search.run(3)
    assert search.steps == [4, 2, 3], "by the sample at the first rung, by all of dev at the last"
    assert search.work == 9 + 0.25 * 3 + 0.5 * 3, "the sample at half of the price"
    search = policies.Search(sampled, policies.Halving((2,), keep=0.5), evaluation=0.5, dev_sample=0.5)
    search.run(3)
    assert search.steps == [2, 4, 4] and search.work == 10 + 0.5 * 5, "by all of dev at a lone rung"
    sampled[2] = longer[2]
    search = policies.Search(sampled, policies.Halving((2, 3), keep=0.5), evaluation=0.5, dev_sample=0.5)
    search.run(3)
    assert search.steps[0] == 2, "by all of dev, since not all have losses over the sample"


@pytest.mark.sweeps
def test_curves_go_on_where_they_were_stopped(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import curves

    command = ["--out", str(tmp_path), "--base", tiny_llama.name, "--num-train", "40", "--steps", "10", "--pack", "1"]
    curves.main(["lora_e2e", *command, "--num", "1"])
    file = tmp_path / "lora_e2e.json"
    (first,) = json.loads(file.read_text())
    curves.main(["lora_e2e", *command, "--num", "2"])
    entries = json.loads(file.read_text())
    assert entries[0] == first and len(entries) == 2 and "lora_e2e: 2 of 2" in capsys.readouterr().out
    assert {"1", "2", "4", "10"} <= set(entries[1]["curve"]) and entries[1]["method"] == "lora"
    curves.main(["lora_e2e", *command, "--num", "2"])
    assert "nothing is missing" in capsys.readouterr().out
    entries[1]["sample"] = {"1": entries[1]["sample"]["1"]}
    file.write_text(json.dumps(entries))
    curves.main(["lora_e2e", *command, "--samples"])
    again = json.loads(file.read_text())
    assert again[0] == first and again[1]["curve"] == entries[1]["curve"]
    assert set(again[1]["sample"]) == {"1", "2"} and again[1]["sample"]["1"] == entries[1]["sample"]["1"]
    lines = file.with_name("about.txt").read_text().splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["lora_e2e.json: 1 configurations"] * 3
