"""Steps that were laid out before they began, against steps that were not, in float64: the same numbers."""

from typing import Any

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from support.packs import SEEDS, MakeBase, rows_of, trial_of
from torch import Tensor

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.model.base import Base
from prefixray.model.fast_cuda.backend import CUDABackend
from prefixray.training.device import ahead
from prefixray.training.pack import Pack

METHODS: dict[str, AnyTrial] = {
    "flat": PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, prefix_dropout=0.2),
    "infix": PrefixTrial(preseqlen=2, mid_dim=None, init_token=None, format_mode="infix"),
    "lora": LoraTrial(rank=2, dropout=0.3),
    "second lora": LoraTrial(rank=3),
    "adapter": AdapterTrial(bottleneck=4),
    "finetune": FinetuneTrial(),
}
STEPS = [("flat", "lora"), tuple(METHODS), tuple(METHODS), ("second lora", "base dropout"), ("base dropout", "flat")]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases on this CPU run as on a GPU."""
    run_as_on_gpu(monkeypatch)


@pytest.mark.usefixtures("on_gpu")
def test_steps_laid_out_ahead_have_the_numbers_of_steps_that_are_not(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[int] = []
    stock = ahead.Ahead._lay

    def lay(*arguments: Any) -> Any:  # noqa: ANN401
        laid.append(arguments[-1])
        return stock(*arguments)

    monkeypatch.setattr(ahead.Ahead, "_lay", lay)
    found = _numbers(make_base("gpt2", torch.float64))
    monkeypatch.setattr(CUDABackend, "lays_ahead", False)
    now, later = laid.count(0), laid.count(1)
    expected = _numbers(make_base("gpt2", torch.float64))
    total = laid.count(0) - now
    num_alone = sum("finetune" in keys for keys in STEPS)  # an own model is not laid out ahead
    assert total > now and later == total - num_alone, "some steps were laid out before they began"
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours, plain)


def _numbers(base: Base) -> list[Tensor]:
    """Losses and trained tensors after steps of members that come and go."""
    pack, losses = Pack(base, rows_of(base), pad_id=0), list[float]()
    for key, method in METHODS.items():
        pack.admit(key, trial_of(method, 1e-2, batch_size=3), SEEDS)
    pack.admit("base dropout", trial_of(METHODS["flat"], 1e-2, batch_size=3, base_dropout=True), SEEDS)
    for keys in STEPS:
        losses += [result.loss for result in pack.step(keys).values()]
    pack.drop("flat")
    pack.admit("flat", trial_of(METHODS["flat"], 1e-2, batch_size=2), SEEDS)
    losses += [result.loss for result in pack.step(("base dropout", "flat")).values()]
    trained = [p.detach().clone() for member in pack.members.values() for p in member.method.parameters()]
    return [torch.tensor(losses), *trained]
