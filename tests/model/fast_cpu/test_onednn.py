"""Products by oneDNN are the plain layers', forward and backward, in every layer's place, and are gone afterwards."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prefixray.model.base import Base
from prefixray.model.fast_cpu import onednn
from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.model.fast_cpu.onednn import frozen_layers, linear, rearranged

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of logits' largest
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 products on this processor"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=["fp32", "bf16"])
def test_logits_are_those_of_the_plain_layers(any_base: Base, dtype: torch.dtype) -> None:
    model = any_base.model.to(dtype)
    ids = torch.randint(300, (3, 7), generator=torch.Generator().manual_seed(1))
    given = {"decoder_input_ids": ids} if any_base.shape.is_encoder_decoder else {}
    calls: list[int] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        plain = model(input_ids=ids, **given).logits
        expected, before = len(calls), {name: module.forward for name, module in model.named_modules()}
        with rearranged(model):
            calls.clear()
            found = model(input_ids=ids, **given).logits
            changed = [name for name, module in model.named_modules() if module.forward != before[name]]
        again = model(input_ids=ids, **given).logits
    assert len(calls) == 2 * expected, "hooks on layers still run"
    assert changed and found.dtype == plain.dtype
    assert (found - plain).abs().max() <= TOLERANCE[dtype] * plain.abs().max()
    assert torch.equal(again, plain) and all(module.forward == before[n] for n, module in model.named_modules())


def _inputs_gradients(base: Base) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the words' embeddings."""
    model, draw = base.model, torch.Generator().manual_seed(1)
    ids = torch.randint(300, (3, 7), generator=draw)
    words = model.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[no-untyped-call]
    given = {"decoder_input_ids": ids} if base.shape.is_encoder_decoder else {}
    logits = model(inputs_embeds=words, **given).logits
    (logits * torch.randn(logits.shape, generator=draw)).sum().backward()
    assert words.grad is not None
    return logits.detach(), words.grad


def test_a_step_through_frozen_layers_is_the_plain_one(any_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_is_amd_with_avx512", lambda: True)
    plain = _inputs_gradients(any_base)
    with frozen_layers(any_base.model):
        assert any("forward" in vars(module) for module in any_base.model.modules())
        found = _inputs_gradients(any_base)
    assert not any("forward" in vars(module) for module in any_base.model.modules())
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE[torch.float32] * theirs.abs().max()
    assert all(parameter.grad is None for parameter in any_base.model.parameters())


@pytest.mark.parametrize("strides", [(1, 0), (0, 1)], ids=["as it is", "transposed"])
def test_a_product_alone_is_torchs(strides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_is_amd_with_avx512", lambda: True)
    weight = torch.randn(20, 20, generator=torch.Generator().manual_seed(1)).permute(strides)
    inputs, bias = torch.randn(2, 5, 20), torch.randn(20)
    torch.testing.assert_close(linear(inputs, weight, bias), functional.linear(inputs, weight, bias))
    doubled = linear(inputs.double(), weight.double())
    assert torch.equal(doubled, functional.linear(inputs.double(), weight.double())), "float64 is left alone"


@needs_bf16
def test_mixed_precision_is_autocasts(any_base: Base) -> None:
    ids = torch.randint(300, (3, 7), generator=torch.Generator().manual_seed(1))
    given = {"decoder_input_ids": ids} if any_base.shape.is_encoder_decoder else {}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = any_base.model(input_ids=ids, **given).logits
        with rearranged(any_base.model):
            assert any("forward" in vars(module) for module in any_base.model.modules())
            found = any_base.model(input_ids=ids, **given).logits
    assert found.dtype == plain.dtype
    assert (found - plain).abs().max() <= TOLERANCE[torch.bfloat16] * plain.abs().max()


def test_float64_and_a_large_model_are_left_alone(tiny_llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def num_changed() -> int:
        with rearranged(tiny_llama.model):
            return sum("forward" in vars(module) for module in tiny_llama.model.modules() if type(module) is nn.Linear)

    assert num_changed() > 0
    monkeypatch.setattr(onednn, "MOST_MEMORY", 1e-9)
    assert num_changed() == 0
    monkeypatch.undo()
    tiny_llama.model.to(torch.float64)
    assert num_changed() == 0


def test_layers_in_bf16_are_left_to_torch(tiny_llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_is_amd_with_avx512", lambda: True)
    with frozen_layers(tiny_llama.model.to(torch.bfloat16)):
        assert not any("forward" in vars(module) for module in tiny_llama.model.modules())


def test_a_server_has_rearranged_weights_where_onednn_is_faster_by_one_row_too(
    tiny_llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_amd in (True, False):
        monkeypatch.setattr(onednn, "_is_amd_with_avx512", lambda answer=is_amd: answer)
        with CPUBackend().serving(tiny_llama.model):
            assert any("forward" in vars(module) for module in tiny_llama.model.modules()) == is_amd
