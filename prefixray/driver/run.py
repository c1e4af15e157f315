"""A sweep from its file to its table: search, final stage, results. Running the same sweep again continues it."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO

import psutil

from prefixray.cluster.comparable import other_data
from prefixray.cluster.connect import Cluster, chosen_address, connected, dead_service
from prefixray.cluster.nodes import num_gpus_here
from prefixray.cluster.pool import Pool
from prefixray.config.files.given import Given, given_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import Task, load_task
from prefixray.data.own.rows import Rows
from prefixray.driver.documents.make import (
    check_task,
    check_teachers,
    document_names,
    keep_searched,
    make_study,
    task_with_exchanges,
)
from prefixray.driver.final_stage import FinalStage
from prefixray.driver.restart import has_started_anew, watched
from prefixray.driver.results_folder import COMMIT, PRECISION, TOKENS, ResultsFolder
from prefixray.driver.search_stages import SearchStages
from prefixray.driver.setup import worker_setup
from prefixray.errors import SweepFailed
from prefixray.planning.slots import most_at_once
from prefixray.planning.speeds import keep_speeds
from prefixray.reporting.live import LiveView
from prefixray.reporting.tables import render_note
from prefixray.results.command_run import command_run, machine_of, runs_so_far
from prefixray.results.compare import Facts, make_results
from prefixray.results.final_run import FinalRun, by_seed
from prefixray.results.record import CommandRun, ExampleOutputs, Results, Stored, is_finished, runs_of
from prefixray.results.timeline.keeper import FILE, Timekeeper
from prefixray.search.budget import Budget, ended_early
from prefixray.search.requests import Inbox
from prefixray.search.sampling.warm_start import read_warm_start
from prefixray.search.status import View, title_of
from prefixray.search.storage import Storage, has_studies, open_storage, repair_journal
from prefixray.search.study import ArmStudy, search_so_far
from prefixray.system.logs import quieten, to_file
from prefixray.system.machine import check_four_bit
from prefixray.system.path_or_hub import check_base
from prefixray.tracking.tracker import Tracker, check_server, open_tracker
from prefixray.tracking.views import columns_of, sweep_params

logger = logging.getLogger(__name__)

_TRIES, _TRIES_ANEW = 2, 6  # to start Ray; what has brought Ray down, such as too little memory, may last a while


@dataclass(frozen=True)
class Outcome:
    """What a sweep leaves behind."""

    folder: Path
    results: Results = field(repr=False)  # hundreds of lines
    tracking_uri: str | None
    """Where MLflow logged; None: nowhere."""
    runs_page: str | None = None
    """What follows an MLflow server's address where its page shows the sweep's runs, best first; None: not known."""


def run_sweep(
    sweep: Given,
    *,
    train: Rows | None = None,
    dev: Rows | None = None,
    test: Rows | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
) -> Outcome:
    """Run a sweep, or the rest of it, from Python, and return its results.

    `sweep` is a sweep file or the name of one, the same as a mapping, or a configuration of `load_sweep`. `train`,
    `dev` and `test` replace the data that it names: lists of pairs or of mappings, DataFrames, splits of `datasets`, or
    a path. Their rows are kept in `runs/NAME/data`, and `runs/NAME/sweep.yaml` names them there: the sweep goes on by
    the command as well. An override is `dotted.key=value`. `address` is a Ray cluster's, by default the environment's,
    else this machine is used.

    Raises `UserError` with every problem of the sweep, where another driver runs it, where its folder holds one
    with other settings or other rows, and in a process that uses Ray already.
    """
    config = given_sweep(sweep, {"train": train, "dev": dev, "test": test}, overrides)
    quieten()
    to_file(Path("runs") / config.name / "sweep.log")
    command = ["prefixray.run_sweep", config.name, *(word for change in overrides for word in ("--set", change))]
    return drive(config, None, address=address, command=command)


def drive(
    config: SweepConfig,
    file: Path | None,
    *,
    address: str | None = None,
    shown: TextIO | None = None,
    command: Sequence[str] = (),
) -> Outcome:
    """Run a sweep, or the rest of it, and return its results.

    `file` is the sweep file that `config` was read from; a copy goes into the folder. `shown` gets the live view
    instead of stdout. `command` is the command line for the record, word by word. The rest is as in `run_sweep`.
    """
    folder = ResultsFolder(Path("runs") / config.name)
    if chosen_address(address) == "local":
        _check_here(config, folder.begun_with(COMMIT))
    with folder.lock(), Timekeeper(folder.path / FILE) as timekeeper:
        config = folder.store_config(config, file)
        repair_journal(folder.journal)
        if not folder.has_begun():
            read_warm_start(config)  # before Ray starts
        digest = check_task(config)
        config = keep_searched(config, folder)
        check_server(config.tracking)
        live = LiveView(shown)
        try:
            spared, num_tries = psutil.Process().children(), _TRIES_ANEW if has_started_anew() else _TRIES
            with connected(address, num_tries, base=config.base) as cluster, watched(live, dead_service, spared):
                make_study(config, folder, cluster, worker_setup(config, cluster, folder), live=live)
                return _Sweep(config, folder, cluster, timekeeper, live, command).run(digest)
        finally:
            live.close()


class _Sweep:
    """One run of the driver over a sweep."""

    def __init__(
        self,
        config: SweepConfig,
        folder: ResultsFolder,
        cluster: Cluster,
        timekeeper: Timekeeper,
        live: LiveView,
        command: Sequence[str],
    ) -> None:
        self._config, self._folder, self._timekeeper, self._command = config, folder, timekeeper, command
        self._started, self._began = time.monotonic(), time.time()
        self._budget, self._inbox = Budget(folder.path, config.search), Inbox(folder.path)
        title = title_of(config, folder.path)
        self._start_view = View(title=title, stage="start", message=f"{cluster}; loading the base and the task")
        self._documents = document_names(config.task)
        self._pool = Pool(cluster, worker_setup(config, cluster, folder), folder.path / "workers")
        timekeeper.watch(lambda: {worker.name: worker.doing for worker in tuple(self._pool.workers)})
        self._tracker: Tracker = open_tracker(config.tracking, folder.path, config.name, sweep_params(config))
        self._storage = open_storage(folder.journal)
        from prefixray.driver.engine.tune import Engine  # Ray Tune, which takes seconds, while the workers load

        self._engine = Engine(self._pool, self._tracker, self._inbox, live, title, folder.path)
        self._engine.make_ready(most_at_once(config, cluster.most_workers, len(self._documents)))

    def run(self, digest: str | None) -> Outcome:
        """Search, what is left of the final stage, table; again where requests came too late for the search.

        `digest` is that of the task as this machine has read it, if it has.
        """
        state: Literal["finished", "interrupted", "failed"] = "failed"
        try:
            with self._engine.live.during(self._start_view):
                self._pool.wait(self._config.arms)
            if digest not in (None, self._pool.facts.data_digest):
                raise other_data(self._config.task)  # else the search would be for nothing
            self._folder.keep_digests(self._digests())
            check_teachers(self._config, self._folder, self._pool.facts.base_digest)
            self._tracker.start({}, self._tags(), [self._folder.sweep_file], columns_of(self._config))
            studies = self._search()
            results = self._finish(studies)
            while studies and not self._inbox.is_empty():
                self._budget.resume(self._pool.device_seconds)
                studies = self._search()
                results = self._finish(studies)
            keep_speeds(self._config, self._folder.path, self._pool.facts, self._began, len(self._documents))
            state = "finished"
        except (KeyboardInterrupt, SweepFailed) as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else state
            self._store_run()
            raise
        finally:
            self._tracker.close(state)
        return Outcome(self._folder.path, results, self._tracker.uri, self._tracker.runs_page)

    def _tags(self) -> dict[str, str]:
        """The tags of the sweep's run: the task, and which weights and which data."""
        facts = self._pool.facts
        digests = {"prefixray.base_digest": facts.base_digest, "prefixray.data_digest": facts.data_digest}
        return {"prefixray.stage": "sweep", "prefixray.task": self._config.task.name, **digests}

    def _digests(self) -> dict[str, str]:
        """What may not change: weights, or the commit of a hub's, data, but for documents, tokens, precision."""
        facts = self._pool.facts
        base = {"base" if facts.commit is None else COMMIT: facts.base_digest}
        task = {} if self._documents else {"task": facts.data_digest}
        return {**base, **task, TOKENS: facts.rows_digest, PRECISION: facts.precision}

    def _search(self) -> dict[str, ArmStudy]:
        """Run the search of every arm that has something to search; the studies, by arm.

        Final runs that need not wait for other arms run beside it.
        """
        stages = self._searches.make()
        studies = {stage.name: stage.source for stage in stages if isinstance(stage.source, ArmStudy)}
        if stages:
            try:
                if (problem := self._budget.problem()) is not None:
                    logger.warning("%s", problem)
                if not any(stage.is_left(may_begin=problem is None) for stage in stages):  # loading was for final runs
                    self._budget.resume(self._pool.device_seconds)
                at_once = [self._final.early(arm, None) for arm in self._config.arms if not arm.dimensions]
                stages += [stage for stage in at_once if stage is not None]
                self._engine.run("search", stages, self._budget)
            finally:
                with suppress(OSError):  # a full disk was met before, and ends the sweep already
                    self._budget.note(self._pool.device_seconds, is_last=True)
        self._store_search()
        return studies

    def _store_search(self) -> None:
        """Write what the search has found, unless the folder has results of a final stage."""
        if self._folder.final_results() is None:
            stored = search_so_far(self._storage, self._config)
            self._folder.store({**stored, "runs": self._runs(stored)})

    def _store_run(self) -> None:
        """Name a run that ends early in the record, where a worker has trained; a final table stays as it is."""
        if not self._has_trained():
            return
        stored = self._folder.final_results() or search_so_far(self._storage, self._config)
        runs = self._runs(stored)
        budget = {"budget": {"minutes": sum(run["minutes"] for run in runs)}} if is_finished(stored) else {}
        with suppress(OSError):  # a full disk was met before, and ends the sweep already
            self._folder.store({**stored, "runs": runs, **budget})

    def _finish(self, studies: Mapping[str, ArmStudy]) -> Results:
        """Run the final stage, compare the arms, and publish the results."""
        task = self._task
        runs = self._final.run(studies)
        with self._engine.live.during(self._engine.picture("score", "scoring and comparing")):
            results, every = self._compare(task, studies, runs)
        for arm in results["arms"]:
            for run in (run for seed in arm["seeds"] for run in runs_of(seed)):
                if arm["method"] is None:
                    self._tracker.score_untrained(arm["arm"], _on_test(run["scores"]))
                else:
                    self._tracker.score(run["folder"], _on_test(run["scores"]))
        self._timekeeper.note(is_due=True)  # the report has all up to now
        files = self._folder.publish(results, every)
        self._tracker.summary(files, render_note(results))
        return results

    def _compare(
        self, task: Task, studies: Mapping[str, ArmStudy], runs: Mapping[str, Sequence[FinalRun]]
    ) -> tuple[Results, list[ExampleOutputs]]:
        """Score the hypotheses of the final stage, and put the results together; the outputs on every source."""
        config, searched = self._config, search_so_far(self._storage, self._config)
        stop_when, budget = config.search.stop_when, self._budget
        endings = [ended_early(config.arm(name), study, stop_when, budget) for name, study in studies.items()]
        facts = Facts(
            config=config,
            provenance=self._pool.facts,
            leaks=task.leaks,
            endings=[told for told in endings if told is not None],
            left_out=self._final.left_out,
            decoding=config.final.decoding.model_dump(),
            search=searched["search"],
            minutes={arm.name: self._minutes(arm.name, runs.get(arm.name, ())) for arm in config.arms},
            num_train=len(task.train),
        )
        results, every = make_results(facts, runs, self._final.untrained, task.test_sources)
        results["policy"], results["rungs"], results["keep"] = searched["policy"], searched["rungs"], searched["keep"]
        results["dev_sample"], results["importance"] = searched["dev_sample"], searched["importance"]
        results["runs"] = self._runs(results)
        results["machine"] = machine_of(results, self._folder.final_results())
        results["budget"] = {"minutes": sum(run["minutes"] for run in results["runs"])}
        return results, every

    @cached_property
    def _searches(self) -> SearchStages:
        return SearchStages(
            self._config,
            self._folder,
            self._storage,
            self._engine,
            self._documents,
            follow=lambda arm, study: self._final.early(arm, study),
        )

    @cached_property
    def _final(self) -> FinalStage:
        storage = _final_storage(self._config.name, self._folder, self._storage)
        documents = self._documents
        return FinalStage(self._config, self._folder, storage, self._engine, lambda: self._task.dev_sources, documents)

    @cached_property
    def _task(self) -> Task:
        """The task whole, as the workers have read it; raises `UserError` where its files have changed since."""
        config = task_with_exchanges(self._config, self._folder)
        task = load_task(config)
        if task.digest != self._pool.facts.data_digest:
            raise other_data(config)
        return task

    def _runs(self, now: Stored) -> list[CommandRun]:
        """The runs of the command that made these results, this one among them if it has trained anything."""
        minutes = (time.monotonic() - self._started) / 60
        this = command_run(self._command, began=self._began, minutes=minutes)
        return runs_so_far(self._folder.stored(), now, this, has_trained=self._has_trained())

    def _has_trained(self) -> bool:
        return any(worker.doing.stepping for worker in self._pool.workers)

    def _minutes(self, arm: str, runs: Sequence[FinalRun]) -> float:
        """Training time of an arm's search; of an arm with nothing to search, of its first seed."""
        results = self._folder.trial_results(arm) or [run.result() or {} for run in next(iter(by_seed(runs)), ())]
        return float(sum(result.get("metrics", {}).get("train/seconds", 0.0) for result in results)) / 60


def _final_storage(name: str, folder: ResultsFolder, search_storage: Storage) -> Storage:
    """The journal of the final stage's studies, which optuna-dashboard need not show beside the search's.

    A sweep of an earlier version has them in the search's journal, and goes on there.
    """
    if has_studies(search_storage, (f"{name}/final/", f"{name}/candidates/")):
        return search_storage
    repair_journal(folder.final_journal)
    return open_storage(folder.final_journal)


def _on_test(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by the names of metrics that MLflow has."""
    return {f"test/{metric}": value for metric, value in scores.items()}


def _check_here(config: SweepConfig, commit: str | None) -> None:
    """Refuse what this machine cannot run before Ray and torch start, which takes half a minute."""
    check_base(config.base, commit)
    if config.train.precision == "4bit":
        check_four_bit(has_gpu=num_gpus_here() > 0)
