"""A sweep from its file to its table. Running the same sweep again continues it.

One driver at a time: the sweep's folder is locked by the kernel, so the lock of a killed driver is gone with it.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prefixray.cluster.connect import Cluster, chosen_address, connected
from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.pool import Pool
from prefixray.cluster.worker import WorkerSetup
from prefixray.config.base_path import find_base
from prefixray.config.identity import differences, dump, identity, restore
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.driver.coordinator import Coordinator
from prefixray.driver.final_stage import best_candidate, final_runs
from prefixray.driver.stage import MakeSpec, Stage
from prefixray.driver.tune import run_stages
from prefixray.errors import UserError
from prefixray.planning.slots import num_at_once
from prefixray.planning.speeds import keep_speeds
from prefixray.reporting.live import LiveView
from prefixray.reporting.page import write_page
from prefixray.reporting.tables import render_markdown, render_note, write_csv
from prefixray.results.compare import UNTUNED, Facts, FinalRun, make_results
from prefixray.results.hypotheses import Split
from prefixray.results.record import Importance, Results, SearchTrial, Stored, is_finished, load_results
from prefixray.search.budget import Budget
from prefixray.search.halving import Halving
from prefixray.search.importance import parameter_importance
from prefixray.search.requests import Inbox
from prefixray.search.status import View
from prefixray.search.study import ArmStudy, FixedStudy, Proposal, Record, repair_journal
from prefixray.system.atomic_files import write_whole
from prefixray.system.path_or_hub import local_path
from prefixray.system.records import Scalar
from prefixray.system.seeds import CANDIDATE_REPLICATE
from prefixray.tracking.tracker import Tracker, check_server, open_tracker
from prefixray.tracking.views import column
from prefixray.trial import TrialFolder, TrialSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a sweep leaves behind."""

    folder: Path
    results: Results
    tracking_uri: str | None


def run_sweep(config: SweepConfig, file: Path, *, address: str | None = None, shown: TextIO | None = None) -> Outcome:
    """Run a sweep, or what is left of it, and return its results; `shown` gets the live view instead of stdout.

    Raises `UserError` where another driver holds the sweep, or where its folder holds a sweep with other settings.
    """
    if chosen_address(address) == "local":
        find_base(config.base)  # a wrong one is told before Ray starts
    folder = Path("runs") / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        _check_identity(config, file, folder)
        write_whole(folder / "sweep.json", json.dumps(dump(config), indent=1) + "\n")
        if file.resolve() != (folder / "sweep.yaml").resolve():
            write_whole(folder / "sweep.yaml", file.read_text(encoding="utf-8"))
        repair_journal(folder / "study.journal")
        _check_data(config.task)
        check_server(config.tracking)
        live = LiveView(shown)
        try:
            with connected(address) as cluster:
                return _Sweep(config, folder, cluster, live).run()
        finally:
            live.close()


