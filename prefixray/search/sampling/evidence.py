"""What a sampler sees of a study: its own trials, and those of another sweep beside them, though no study holds them.

So trials of another sweep have no number, count in no table and no budget, and cannot be added twice. A paused trial,
which runs to Optuna, looks like one that was stopped where it pauses: running trials repel a sampler.
"""

from collections.abc import Container, Sequence
from copy import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from prefixray.config.schema import ArmConfig
from prefixray.search.sampling.parameters import optuna_distribution, parameter_name
from prefixray.search.sampling.warm_start import KnownTrial
from prefixray.search.trial_source import state_of

_FIRST_NUMBER = 10**9  # Optuna tells trials apart by number


def evidence_of(arm: ArmConfig, known: Sequence[KnownTrial]) -> list[FrozenTrial]:
    """The trials in Optuna's form, each under this arm's parameters."""
    return [_frozen(arm, trial, _FIRST_NUMBER + index) for index, trial in enumerate(known)]


def _frozen(arm: ArmConfig, trial: KnownTrial, number: int) -> FrozenTrial:
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for key, value in trial["values"].items():
        distribution = arm.distribution(key, trial["values"])
        assert distribution is not None, "a known trial fits its arm"
        name = parameter_name(arm, key, distribution)
        params[name], distributions[name] = value, optuna_distribution(distribution)
    is_done, loss = trial["state"] == "done", trial["loss"]
    frozen = create_trial(
        state=TrialState.COMPLETE if is_done else TrialState.PRUNED,
        value=loss if is_done else None,
        params=params,
        distributions=distributions,
        intermediate_values={} if loss is None else {trial["step"]: loss},
        constraints={"has a finite loss": 1.0} if trial["state"] == "failed" else None,
    )
    frozen.number = number
    return frozen


class Informed(BaseSampler):
    """A sampler that sees evidence beside the trials of its study, and paused trials as stopped ones."""

    def __init__(self, sampler: BaseSampler, evidence: Sequence[FrozenTrial]) -> None:
        self._sampler, self._evidence = sampler, evidence

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler would."""
        return self._sampler.infer_relative_search_space(_Seen(study, self._evidence), trial)  # type: ignore[arg-type]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler would."""
        return self._sampler.sample_relative(_Seen(study, self._evidence), trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401
        """As the sampler would."""
        seen: Any = _Seen(study, self._evidence)
        return self._sampler.sample_independent(seen, trial, param_name, param_distribution)


class _Seen:
    """A study with more trials than it has, and paused ones that look stopped; all else is the study's own."""

    def __init__(self, study: optuna.Study, evidence: Sequence[FrozenTrial]) -> None:
        self._study, self._evidence = study, evidence

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What Optuna's samplers look at."""
        own = map(_looking_stopped, self._study._get_trials(deepcopy, None, use_cache))
        return [trial for trial in (*self._evidence, *own) if states is None or trial.state in states]


def _looking_stopped(trial: FrozenTrial) -> FrozenTrial:
    """A paused trial as if it had been stopped; any other as it is."""
    if state_of(trial) != "paused":
        return trial
    seen = copy(trial)
    seen.state = TrialState.PRUNED
    return seen
