"""An arm's searched keys as Optuna's parameters.

A key with several cases is one Optuna parameter in each case, `learning_rate if mid_dim=512`. So a sampler learns the
values of a case from the trials of that case alone.
"""

import json
from collections.abc import Mapping
from typing import Any, assert_never

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from prefixray.config.schema import ArmConfig
from prefixray.config.space import AnyDistribution, Cases, Choice, Int, LogUniform, Uniform
from prefixray.system.records import Scalar


def parameter_name(arm: ArmConfig, key: str, distribution: AnyDistribution) -> str:
    """What Optuna calls a key: its own name; one with several cases, with the condition of the case."""
    if not isinstance(arm.dimensions[key], Cases):
        return key
    conditions = (f"{other}={'|'.join(map(str, values))}" for other, values in distribution.when.items())
    return f"{key} if {' and '.join(conditions)}"


def values_by_key(arm: ArmConfig, params: Mapping[str, Any]) -> dict[str, Scalar]:
    """The values of an Optuna trial's parameters by the arm's keys."""
    values: dict[str, Scalar] = {}
    for key in arm.dimensions:
        distribution = arm.distribution(key, values)
        name = key if distribution is None else parameter_name(arm, key, distribution)
        if name in params:
            values[key] = params[name]
    return values


def suggest(trial: Trial, name: str, distribution: AnyDistribution) -> Scalar:
    """Draw a parameter's value, or get the value that the trial has already."""
    match distribution:
        case Choice():
            return trial.suggest_categorical(name, distribution.choice)
        case Uniform():
            return float(trial.suggest_float(name, *distribution.uniform))
        case LogUniform():
            return float(trial.suggest_float(name, *distribution.log_uniform, log=True))
        case Int():
            return int(trial.suggest_int(name, *distribution.int_))
        case _:
            assert_never(distribution)


def optuna_distribution(distribution: AnyDistribution) -> BaseDistribution:
    """The distribution as `suggest` stores it with a trial."""
    match distribution:
        case Choice():
            return CategoricalDistribution(distribution.choice)
        case Uniform():
            return FloatDistribution(*distribution.uniform)
        case LogUniform():
            return FloatDistribution(*distribution.log_uniform, log=True)
        case Int():
            return IntDistribution(*distribution.int_)
        case _:
            assert_never(distribution)


def identity_of(values: Mapping[str, Scalar]) -> str:
    """The same text for the same values, whatever their order."""
    return json.dumps(dict(values), sort_keys=True)
