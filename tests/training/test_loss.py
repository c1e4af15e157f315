"""The loss that never holds all logits is that of all logits, and so is its gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from torch import nn
from transformers import AutoModelForCausalLM, GraniteConfig

from prefixray.model.base import Base
from prefixray.model.fast_cpu import onednn
from prefixray.training import loss
from prefixray.training.loss import Head, Objective, losses_of_hidden, losses_of_logits, plain_head

MakeBase = Callable[[str, torch.dtype], Base]

WIDTH, VOCABULARY, COUNT = 8, 50, 7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("where", ["with AMX", "without", "as on a GPU"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunks_give_the_losses_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, smoothing: float, where: str
) -> None:
    monkeypatch.setattr(onednn, "_is_amd_with_avx512", lambda: True)
    monkeypatch.setattr(onednn, "_has_amx", lambda: where == "with AMX")
    if where == "as on a GPU":
        run_as_on_gpu(monkeypatch)
    monkeypatch.setattr(loss, "CHUNK_MULTIPLE", 4)
    monkeypatch.setitem(loss.CHUNK, "cpu", 5)
    monkeypatch.setitem(loss.BLOCK, "cpu", 2 * VOCABULARY)
    draw = torch.Generator().manual_seed(1)
    module = nn.Linear(WIDTH, VOCABULARY).to(dtype).requires_grad_(False)
    head = Head(module)
    assert [len(range(COUNT)[some]) for some in head.chunks(COUNT)] == [4, 3]
    hidden = torch.randn(COUNT, WIDTH, generator=draw).to(dtype)
    ids = torch.randint(0, VOCABULARY, (COUNT,), generator=draw)
    exact = torch.promote_types(dtype, torch.float32)
    spread = torch.tensor([smoothing, 0.0] * COUNT, dtype=exact)[:COUNT]  # of two trials in one micro-batch
    objective = Objective(torch.rand(COUNT, generator=draw, dtype=exact), spread)
    whole, chunked = (hidden.clone().requires_grad_() for _ in range(2))
    expected = losses_of_logits(module(whole), ids, objective)
    found = losses_of_hidden(head, chunked, ids, objective)
    assert whole.grad is not None and chunked.grad is not None
    assert torch.allclose(found, expected, atol=TOLERANCE[dtype])
    assert torch.allclose(chunked.grad, whole.grad, atol=TOLERANCE[dtype])
    assert chunked.grad.abs().max() > 0.05
    assert torch.allclose(losses_of_hidden(head, hidden, ids, None), expected, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_a_target_without_any_probability_has_its_loss_and_its_slope(
    is_on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_on_gpu:
        run_as_on_gpu(monkeypatch)
    module = nn.Linear(2, 3, bias=False).requires_grad_(False)
    module.weight.copy_(torch.tensor([[0.0, 0.0], [300.0, 0.0], [300.0, 1.0]]))
    hidden = torch.tensor([[1.0, 0.0], [1.0, 90.0]], requires_grad=True)
    found = losses_of_hidden(Head(module), hidden, torch.tensor([0, 1]), Objective(torch.ones(2), torch.zeros(2)))
    least = -math.log(loss.LEAST) if is_on_gpu else math.inf
    assert found.tolist() == pytest.approx([min(300 + math.log(2), least), min(90.0, least)])
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([300.0, 0.5, 0.0, 1.0])


def test_the_loss_and_the_slope_of_a_likely_target_are_not_rounded_away_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_as_on_gpu(monkeypatch)
    rest = torch.tensor([0.3, 1e-2, 1e-3, 1e-5], dtype=torch.float64)
    logits = torch.zeros(4, VOCABULARY, dtype=torch.float64)
    logits[:, 3] = torch.log((1 - rest) / rest * (VOCABULARY - 1))
    rounded, nll = logits.bfloat16(), torch.empty(4)
    slopes = loss._losses_and_slopes(rounded.clone(), torch.full((4,), 3), None, nll)
    log_p = torch.log_softmax(rounded.double(), dim=1)[:, 3]
    assert torch.allclose(nll.double(), -log_p, rtol=1e-2, atol=0)
    assert torch.allclose(slopes[:, 3].double(), torch.expm1(log_p), rtol=1e-2, atol=0)


def test_chunks_are_of_one_size_within_their_limits() -> None:
    head = Head(nn.Linear(1, 151936, bias=False).to(torch.bfloat16).requires_grad_(False))
    sizes = [len(range(250)[some]) for some in head.chunks(250)]
    assert sizes == [96, 96, 58] and 96 * 151936 * 2 <= loss.CHUNK_BYTES["cpu"] < 112 * 151936 * 2
    assert list(head.chunks(0)) == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
def test_a_head_that_is_the_last_of_a_model_is_found(make_base: MakeBase, name: str) -> None:
    model = make_base(name, torch.float32).model
    head = plain_head(model)
    assert head is not None and head.weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_a_head_whose_logits_are_scaled_is_not_plain_though_padding_has_none() -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=50, num_key_value_heads=2, pad_token_id=0, logits_scaling=8.0, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    assert not model.get_input_embeddings().weight[0].any()
    assert plain_head(model) is None


def test_a_head_whose_logits_are_changed_afterwards_is_not_plain(make_base: MakeBase) -> None:
    model = make_base("bart", torch.float32).model
    model.final_logits_bias.add_(1.0)
    assert plain_head(model) is None
