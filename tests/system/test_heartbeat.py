"""Which forwards are signs of life."""

import copy

import pytest
import torch

from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.system.heartbeat import last_beat


@pytest.mark.parametrize("is_own_copy", [False, True])
def test_every_forward_of_a_bound_model_is_a_sign_of_life_that_of_a_trials_own_model_too(
    tiny_llama: Base, is_own_copy: bool
) -> None:
    model = copy.deepcopy(tiny_llama.model) if is_own_copy else tiny_llama.model
    Binder.of(model)
    before = last_beat()
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert last_beat() > before
