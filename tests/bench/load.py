"""A thousand trials through the real driver, Ray Tune, Optuna and MLflow, killed once in the middle.

    python tests/bench/load.py                     # 1,000 trials of 20 reports, 64 at once, in a quarter of an hour
    python tests/bench/load.py --trials 100

What is not real is the trainer inside the workers: its trials follow a known curve instead of training. The driver is
killed with SIGKILL when half of the trials have ended, and started again. Printed are the driver's costs while the
sweep grows; checked is that every trial is in the study and in MLflow, once, with all of its reports.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from curve_worker import CurveWorker

from prefixray.cluster import worker_handle
from prefixray.config.load import load_sweep
from prefixray.driver import run
from prefixray.driver.coordinator import Coordinator
from prefixray.driver.engine import tune
from prefixray.trial import Report

NUM_REPORTS = 20
SWEEP = """
name: load
base: known-curves
task: {{name: custom, train: {rows}, dev: {rows}, test: {rows}}}
train: {{batch_size: 4, num_steps: {num_reports}, eval_every: 1, warmup_steps: 0, precision: fp32}}
arms:
  prefix:
    preseqlen: {{int: [1, 200]}}
    mid_dim: {{choice: [null, 256, 512, 800]}}
    init_token: {{choice: [null, summarize, table-to-text]}}
    prefix_dropout: {{uniform: [0.0, 0.3]}}
    learning_rate: {{log_uniform: [1e-5, 1e-1]}}
search: {{num_trials: {num_trials}, concurrency: {at_once}, rungs: [5, 10], keep: 1.0, seed: 1}}
final: {{num_seeds: 1, metric: test/bleu, num_beams: 1, max_new_tokens: 4}}
"""


@dataclass
class Costs:
    """What the driver has spent so far: CPU seconds of the thread that did it, where nothing else is said."""

    ended: int = 0  # trials, of this driver
    reports: int = 0
    in_reports: float = 0.0
    in_asks: float = 0.0
    pictures: int = 0
    in_pictures: float = 0.0
    cpu: float = 0.0  # seconds of the driver's process, Tune and MLflow included
    megabytes: float = 0.0  # its resident memory
    waiting: int = 0  # entries that MLflow's thread has not sent yet


class MeteredCoordinator(Coordinator):
    """The real coordinator with a clock beside it; `COSTS` is appended to whenever a trial ends."""

    costs = Costs()
    file: Path
    begun: float | None = None  # CPU seconds before the first proposal

    def next(self) -> dict[str, Any] | Literal["FINISHED"] | None:
        """As Coordinator says."""
        if self.begun is None:
            MeteredCoordinator.begun = time.process_time()
        started = time.thread_time()
        proposed = super().next()
        if isinstance(proposed, dict):
            self.costs.in_asks += time.thread_time() - started
        return proposed

    def on_report(self, report: Report) -> bool:
        """As Coordinator says."""
        started = time.thread_time()
        goes_on = super().on_report(report)
        self.costs.in_reports += time.thread_time() - started
        self.costs.reports += 1
        if report.state == "done":
            self.costs.ended += 1
            self._note()
        return goes_on

    def tick(self) -> None:
        """As Coordinator says."""
        started = time.thread_time()
        super().tick()
        self.costs.in_pictures += time.thread_time() - started

    def view(self, title: str, stage: str) -> Any:  # noqa: ANN401
        """As Coordinator says."""
        started = time.thread_time()
        view = super().view(title, stage)
        self.costs.in_pictures += time.thread_time() - started
        self.costs.pictures += 1
        return view

    def _note(self) -> None:
        self.costs.cpu = time.process_time() - (self.begun or 0.0)
        self.costs.megabytes = psutil.Process().memory_info().rss / 2**20
        self.costs.waiting = self._ledger._tracker._sender._num_waiting  # type: ignore[attr-defined]
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.costs)) + "\n")


def main() -> None:
    """Run, kill, run again, check; with --drive, be the driver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="leave the sweep's folder")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive is not None:
        _drive(Path(options.drive))
        return
    folder = Path(tempfile.mkdtemp(prefix="load-"))
    _write(folder, options.trials, options.at_once)
    results = folder / "runs" / "load"
    started = time.monotonic()
    first = _start(folder, "first")
    while (ended := len(list(results.glob("trials/prefix/*/result.json")))) < options.trials // 2:
        assert first.poll() is None, (folder / "first.out").read_text()[-2000:]
        time.sleep(0.5)
    _kill(first)
    print(f"killed after {time.monotonic() - started:.0f} s, {ended} trials ended", flush=True)
    second = _start(folder, "second")
    assert second.wait() == 0, (folder / "second.out").read_text()[-2000:]
    print(
        f"{options.trials} trials, {options.at_once} at once: {time.monotonic() - started:.0f} s from first to last\n"
    )
    for name in ("first", "second"):
        _table(name, [Costs(**json.loads(line)) for line in (folder / f"{name}.jsonl").read_text().splitlines()])
    _check(results, options.trials)
    if options.keep:
        print(folder)


