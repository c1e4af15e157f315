"""Which of the searched values matter, computed from the trials of a study."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from prefixray.config.schema import ArmConfig
from prefixray.results.record import Importance
from prefixray.search.storage import open_storage
from prefixray.search.trial_source import started_trials

_FEWEST_TRIALS = 10  # with fewer trials there is no importance
_BEST_SHARE = 0.25  # of the trials; importance is what sets these apart from the others


def parameter_importance(journal: Path, sweep: str, arm: ArmConfig, rungs: Sequence[int]) -> Importance | None:
    """How much each searched key decides whether a trial is among the best quarter (Optuna's PED-ANOVA).

    Finished trials count. Where they are too few, all trials count, by their losses at the first rung, which no rung
    has thinned out yet. None where these are too few too, or where fewer than two keys are searched.
    """
    if len(arm.dimensions) < 2:
        return None
    study = optuna.load_study(study_name=f"{sweep}/{arm.name}", storage=open_storage(journal))
    trials = {trial.number: trial for trial in started_trials(study)}
    losses = {number: t.value for number, t in trials.items() if t.state is TrialState.COMPLETE}
    step = arm.num_steps
    if len(losses) < _FEWEST_TRIALS and rungs:
        step = rungs[0]
        losses = {n: t.intermediate_values[step] for n, t in trials.items() if step in t.intermediate_values}
    if len(losses) < _FEWEST_TRIALS:
        return None
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # scikit-learn: seconds

    compared = optuna.create_study()
    for number, loss in losses.items():
        trial = trials[number]
        compared.add_trial(create_trial(params=trial.params, distributions=trial.distributions, value=loss))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
    shares = get_param_importances(compared, evaluator=evaluator)
    return Importance(arm=arm.name, step=step, num_trials=len(losses), shares=shares)
