"""The final stage: each arm's best configuration is trained again with fresh seeds, and decodes test.

Where a task has several documents, it is trained for each of them, and what was trained for one decodes the questions
about that one. Candidates are compared on the documents of the search.

Only the search's ranking goes into the stage, none of its scores. Where `final.candidates` is above 1, an arm's best
configurations are trained with one seed first, and their hypotheses on dev decide which goes on (`candidates.py`).

An arm whose winner is known begins its runs while others are still searched; so does an arm without a search. The runs
are the same whenever they begin, since their seeds are their own. If a request goes on with a search after that, and
another configuration wins, its runs come in the end.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.seeds import CANDIDATE_REPLICATE, subset_of
from prefixray.data import Sourced
from prefixray.data.catalog import CATALOG
from prefixray.driver.candidates import EarlyChoice, best_candidate
from prefixray.driver.results_folder import ResultsFolder
from prefixray.driver.stage import Stage
from prefixray.results.by_document import Part
from prefixray.results.final_run import FinalRun, complete
from prefixray.results.hypotheses import Split
from prefixray.results.record import IN_CONTEXT, UNTUNED
from prefixray.search.fixed_study import FixedStudy
from prefixray.search.policies.choice import rules_of
from prefixray.search.storage import Storage
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record
from prefixray.trial import TrialFolder, TrialSpec

if TYPE_CHECKING:  # imports Ray Tune
    from prefixray.driver.engine.tune import Engine

logger = logging.getLogger(__name__)


class FinalStage:
    """The final stage of one sweep."""

    def __init__(
        self,
        config: SweepConfig,
        folder: ResultsFolder,
        storage: Storage,
        engine: "Engine",
        read_dev: Callable[[], Sequence[Sourced]],
        documents: Sequence[str] = (),
    ) -> None:
        """`read_dev` reads the sources of dev; `documents` are the names of the task's documents, in its order."""
        self._config, self._folder, self._storage, self._engine = config, folder, storage, engine
        self._read_dev = read_dev
        several: Sequence[str | None] = documents if len(documents) > 1 else (None,)
        self._documents, self._searched = several, several[: config.search.num_searched(len(documents))]
        self.left_out: dict[str, str] = {}  # arms that nobody trains and that could not decode, and why

    def run(self, studies: Mapping[str, ArmStudy]) -> dict[str, list[FinalRun]]:
        """Train and decode what is not on disk yet; by arm, the runs that ended well.

        `studies` are the searches, by arm. Untrained arms decode test too, each into a folder of its own.
        """
        best = {arm.name: self._best(arm, studies.get(arm.name)) for arm in self._config.arms}
        candidates = {arm: records for arm, records in best.items() if len(records) > 1}
        if candidates:
            best |= self._choose(candidates)
        for arm, records in best.items():
            if not records:
                logger.warning("no trial of %s has a score: it is left out of the final stage", arm)
        runs = self._train("final", {arm: self._final_runs(arm, records) for arm, records in best.items()})
        failed = self._engine.decode([*self._untrained_jobs, *self._decode_jobs(runs, "test")])
        self.left_out = {job.model: problem for job, problem in failed}
        return runs

    def early(self, arm: ArmConfig, study: ArmStudy | None) -> Stage | None:
        """The runs of an arm whose search has ended, or that has none; None where no trial has a score.

        They are the final runs; or those of its candidates, and then the final runs of the one that is chosen.
        """
        self._queue_untrained()
        best = self._best(arm, study)
        if len(best) < 2:
            return self._early_final(arm, best)
        runs = self._runs(arm.name, best, [CANDIDATE_REPLICATE], self._searched)
        choice = EarlyChoice(runs, self._engine.pool, lambda run: self._decode_job_of(run, "dev"), self._best_candidate)

        def then() -> Stage | None:
            chosen = choice.made
            return None if chosen is None else self._early_final(arm, _of_trial(best, chosen.number))

        stage = self._stage(f"candidates/{arm.name}", runs, self._study("candidates", arm.name, runs), "dev")
        num_then = len(self._final_runs(arm.name, best))
        return replace(stage, then=then, num_then=num_then, may_follow=choice.is_over)

    def _early_final(self, arm: ArmConfig, records: Sequence[Record | None]) -> Stage | None:
        """The final runs of the first of these configurations, beside searches; None where there is none."""
        runs = self._final_runs(arm.name, records)
        return self._stage(f"final/{arm.name}", runs, self._study("final", arm.name, runs), "test") if runs else None

    @property
    def untrained(self) -> dict[str, list[Part]]:
        """What the arms that nobody trains have decoded, without those that could not."""
        return {arm: parts for arm, parts in self._untrained.items() if arm not in self.left_out}

    @property
    def _untrained(self) -> dict[str, list[Part]]:
        """What the arms that nobody trains decode: where the task has documents, one is the base that sees them."""
        parts = {UNTUNED: [Part(self._folder.untrained(UNTUNED))]}
        if CATALOG[self._config.task.name].is_studied:
            parts[IN_CONTEXT] = [Part(self._folder.untrained(IN_CONTEXT, each), each) for each in self._documents]
        return parts

    def _queue_untrained(self) -> None:
        """Have workers that have nothing to train decode with the untrained arms."""
        for job in self._untrained_jobs:
            self._engine.pool.decode_when_idle(job)

    @property
    def _untrained_jobs(self) -> list[DecodeJob]:
        return [self._decode_job(arm, part, "test") for arm, parts in self._untrained.items() for part in parts]

    def _best(self, arm: ArmConfig, study: ArmStudy | None) -> Sequence[Record | None]:
        """The records whose configurations go on, best first; None is the only configuration of an unsearched arm."""
        return [None] if study is None else study.best(self._config.final.candidates)

    def _choose(self, candidates: Mapping[str, Sequence[Record | None]]) -> dict[str, list[Record | None]]:
        """Of each arm's candidates the one whose hypotheses on dev score best; none of an arm whose runs all failed."""
        seeds, documents = [CANDIDATE_REPLICATE], self._searched
        wanted = {arm: self._runs(arm, records, seeds, documents) for arm, records in candidates.items()}
        runs = self._train("candidates", wanted)
        self._engine.decode(self._decode_jobs(runs, "dev"))
        return {
            arm: _of_trial(candidates[arm], self._best_candidate(arm_runs).number) for arm, arm_runs in runs.items()
        }

    def _best_candidate(self, runs: Sequence[FinalRun]) -> FinalRun:
        metric = self._config.final.metric.removeprefix("test/")
        return best_candidate(runs, self._read_dev(), metric, self._config.word_form)

    def _final_runs(self, arm_name: str, records: Sequence[Record | None]) -> list[FinalRun]:
        """The runs of the first of these configurations with fresh seeds."""
        return self._runs(arm_name, records[:1], range(1, self._config.final.num_seeds + 1), self._documents)

    def _runs(
        self,
        arm_name: str,
        records: Sequence[Record | None],
        replicates: Sequence[int],
        documents: Sequence[str | None],
    ) -> list[FinalRun]:
        """The runs of these configurations with these seeds, for each of these documents."""
        arm, runs = self._config.arm(arm_name), []
        for record in records:
            number = 0 if record is None else record.number
            trial = arm.trial({} if record is None else record.values)
            for replicate, document in product(replicates, documents):
                folder = self._folder.final_run(arm.name, number, replicate, document)
                runs.append(FinalRun(arm, trial, number, replicate, folder, document))
        return runs

    def _subset(self, run: FinalRun) -> int:
        """The subset of the task that a run trains on: its document's, or in low data that whose turn it is."""
        low = self._config.task.low_data
        if run.document is not None:
            return self._documents.index(run.document)
        return 0 if low is None else subset_of(run.replicate, low.num_subsets)

    def _train(self, name: str, wanted: Mapping[str, Sequence[FinalRun]]) -> dict[str, list[FinalRun]]:
        """Train these runs; by arm, those of seeds that ended well."""
        self._queue_untrained()
        split: Split = "test" if name == "final" else "dev"
        arms = sorted(self._config.arms, key=lambda arm: not arm.exclusive)  # those that need an empty worker first
        studies = {arm.name: self._study(name, arm.name, wanted[arm.name]) for arm in arms if wanted.get(arm.name)}
        stages = [self._stage(f"{name}/{arm}", wanted[arm], study, split) for arm, study in studies.items()]
        self._engine.run(name, stages)
        for study in studies.values():
            study.withdraw()
        ended_well = {arm: complete(runs) for arm, runs in wanted.items()}
        return {arm: runs for arm, runs in ended_well.items() if runs}

    def _study(self, name: str, arm: str, runs: Sequence[FinalRun]) -> FixedStudy:
        items = [run.item for run in runs]
        lost = {run.item for run in runs if not TrialFolder(run.folder).result_file.is_file()}
        return FixedStudy(self._storage, self._config.name, f"{name}/{arm}", items, without_result=lost)

    def _stage(self, name: str, runs: Sequence[FinalRun], study: FixedStudy, split: Split) -> Stage:
        by_item = {run.item: run for run in runs}

        def spec(trial: Proposal | Record) -> TrialSpec:
            run = by_item[str(trial.values["item"])]
            return TrialSpec(
                key=run.name,
                config=run.config,
                seed=self._config.search.seed,
                replicate=run.replicate,
                rungs=(),
                eval_at=rules_of(self._config).rungs,
                folder=str(run.folder.absolute()),
                subsets=(self._subset(run),),
                decoding=self._config.final.decoding.model_dump(),
            )

        def decode(spec: TrialSpec) -> DecodeJob:
            return self._decode_job_of(next(run for run in runs if run.name == spec.key), split)

        return Stage(name, runs[0].arm, study, len(runs), spec, decode=decode)

    def _decode_jobs(self, runs: Mapping[str, Sequence[FinalRun]], split: Split) -> list[DecodeJob]:
        return [self._decode_job_of(run, split) for of_arm in runs.values() for run in of_arm]

    def _decode_job_of(self, run: FinalRun, split: Split) -> DecodeJob:
        return self._decode_job(str(run.artifact.absolute()), Part(run.folder, run.document), split)

    def _decode_job(self, model: str, part: Part, split: Split) -> DecodeJob:
        """Decode a part of a split with a model: an artifact's folder, or an untrained arm's name."""
        final = self._config.final
        metrics = [metric.removeprefix("test/") for metric in final.named_metrics]
        return DecodeJob(model, str(part.folder.absolute()), split, final.decoding.model_dump(), metrics, part.document)


def _of_trial(records: Sequence[Record | None], number: int) -> list[Record | None]:
    """Of these configurations, that of the search's trial with this number."""
    return [record for record in records if record is not None and record.number == number]
