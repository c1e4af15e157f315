"""Fixtures of the tests of training."""

import pytest
import torch
from support.tiny_bases import MakeBase
from support.trainers import trainer_on

from prefixray.training.trainer import Trainer


@pytest.fixture
def trainer(make_base: MakeBase) -> Trainer:
    """On GPT-2's architecture, in float64."""
    return trainer_on(make_base("gpt2", torch.float64))
