"""RMS norms in blocks are transformers' own, forward and backward, where they are known to be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from prefixray.model.base import Base
from prefixray.model.fast_cpu import rms_norm
from prefixray.model.fast_cpu.rms_norm import frozen_norms, rms_norms

MakeBase = Callable[[str, torch.dtype], Base]

WIDTH = 24
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}  # a place of what is compared


def _norm(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    norm = kind(WIDTH).to(dtype).requires_grad_(False)
    norm.get_parameter("weight").copy_(torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5)
    return norm


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
def test_outputs_and_gradients_are_the_plain_norms(
    kind: type[nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rms_norm, "BLOCK", 3 * WIDTH)
    norm, draw = _norm(kind, dtype), torch.Generator().manual_seed(2)
    given = torch.randn(2, 4, WIDTH, generator=draw) * torch.tensor([1e-4, 0.1, 1.0, 100.0])[:, None]
    coming = torch.randn(2, 4, WIDTH, generator=draw).to(dtype)
    assert rms_norms(nn.Sequential(norm)) == [norm]

    def run() -> tuple[Tensor, Tensor]:
        inputs = given.to(dtype).transpose(0, 1).requires_grad_()  # as it may come, not contiguous
        output = norm(inputs)
        output.backward(coming.transpose(0, 1))
        assert inputs.grad is not None
        return output.detach(), inputs.grad

    plain = run()
    with frozen_norms([norm]):
        found = run()
    assert torch.equal(found[0], plain[0]) or dtype == torch.float32
    for ours, theirs in zip(found, plain, strict=True):
        largest = theirs.abs().amax(dim=2, keepdim=True)
        assert ((ours - theirs).abs() <= TOLERANCE[dtype] * largest).all()
    assert "forward" not in vars(norm)


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    scaled, gated, other_epsilon = (_norm(LlamaRMSNorm, torch.float32) for _ in range(3))
    scaled.forward = lambda inputs: LlamaRMSNorm.forward(scaled, inputs) * 1.001
    gated.forward = lambda inputs, gate=None: LlamaRMSNorm.forward(gated, inputs)
    other_epsilon.forward = lambda inputs: inputs / (inputs.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6) * ones
    ones = other_epsilon.get_parameter("weight")
    less_mean = CohereLayerNorm(WIDTH).requires_grad_(False)
    others = [scaled, gated, other_epsilon, less_mean, GemmaRMSNorm(WIDTH), nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)]
    assert all(rms_norms(norm) == [] for norm in others)
    assert rms_norms(_norm(LlamaRMSNorm, torch.float64)) == []


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
def test_inputs_that_are_more_exact_than_the_weight_are_left_to_the_norm(kind: type[nn.Module]) -> None:
    norm, inputs = _norm(kind, torch.bfloat16), torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    plain = norm(inputs)
    with frozen_norms([norm]):
        found = norm(inputs)
    assert found.dtype == plain.dtype and torch.equal(found, plain)


def test_an_output_may_be_changed_in_place() -> None:
    norm, inputs = _norm(LlamaRMSNorm, torch.float32), torch.randn(2, 3, WIDTH, requires_grad=True)
    with frozen_norms([norm]):
        norm(inputs).clamp_(max=0.5).sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().max() > 0


def test_all_norms_of_a_base_are_found(make_base: MakeBase) -> None:
    for dtype in TOLERANCE:
        model = make_base("llama", dtype).model
        assert len(rms_norms(model)) == 2 * model.config.num_hidden_layers + 1
        assert rms_norms(make_base("gpt2", dtype).model) == []
