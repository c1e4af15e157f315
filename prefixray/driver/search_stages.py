"""The search: a stage for each arm that has something to search, and what is known before its first trial."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.driver.results_folder import ResultsFolder
from prefixray.driver.stage import Stage
from prefixray.planning.slots import most_final_runs, num_at_once
from prefixray.search.policies.choice import make_policy, rules_of
from prefixray.search.sampling.starting_points import starting_points, starting_text
from prefixray.search.sampling.warm_start import KnownTrial, read_warm_start, warm_start_text
from prefixray.search.storage import Storage
from prefixray.search.study import ArmStudy
from prefixray.search.trial_source import Proposal, Record
from prefixray.trial import TrialSpec

if TYPE_CHECKING:  # imports Ray Tune
    from prefixray.driver.engine.tune import Engine


class SearchStages:
    """The searches of one sweep."""

    def __init__(
        self,
        config: SweepConfig,
        folder: ResultsFolder,
        storage: Storage,
        engine: "Engine",
        documents: Sequence[str],
        follow: Callable[[ArmConfig, ArmStudy | None], Stage | None],
    ) -> None:
        """`documents` are the names of the task's documents; `follow` makes the stage that begins behind a search."""
        self._config, self._folder, self._storage, self._engine = config, folder, storage, engine
        self._num_documents, self._follow = len(documents), follow

    def make(self) -> list[Stage]:
        """A stage for each arm that has something to search, which goes on with what its study holds.

        Raises `UserError` where `search.warm_start` does not fit, before the sweep has begun.
        """
        if not self._folder.has_begun():
            _ = self._known  # before the first study is written
        return [self._stage(arm) for arm in self._config.arms if arm.dimensions]

    def _stage(self, arm: ArmConfig) -> Stage:
        search, rules, pool = self._config.search, rules_of(self._config), self._engine.pool
        policy = make_policy(rules, arm)
        num_searched = search.num_searched(self._num_documents)
        concurrency = num_at_once(arm, search.concurrency, num_slots=pool.num_slots, num_workers=pool.most_workers)
        study = ArmStudy(
            self._storage,
            self._config.name,
            arm,
            seed=search.seed,
            num_startup=concurrency,
            sampler=search.sampler,
            read_known=lambda: self._known[arm.name],
            auto=starting_points(self._config, arm, pool.facts.shape.hidden_size),
        )

        def spec(trial: Proposal | Record) -> TrialSpec:
            return TrialSpec(
                key=f"{arm.name}/{trial.number}",
                config=arm.trial(trial.values),
                seed=search.seed,
                replicate=0,
                rungs=policy.rungs,
                folder=str(self._folder.trial(arm.name, trial.number).absolute()),
                subsets=tuple(range(num_searched)),
                keep_artifact=not arm.exclusive and num_searched == 1,
                decoding=self._config.final.decoding.model_dump(),
                dev_sample=rules.dev_sample,
                may_pause=policy.may_pause,
                resumed_from=trial.resumed_from,
            )

        return Stage(
            arm.name,
            arm,
            study,
            concurrency,
            spec,
            policy,
            stop_when=search.stop_when,
            then=lambda: self._follow(arm, study),
            num_then=most_final_runs(self._config, self._num_documents),
        )

    @cached_property
    def _known(self) -> Mapping[str, Sequence[KnownTrial]]:
        """The trials of the sweep that `search.warm_start` names, by arm; read and told by the first driver alone."""
        facts, config = self._engine.pool.facts, self._config
        known = read_warm_start(config, facts)
        for line in (*starting_text(config, facts.shape.hidden_size), *warm_start_text(known, config)):
            self._engine.live.event(line)
        return known
