"""Dropout by row: as torch's in the mean, and the same for a row wherever it stands."""

import pytest
import torch
from support.packs import pack_of, run_steps, trial_of
from support.tiny_bases import MakeBase
from torch import Tensor, nn
from torch.nn import functional

from prefixray.config.trials import AnyTrial, FinetuneTrial, PrefixTrial
from prefixray.model.dropout.row_dropout import RowDropout

WIDTH = 256


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.25))


def masks(model: nn.Module, numbers: list[int], *, seed: int = 1, length: int = 64) -> tuple[Tensor, Tensor]:
    """What the two modules make of ones, (B, S, W) each."""
    dropout = RowDropout(model)
    dropout.take(torch.tensor(numbers), None)
    ones = torch.ones(len(numbers), length, WIDTH)
    with dropout.drawing(seed):
        first, second = (module(ones) for module in model.children())
    return first, second


def test_it_drops_as_often_as_it_should_and_keeps_the_mean(model: nn.Module) -> None:
    for dropped, p in zip(masks(model, [0, 1, 2, 3]), (0.1, 0.25), strict=True):
        assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.006)  # 65,536 draws: 5 deviations
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        for axis in (0, 1, 2):  # no row, position or channel is dropped more than others
            shares = (dropped == 0).float().movedim(axis, 0).flatten(1).mean(1)
            draws = dropped.numel() / dropped.shape[axis]
            assert float((shares - p).abs().max()) < 5 * (p * (1 - p) / draws) ** 0.5


def test_neighbours_are_dropped_independently(model: nn.Module) -> None:
    _, mask = masks(model, [0, 1, 2, 3])
    flat = (mask == 0).float() - 0.25
    for axis in (0, 1, 2):
        together = flat.narrow(axis, 0, flat.shape[axis] - 1) * flat.narrow(axis, 1, flat.shape[axis] - 1)
        assert abs(float(together.mean())) < 5 * 0.1875 / together.numel() ** 0.5


def test_a_row_drops_the_same_wherever_it_stands(model: nn.Module) -> None:
    first, second = masks(model, [5, 3], length=10)
    for alone, among in zip(masks(model, [3], length=7), (first, second), strict=True):
        assert torch.equal(alone[0], among[1, :7])
    assert not torch.equal(first == 0, second == 0) and not torch.equal(first[0], first[1])
    assert not torch.equal(masks(model, [5, 3], seed=2, length=10)[0], first)


def test_torchs_own_dropout_is_back_afterwards(model: nn.Module) -> None:
    stock = functional.dropout
    masks(model, [0])
    assert functional.dropout is stock
    with pytest.raises(ValueError, match="stops"), RowDropout(model).drawing(1):
        raise ValueError("stops")
    assert functional.dropout is stock


@pytest.mark.parametrize("method", [PrefixTrial(preseqlen=3, mid_dim=None, init_token=None), FinetuneTrial()])
def test_no_layer_is_dropped_for_all_rows_of_a_micro_batch(make_base: MakeBase, method: AnyTrial) -> None:
    base = make_base("bart", torch.float64)
    base.model.config.encoder_layerdrop = base.model.config.decoder_layerdrop = 0.5  # for the copies
    for module in base.model.modules():
        if "layerdrop" in vars(module):
            vars(module)["layerdrop"] = 0.5
    trial = trial_of(method, 1e-3, batch_size=4, base_dropout=True)
    packs = [pack_of(base, {"drops": trial}, token_budget=budget) for budget in (None, 1)]
    losses = [[step["drops"].loss for step in run_steps(pack, ["drops"], 3)] for pack in packs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
