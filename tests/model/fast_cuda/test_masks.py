"""Masks whose rows lie as memory-efficient attention wants them, against plain ones, in float64: the same numbers."""

from typing import Any

import pytest
import torch
from support.packs import THREE, MakeBase, assert_same, pack_of, run_steps, trial_of
from torch.nn import functional

from prefixray.config.trials import FinetuneTrial, LoraTrial
from prefixray.model import backend
from prefixray.model.fast_cuda.backend import CUDABackend
from prefixray.training.pack import Pack

TOLERANCE = 1e-10
TRIALS = {
    **THREE,  # prefixes of 3 and 7 positions, and more
    "lora": trial_of(LoraTrial(rank=2), 1e-3, batch_size=3),
    "finetune": trial_of(FinetuneTrial(), 1e-3),  # T5's bias is trained
}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bart", "t5"])
def test_masks_lie_at_multiples_of_eight_and_change_no_number(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Flash attention does not know float64, so that packs run as they do on a GPU where it cannot attend."""
    monkeypatch.setitem(backend._FAST, "cpu", CUDABackend())
    strides: list[tuple[int, ...]] = []
    stock = functional.scaled_dot_product_attention

    def noting(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        strides.append(options["attn_mask"].stride())
        return stock(*arguments, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)

    def trained() -> Pack:
        pack = pack_of(make_base(architecture, torch.float64), TRIALS)
        strides.clear()  # of masks that nothing was bound for
        run_steps(pack, TRIALS, 2)
        scores.append(list(pack.evaluate(TRIALS, pack.train[:5]).values()))
        return pack

    scores: list[list[float]] = []
    ours = trained()
    assert strides and all(stride[-1] == 1 and not any(step % 8 for step in stride[:-1]) for stride in strides)
    monkeypatch.setattr(CUDABackend, "mask_multiple", 1)
    plain = trained()
    assert any(step % 8 for stride in strides for step in stride[:-1]), "the plain masks lie otherwise"
    assert scores[0] == pytest.approx(scores[1], rel=0, abs=TOLERANCE)
    for key in TRIALS:
        assert_same(ours.members[key], plain.members[key], TOLERANCE)
