"""The learning rate of each step, and the seeds of each trial."""

from collections.abc import Callable

import pytest
import torch
from support.packs import FLAT, SEEDS, trial_of
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from prefixray.training.member import Seeds, learning_rate

Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR]


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(6, 0), (6, 2), (6, 5), (40, 4), (2, 1), (1, 0)])
def test_every_steps_learning_rate_is_that_of_transformers(num_steps: int, warmup_steps: int) -> None:
    theirs: dict[str, Schedule] = {
        "linear": lambda one: get_linear_schedule_with_warmup(one, warmup_steps, num_steps),
        "cosine": lambda one: get_cosine_schedule_with_warmup(one, warmup_steps, num_steps),
        "constant": lambda one: get_constant_schedule_with_warmup(one, warmup_steps),
    }
    for name, make in theirs.items():
        trial = trial_of(FLAT.method, 8.0, num_steps=num_steps, warmup_steps=warmup_steps, schedule=name)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
        schedule, rates = make(optimizer), []
        for _ in range(num_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert [learning_rate(trial, step) for step in range(num_steps)] == pytest.approx(rates, rel=1e-12), name


def test_the_seeds_of_a_replicate_are_shared_and_each_has_its_purpose() -> None:
    assert Seeds.derive(1, 0) == SEEDS
    all_of_them = [Seeds.derive(seed, replicate) for seed in (1, 2) for replicate in (0, 1)]
    assert len({number for seeds in all_of_them for number in (seeds.data, seeds.init, seeds.dropout)}) == 12
