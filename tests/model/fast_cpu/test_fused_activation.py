"""GELU inside the product before it gives what it gives behind it."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from prefixray.batching.rows import Row
from prefixray.config.trials import LoraTrial, PrefixTrial, TrialConfig
from prefixray.model.base import Base
from prefixray.model.fast_cpu import backend as cpu_backend
from prefixray.model.fast_cpu import onednn
from prefixray.model.fast_cpu.fused_activation import activated_layers, fused
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

ROWS = [Row((5, 9, 8, 7, 12), 2), Row((5, 9, 3), 2), Row((4, 6, 20, 30, 11, 3), 3)]
needs_bf16 = pytest.mark.skipif(
    not onednn.is_faster(torch.device("cpu"), torch.bfloat16), reason="oneDNN multiplies no bf16 here"
)


def _is_one(base: Base) -> bool:
    return bool(activated_layers(base.model))


@needs_bf16
def test_every_block_has_a_pair_and_the_logits_stay(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.bfloat16)
    pairs = activated_layers(base.model)
    assert len(pairs) == base.shape.sites["decoder"].num_layers
    assert all(isinstance(activation, nn.GELU) for _, activation in pairs)
    inputs = {"input_ids": torch.arange(3, 40)[None], "position_ids": torch.arange(37)[None]}
    with torch.no_grad():
        apart = base.model(**inputs).logits.float()
        with fused(pairs):
            together = base.model(**inputs).logits.float()
        again = base.model(**inputs).logits.float()
    assert torch.equal(again, apart) and not torch.equal(together, apart)
    assert (together - apart).abs().max() < 0.02 * apart.abs().max()


@needs_bf16
def test_a_layer_whose_output_goes_elsewhere_too_is_left_alone(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.bfloat16)
    mlp = base.blocks()[0][1].mlp
    plain = mlp.forward

    def and_before(hidden: torch.Tensor) -> torch.Tensor:
        return plain(hidden) + 0.01 * mlp.c_proj(mlp.c_fc(hidden))

    assert _is_one(base)
    mlp.forward = and_before
    assert not _is_one(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_only_bf16_is_run_so(make_base: MakeBase, dtype: torch.dtype) -> None:
    assert not _is_one(make_base("gpt2", dtype))


@needs_bf16
def test_a_score_is_that_of_activations_behind_their_products(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack(make_base("gpt2", torch.bfloat16), ROWS, pad_id=0)
    methods = {"prefix": PrefixTrial(preseqlen=3, mid_dim=None, init_token=None), "lora": LoraTrial(rank=2)}
    for key, method in methods.items():
        pack.admit(key, TrialConfig(arm=key, learning_rate=1e-2, num_steps=2, method=method), Seeds(1, 2, 3))
    pack.step(methods)
    together = {key: pack.evaluate([key], ROWS)[key] for key in methods}
    monkeypatch.setattr(cpu_backend, "fused", lambda pairs: nullcontext())
    apart = {key: pack.evaluate([key], ROWS)[key] for key in methods}
    assert together["prefix"] == pytest.approx(apart["prefix"], abs=0.02) and together["prefix"] != apart["prefix"]
    assert together["lora"] == apart["lora"], "its functions may want what stands between"
