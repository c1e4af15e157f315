"""Which of the searched values matter, computed from the trials of a study."""

from collections.abc import Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from prefixray.config.schema import ArmConfig
from prefixray.config.space import AnyDimension, Choice, LogUniform, is_number
from prefixray.results.record import Importance
from prefixray.search.sampling.parameters import values_by_key
from prefixray.search.storage import Storage
from prefixray.search.trial_source import read_trials, study_in_memory

_FEWEST_TRIALS = 10  # with fewer trials there is no importance
_BEST_SHARE = 0.25  # of the trials; importance is what sets these apart from the others


def parameter_importance(storage: Storage, sweep: str, arm: ArmConfig, rungs: Sequence[int]) -> Importance | None:
    """How much each searched key decides whether a trial is among the best quarter (Optuna's PED-ANOVA).

    Finished trials count. Where they are too few, all trials count, by their losses at the first rung, which no rung
    has thinned out yet. None where these are too few too, or where fewer than two keys are searched.
    """
    if len(arm.dimensions) < 2:
        return None
    trials = {trial.number: trial for trial in read_trials(storage, f"{sweep}/{arm.name}")}
    losses = {number: t.value for number, t in trials.items() if t.state is TrialState.COMPLETE}
    step = arm.num_steps
    if len(losses) < _FEWEST_TRIALS and rungs:
        step = rungs[0]
        losses = {n: t.intermediate_values[step] for n, t in trials.items() if step in t.intermediate_values}
    if len(losses) < _FEWEST_TRIALS:
        return None
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # scikit-learn: seconds

    compared = study_in_memory()
    distributions = {key: _distribution(dimension) for key, dimension in arm.dimensions.items()}
    for number, loss in losses.items():
        values = values_by_key(arm, trials[number].params)
        known = {key: distributions[key] for key in values}
        compared.add_trial(create_trial(params=values, distributions=known, value=loss))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
    shares = get_param_importances(compared, evaluator=evaluator)
    return Importance(arm=arm.name, step=step, num_trials=len(losses), shares=shares)


def _distribution(dimension: AnyDimension) -> BaseDistribution:
    """Optuna's distribution over all values of a dimension, whichever case they come from."""
    if all(isinstance(case, Choice) for case in dimension.cases):
        return CategoricalDistribution(dimension.ends())
    numbers = list(filter(is_number, dimension.ends()))
    low, high = min(numbers), max(numbers)
    if isinstance(low, int) and isinstance(high, int) and all(isinstance(number, int) for number in numbers):
        return IntDistribution(low, high)
    is_log = any(isinstance(case, LogUniform) for case in dimension.cases) and low > 0
    return FloatDistribution(low, high, log=is_log)
