"""The samplers of a search: Optuna's classes, one for each name that `search.sampler` may have.

`config/load.py` has refused the spaces that a sampler cannot take. What each learns from:

- tpe: finished, stopped, paused and failed trials; running ones repel it.
- gp and cmaes: finished trials alone.
- random and grid: nothing. The study draws a grid's points from its list: Optuna's GridSampler knows no conditions, its
  BruteForceSampler fails where a queued trial was taken back, and both can end only a search that Optuna runs itself.
"""

import warnings
from collections.abc import Sequence
from copy import copy
from typing import assert_never

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from prefixray.config.schema import SamplerName
from prefixray.search.sampling.evidence import Informed


def make_sampler(
    name: SamplerName,
    *,
    seed: int,
    num_startup: int,
    evidence: Sequence[FrozenTrial] = (),
    pausing: bool = False,
) -> BaseSampler:
    """The sampler for one proposal, which sees `evidence` beside its study's trials.

    `pausing` says that the study has paused trials, which the sampler shall take for stopped ones.

    As long as it has seen fewer than `num_startup` trials, it draws at random.

    A sampler lives for one proposal and has a seed of its own: with one seed for all, a sampler would repeat its first
    proposals after a relaunch.
    """
    sampler = _of_optuna(name, seed, num_startup, evidence)
    return Informed(sampler, evidence) if evidence or pausing else sampler


def _of_optuna(name: SamplerName, seed: int, num_startup: int, evidence: Sequence[FrozenTrial]) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match name:
            case "tpe":
                return TPESampler(n_startup_trials=num_startup, seed=seed)
            case "gp":
                return GPSampler(n_startup_trials=num_startup, seed=seed)
            case "cmaes":
                # CMA-ES starts where the best of other trials lie, and learns from its own study's alone.
                done = [_without_single(trial) for trial in evidence if trial.state is TrialState.COMPLETE]
                return CmaEsSampler(n_startup_trials=num_startup, seed=seed, source_trials=done or None)
            case "random" | "grid":
                return RandomSampler(seed=seed)
            case _:
                assert_never(name)


def _without_single(trial: FrozenTrial) -> FrozenTrial:
    """A trial without the parameters that have one value, as which CMA-ES sees those of its own study."""
    seen = copy(trial)
    seen.distributions = {name: found for name, found in trial.distributions.items() if not found.single()}
    seen.params = {name: value for name, value in trial.params.items() if name in seen.distributions}
    return seen


def class_name(name: SamplerName) -> str:
    """What Optuna calls the sampler, for the record that a study keeps."""
    return type(_of_optuna(name, 0, 1, ())).__name__
