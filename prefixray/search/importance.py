"""How much each searched value matters, told from the trials of a study."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from prefixray.config.schema import ArmConfig
from prefixray.results.record import Importance
from prefixray.search.storage import open_storage
from prefixray.search.trial_source import started_trials

_FEWEST_TRIALS = 10  # that importance is worked out from
_BEST_SHARE = 0.25  # of the trials: importance is what sets them apart


def parameter_importance(journal: Path, sweep: str, arm: ArmConfig, rungs: Sequence[int]) -> Importance | None:
    """How much each searched value decides whether a trial is among the best quarter: Optuna's PED-ANOVA.

    Of finished trials; where they are too few, of all trials by their losses at the first rung, which nothing has
    thinned out. None where these are too few too, or where there are not two values to compare.
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