def _write(folder: Path, num_trials: int, at_once: int) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"source": f"s {i}", "target": f"target {i} is this"}) + "\n" for i in range(8)))
    text = SWEEP.format(rows=rows, num_reports=NUM_REPORTS, num_trials=num_trials, at_once=at_once)
    (folder / "load.yaml").write_text(text, encoding="utf-8")


def _start(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    (folder / "costs").write_text(f"{name}.jsonl")
    environment = {**os.environ, "PREFIXRAY_CACHE": str(folder / "cache")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, str(Path(__file__).resolve()), "--drive", str(folder)]
    with (folder / f"{name}.out").open("w") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _drive(folder: Path) -> None:
    """Be `prefixray.sweep` with the metered coordinator and the workers that follow curves."""
    MeteredCoordinator.file = folder / (folder / "costs").read_text()
    tune.Coordinator = MeteredCoordinator  # type: ignore[misc]
    worker_handle.Worker = CurveWorker  # type: ignore[misc]
    with (folder / "shown.txt").open("a", encoding="utf-8") as shown:
        run.drive(load_sweep(str(folder / "load.yaml")), folder / "load.yaml", shown=shown)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL the driver alone, and wait until what it owned has gone with it."""
    owned = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(owned, timeout=30)


def _table(name: str, costs: list[Costs]) -> None:
    """The costs over the trials since the last line."""
    print(
        f"{name} driver, CPU ms: of a report, of a proposal, of a picture of the live view; of all threads per report"
    )
    print("ended  report    ask  picture    all  driver MiB  MLflow waits for")
    before = Costs()
    marks = [n for n in (10, 50, *range(100, len(costs) + 1, 100)) if n < len(costs)] + [len(costs)]
    for mark in marks:
        now = costs[mark - 1]
        report = 1000 * (now.in_reports - before.in_reports) / max(1, now.reports - before.reports)
        ask = 1000 * (now.in_asks - before.in_asks) / max(1, now.ended - before.ended)
        picture = 1000 * (now.in_pictures - before.in_pictures) / max(1, now.pictures - before.pictures)
        cpu = 1000 * (now.cpu - before.cpu) / max(1, now.reports - before.reports)
        line = f"{mark:5}  {report:6.2f} {ask:6.1f} {picture:8.2f} {cpu:6.2f} {now.megabytes:11.0f} {now.waiting:17}"
        print(line)
        before = now
    print()


def _check(results: Path, num_trials: int) -> None:
    """Every trial once, in the study and in MLflow, with all of its reports."""
    import optuna
    from mlflow import MlflowClient
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(results / "study.journal")))
    trials = [t for t in optuna.load_study(study_name="load/prefix", storage=storage).trials if t.state.is_finished()]
    done = [trial for trial in trials if "duplicate" not in trial.user_attrs]
    assert Counter(trial.state.name for trial in done) == {"COMPLETE": num_trials}, "all trials are done"
    assert all(len(trial.intermediate_values) == NUM_REPORTS for trial in done), "each with all of its reports"
    assert len(json.loads((results / "results.json").read_text())["search"]) == num_trials
    client = MlflowClient(tracking_uri=f"sqlite:///{results / 'mlflow.db'}")
    keys: Counter[str] = Counter()
    token = None
    while True:
        page = client.search_runs(
            [client.get_experiment_by_name("load").experiment_id],
            "tags.`prefixray.stage` = 'prefix'",
            max_results=1000,
            page_token=token,
        )
        keys.update(run.data.tags["prefixray.key"] for run in page)
        token = page.token
        if not token:
            break
    expected = Counter({f"prefix/{trial.number}": 1 for trial in done})
    assert keys == expected, f"in MLflow: {len(keys)} trials in {keys.total()} runs"
    last = {f"prefix/{t.number}": t.value for t in done[:: max(1, num_trials // 20)]}
    for key, value in last.items():
        (run,) = client.search_runs(client.search_experiments()[0].experiment_id, f'tags.`prefixray.key` = "{key}"')
        points = client.get_metric_history(run.info.run_id, "dev/loss")
        assert sorted(point.step for point in points) == list(range(1, NUM_REPORTS + 1)), f"{key}: {len(points)} points"
        assert abs(points[-1].value - value) < 1e-9
    print(f"{len(done)} trials: each once in the study and in MLflow, with its {NUM_REPORTS} reports")


if __name__ == "__main__":
    main()