class _Sweep:
    """One run of the driver over a sweep."""

    def __init__(self, config: SweepConfig, folder: Path, cluster: Cluster, live: LiveView) -> None:
        self._config, self._folder, self._cluster, self._live = config, folder, cluster, live
        self._started, self._began = time.monotonic(), time.time()
        self._inbox, self._budget = Inbox(folder), Budget(folder, config.search)
        base_name = config.base.partition(":")[2] or config.base
        self._title = f"{config.name}  {base_name} on {config.task.name}   {folder}"
        live.update(View(title=self._title, stage="start", message=f"{cluster}; loading the base and the task"))
        log = str((folder / "sweep.log").absolute())
        base, task = _absolute(config.base), _absolute_paths(config.task)
        setup = WorkerSetup(
            base,
            task,
            config.train,
            cluster.device,
            cluster.num_threads,
            max_new_tokens=config.final.max_new_tokens,
            log=log,
            trust_remote_code=config.trust_remote_code,
            max_failures=config.search.max_failures,
        )
        self._pool = Pool(cluster, setup, folder / "workers")
        self._tracker: Tracker = open_tracker(config.tracking, folder, config.name, _sweep_params(config))

    def run(self) -> Outcome:
        """Search, final stage, table; again where requests came too late for the search."""
        state = "failed"
        try:
            self._pool.wait(self._config.arms)
            self._tracker.start({}, self._revisions(), [self._folder / "sweep.yaml"], _columns(self._config))
            studies = self._search()
            results = self._final(studies)
            while studies and not self._inbox.is_empty():
                self._budget.resume(self._pool.device_seconds)
                studies = self._search()
                results = self._final(studies)
            keep_speeds(self._config, self._folder, self._pool.facts, self._began)
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            self._tracker.close(state)  # type: ignore[arg-type]
        return Outcome(self._folder, results, self._tracker.uri)

    def _revisions(self) -> dict[str, str]:
        """Which weights and which data the sweep is about, as tags."""
        facts = self._pool.facts
        digests = {"prefixray.base_digest": facts.base_digest, "prefixray.data_digest": facts.data_digest}
        return {"prefixray.stage": "sweep", "prefixray.task": self._config.task.name, **digests}

    def _search(self) -> dict[str, ArmStudy]:
        """Run the search of every arm that has something to search; its studies by arm."""
        config = self._config
        studies: dict[str, ArmStudy] = {}
        stages = []
        for arm in (arm for arm in config.arms if arm.dimensions):
            at_once = self._concurrency(arm)
            study = ArmStudy(
                self._folder / "study.journal", config.name, arm, seed=config.search.seed, num_startup=at_once
            )
            studies[arm.name] = study
            halving = Halving(config.search.rungs, config.search.keep)
            stages.append(Stage(arm.name, arm, study, at_once, self._search_spec(arm), halving))
        if stages:
            try:
                if (problem := self._budget.problem()) is not None:
                    logger.warning("%s", problem)
                self._run("search", stages)
            except KeyboardInterrupt:
                self._store_search(studies)
                raise
            finally:
                with suppress(OSError):  # a disk that is full was met before, and is what ends the sweep
                    self._budget.note(self._pool.device_seconds, is_last=True)
        self._store_search(studies)
        return studies

    def _store_search(self, studies: Mapping[str, ArmStudy]) -> None:
        """Write what the search has found, where there are no results of a final stage."""
        stored = self._stored()
        if stored is None or not is_finished(stored):
            rungs, importance = list(self._config.search.rungs), self._importance()
            self._store({"search": self._search_trials(studies), "rungs": rungs, "importance": importance})

    def _final(self, studies: Mapping[str, ArmStudy]) -> Results:
        config, metric = self._config, self._config.final.metric.removeprefix("test/")
        task = load_task(config.task)
        best = {arm.name: self._best(arm, studies) for arm in config.arms}
        candidates = {
            arm.name: [
                run for record in best[arm.name] for run in final_runs(arm, record, [CANDIDATE_REPLICATE], self._folder)
            ]
            for arm in config.arms
            if len(best[arm.name]) > 1
        }
        if candidates:
            compared = self._train("candidates", candidates)
            self._decode([self._job(run.artifact, run.folder, "dev") for own in compared.values() for run in own])
            for arm_name, own in compared.items():
                number = best_candidate(own, task.dev_sources, metric).number
                best[arm_name] = [record for record in best[arm_name] if record is not None and record.number == number]
        seeds = range(1, config.final.num_seeds + 1)
        wanted = {
            arm.name: final_runs(arm, best[arm.name][0], seeds, self._folder) for arm in config.arms if best[arm.name]
        }
        floor = self._folder / "final" / UNTUNED
        self._pool.decode_when_idle(self._job(None, floor, "test"))
        runs = self._train("final", wanted)
        finished = [run for own in runs.values() for run in own]
        self._decode([self._job(None, floor, "test"), *(self._job(r.artifact, r.folder, "test") for r in finished)])
        self._live.update(View(title=self._title, stage="score", message="scoring and comparing"))
        facts = Facts(
            config=config,
            provenance=self._pool.facts,
            leak=task.leak,
            decoding=self._decoding(),
            search=self._search_trials(studies),
            minutes=self._minutes(runs),
            sweep_minutes=(time.monotonic() - self._started) / 60,
        )
        results = make_results(facts, runs, floor, task.test_sources)
        for arm in results["arms"]:
            for run, seed in zip(runs.get(arm["arm"], ()), arm["seeds"], strict=False):
                scores = {f"test/{name}": value for name, value in seed["scores"].items()}
                self._tracker.score(f"final/{run.arm.name}/{run.item}", scores)
        self._publish(results)
        return results

    def _best(self, arm: ArmConfig, studies: Mapping[str, ArmStudy]) -> list[Record | None]:
        """The records whose configurations go on; None stands for the only configuration of an unsearched arm."""
        if arm.name not in studies:
            return [None]
        found = studies[arm.name].best(self._config.final.candidates)
        if not found:
            logger.warning("no trial of %s has a score: it is left out of the final stage", arm.name)
        return list(found)

    def _train(self, stage: str, wanted: Mapping[str, Sequence[FinalRun]]) -> dict[str, list[FinalRun]]:
        """Train these runs; those that ended well, by arm."""
        stages = []
        studies = []
        arms = sorted(self._config.arms, key=lambda arm: not arm.exclusive)  # those that need an empty worker first
        for arm in (arm for arm in arms if wanted.get(arm.name)):
            name = f"{stage}/{arm.name}"
            runs = {run.item: run for run in wanted[arm.name]}
            study = FixedStudy(self._folder / "study.journal", self._config.name, name, list(runs))
            studies.append(study)
            split: Split = "test" if stage == "final" else "dev"

            def decode(spec: TrialSpec, split: Split = split) -> DecodeJob:
                return self._job(spec.files.artifact, spec.files.path, split)

            stages.append(Stage(name, arm, study, len(runs), self._final_spec(name, arm, runs), decode=decode))
        self._run(stage, stages)
        for study in studies:
            study.withdraw()
        done = {arm: [run for run in runs if run.result() is not None] for arm, runs in wanted.items()}
        return {arm: runs for arm, runs in done.items() if runs}

    def _run(self, name: str, stages: Sequence[Stage]) -> None:
        budget = self._budget if name == "search" else None
        coordinator = Coordinator(stages, self._pool, self._tracker, self._inbox, budget)
        scratch, resources = self._folder / "tune", self._cluster.trial_resources
        run_stages(coordinator, scratch, resources, self._live, title=self._title, name=name)

    def _decode(self, jobs: Sequence[DecodeJob]) -> None:
        message = f"decoding with {len(jobs)} models"
        self._live.update(View(title=self._title, stage="decode", message=message))
        self._pool.decode(jobs)

    def _job(self, artifact: Path | None, folder: Path, split: Split) -> DecodeJob:
        made_by = None if artifact is None else str(artifact.absolute())
        return made_by, str(folder.absolute()), split, self._decoding()

    def _decoding(self) -> dict[str, Any]:
        return self._config.final.decoding.model_dump()

    def _concurrency(self, arm: ArmConfig) -> int:
        slots, workers = self._pool.num_slots, self._pool.most_workers
        return num_at_once(arm, self._config.search.concurrency, num_slots=slots, num_workers=workers)

    def _search_spec(self, arm: ArmConfig) -> MakeSpec:
        config, folder = self._config, self._folder.absolute()

        def spec(trial: Proposal | Record) -> TrialSpec:
            return TrialSpec(
                key=f"{arm.name}/{trial.number}",
                config=arm.trial(trial.values),
                seed=config.search.seed,
                replicate=0,
                rungs=config.search.rungs,
                folder=str(folder / "trials" / arm.name / str(trial.number)),
                keep_artifact=not arm.exclusive,
                decoding=self._decoding(),
            )

        return spec

    def _final_spec(self, stage: str, arm: ArmConfig, runs: Mapping[str, FinalRun]) -> MakeSpec:
        def spec(trial: Proposal | Record) -> TrialSpec:
            run = runs[str(trial.values["item"])]
            return TrialSpec(
                key=f"{stage}/{run.item}",
                config=run.config,
                seed=self._config.search.seed,
                replicate=run.replicate,
                rungs=(),
                eval_at=self._config.search.rungs,
                folder=str(run.folder.absolute()),
                decoding=self._decoding(),
            )

        return spec

    def _search_trials(self, studies: Mapping[str, ArmStudy]) -> list[SearchTrial]:
        return [
            _search_trial(self._config, self._config.arm(name), record)
            for name, study in studies.items()
            for record in study.records()
        ]

    def _minutes(self, runs: Mapping[str, Sequence[FinalRun]]) -> dict[str, float]:
        """Training time of each arm's search; of an arm with nothing to search, of one final run."""
        minutes = {}
        for arm in self._config.arms:
            folders = map(TrialFolder, self._folder.glob(f"trials/{arm.name}/*"))
            ended = [result for folder in folders if (result := folder.result())]
            results = ended or [run.result() or {} for run in runs.get(arm.name, ())[:1]]
            minutes[arm.name] = sum(result.get("metrics", {}).get("train/seconds", 0.0) for result in results) / 60
        return minutes

    def _store(self, results: Mapping[str, Any]) -> None:
        write_whole(self._folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")

    def _publish(self, results: Results) -> None:
        """Write the results in every form, and log them."""
        self._keep_older(results)
        results["rungs"], results["importance"] = list(self._config.search.rungs), self._importance()
        self._store(results)
        write_whole(self._folder / "results.md", render_markdown(results))
        write_csv(results, self._folder / "results.csv")
        page = write_page(results, self._folder)
        scores = {
            f"test/{metric}/{arm['arm']}": interval["value"]
            for arm in results["arms"]
            for metric, interval in arm["scores"].items()
        }
        files = [self._folder / f"results.{ending}" for ending in ("json", "md", "csv")]
        self._tracker.summary(scores, [*files, *page], render_note(results))

    def _importance(self) -> list[Importance]:
        journal, config = self._folder / "study.journal", self._config
        found = [parameter_importance(journal, config.name, arm, config.search.rungs) for arm in config.arms]
        return [one for one in found if one is not None]

    def _keep_older(self, results: Results) -> None:
        """Where an extension has changed a winner, the older results stay beside the new ones."""
        older = self._stored()
        if older is not None and is_finished(older) and older["arms"] != results["arms"]:
            self._put_aside()

    def _stored(self) -> Stored | None:
        """The results that the folder holds, if it does; such as cannot be read stay beside the new ones."""
        if not (self._folder / "results.json").is_file():
            return None
        try:
            return load_results(self._folder)
        except UserError as error:
            logger.warning("%s; it is kept as %s", error, self._put_aside().name)
            return None

    def _put_aside(self) -> Path:
        """Give `results.json` the next number that no older one has."""
        numbers = [path.suffixes[0][1:] for path in self._folder.glob("results.*.json")]
        number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
        return (self._folder / "results.json").rename(self._folder / f"results.{number}.json")


def _search_trial(config: SweepConfig, arm: ArmConfig, record: Record) -> SearchTrial:
    last = max(record.reports, default=0)
    at_rung = record.state == "stopped" and record.stopped_by is None and last in config.search.rungs
    rung = config.search.rungs.index(last) + 1 if at_rung else None
    value = record.reports.get(last) if record.state == "running" else record.value
    return SearchTrial(
        arm=arm.name,
        number=record.number,
        config=dict(record.values),
        step=last,
        num_steps=arm.num_steps,
        dev_loss=value,
        state=record.state,
        rung=rung,
        curve=sorted(record.reports.items()),
    )


def _columns(config: SweepConfig) -> list[str]:
    """What tells the runs of the sweep apart, for the saved views of MLflow's page."""
    searched = dict.fromkeys(key for arm in config.arms for key in arm.dimensions)
    tags = [column("tags", f"prefixray.{name}") for name in ("arm", "state")]
    metrics = [column("metrics", name) for name in ("dev/loss", config.final.metric)]
    return [*tags, *metrics, *(column("params", key) for key in searched)]


def _sweep_params(config: SweepConfig) -> dict[str, Scalar]:
    """What every run of the sweep shares."""
    search = config.search
    return {
        "sweep": config.name,
        "base": config.base,
        "task": config.task.name,
        "search.seed": search.seed,
        "search.num_trials": search.num_trials,
    }


def _absolute(path: str) -> str:
    """A path that exists here, for processes that stand elsewhere; anything else, a hub id say, as it is."""
    local = local_path(path)
    return path if local is None else str(local.resolve())


def _absolute_paths(task: TaskConfig) -> TaskConfig:
    return task.model_copy(update={key: _absolute(path) for key, path in task.paths.items()})


def _check_data(task: TaskConfig) -> None:
    """Read files that lie here once before Ray starts, which takes longer: a row that is wrong is said at once."""
    if task.paths and all(local_path(path) is not None for path in task.paths.values()):
        leak = load_task(task).leak
        if leak is not None:
            logger.warning("task: %s", leak)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock; `UserError` names who has it."""
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{folder}: another driver runs this sweep: {file.read().strip()}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _check_identity(config: SweepConfig, file: Path, folder: Path) -> None:
    """A folder holds one sweep: all but budgets, tracking and the final stage must be unchanged."""
    path = folder / "sweep.json"
    if not path.is_file() or not (folder / "study.journal").is_file():
        return  # no trial was proposed yet
    try:
        held = restore(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # pydantic's and JSON's are ValueErrors
        raise UserError(f"{path}: was written by another version; give this sweep another name ({error})") from None
    changed = differences(identity(held), identity(config))
    if changed:
        raise UserError(
            f"{file}: {folder} holds a sweep with other settings; give this one another name, or undo:",
            *(f"  {line}" for line in changed),
        )
