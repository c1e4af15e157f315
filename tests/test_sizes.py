"""Sizes that are computed from the configuration are those of the tensors that are then made."""

from dataclasses import asdict

import pytest

from prefixray.attention import Binder
from prefixray.base import Base
from prefixray.config import AdapterTrial, AnyTrial, ArmConfig, FinetuneTrial, LoraTrial, PrefixTrial, TrainConfig
from prefixray.methods import build_method
from prefixray.sizes import BYTES_PER_TRAINED, largest_trial, trained_parameters
from prefixray.space import Choice, LogUniform

METHODS: list[AnyTrial] = [
    PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    PrefixTrial(preseqlen=7, mid_dim=16, init_token=None),
    PrefixTrial(preseqlen=7, mid_dim=16, init_token=None, sites="decoder"),
    AdapterTrial(bottleneck=6),
    FinetuneTrial(),
]


def _made(method: AnyTrial, base: Base) -> int:
    return build_method(method, base, Binder(base.model).record, init_seed=1, dropout_seed=1).trained_parameters()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.method))
def test_trained_parameters_are_those_that_are_made(method: AnyTrial, any_base: Base) -> None:
    assert trained_parameters(method, asdict(any_base.shape)) == _made(method, any_base)


def test_lora_is_no_larger_than_said(any_base: Base) -> None:
    method = LoraTrial(rank=3)
    assert 0 < _made(method, any_base) <= trained_parameters(method, asdict(any_base.shape))


def test_the_largest_trial_of_an_arm_has_the_largest_value_of_every_dimension(tiny_llama: Base) -> None:
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"init_token": None},
        dimensions={
            "preseqlen": Choice(choice=(2, 9, 4)),
            "mid_dim": Choice(choice=(None, 512)),
            "learning_rate": LogUniform(log_uniform=(1e-4, 1e-2)),
        },
        num_trials=4,
        train=TrainConfig(num_steps=3),
    )
    largest = PrefixTrial(preseqlen=9, mid_dim=512, init_token=None)
    assert largest_trial(arm, asdict(tiny_llama.shape)) == BYTES_PER_TRAINED * _made(largest, tiny_llama)
