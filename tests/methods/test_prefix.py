"""What a prefix is, against the base itself and against PEFT."""

from collections.abc import Callable, Mapping

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from support.built_methods import INFIXES, WORDS, build, ids_of, inputs_of, logits_of, train
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefixray.config.trials import PrefixTrial
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.prefix import Prefix
from prefixray.methods.virtual_prefix import EmbeddingPrefix
from prefixray.model.base import Base, checkpointed
from prefixray.model.binding.binder import Binder


@pytest.mark.parametrize("name", INFIXES)
def test_an_infix_in_an_encoder_decoder_is_refused(tiny_pair: Base, name: str) -> None:
    with pytest.raises(UserError, match=r"format_mode: infix: .* is an encoder-decoder.*; take cat"):
        build(name, tiny_pair, Binder.of(tiny_pair.model))


def test_dropout_keeps_the_prefix_on_average(tiny_gpt2: Base) -> None:
    config = PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, prefix_dropout=0.25)
    binder = Binder.of(tiny_gpt2.model)
    method = build_method(config, tiny_gpt2, binder.record, init_seed=1, dropout_seed=1)
    whole = method.insert(None).prefixes["decoder"]
    dropped = torch.stack([method.insert(step).prefixes["decoder"] for step in range(400)])
    assert dropped.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (dropped.mean(0) - whole).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["flat of words", "network of words", "embedding network of words"])
def test_a_prefix_of_words_equals_the_model_run_on_the_words_and_the_input(tiny_base: Base, name: str) -> None:
    binder = Binder.of(tiny_base.model)
    method = build(name, tiny_base, binder)
    assert isinstance(method, Prefix)
    ids = ids_of(tiny_base, " name : The Eagle | food : Chinese")
    words = ids_of(tiny_base, f" {WORDS}")
    repeated = words.repeat(1, 2)[:, : method.num_positions]
    with torch.no_grad():
        whole = tiny_base.model(input_ids=torch.cat([repeated, ids], dim=1)).logits[:, repeated.shape[1] :]
        assert (logits_of(tiny_base, binder, method, ids) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("wrap", [lambda base: base, checkpointed], ids=["kept", "checkpointed"])
def test_embeddings_have_the_gradients_of_the_plain_model_that_reads_them_before_the_row(
    exact_base: Base, wrap: Callable[[Base], Base]
) -> None:
    base, ids = wrap(exact_base), ids_of(exact_base, " name : The Eagle")
    stock = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float64).eval().to(base.device)
    binder = Binder.of(base.model)
    method = build("embedding", base, binder).double()
    assert isinstance(method, EmbeddingPrefix)
    with binder.bind([method.insert(0)], [0]):
        base.model(**inputs_of(base, ids), use_cache=False).logits.logsumexp(-1).sum().backward()
    method.push_gradients()
    embeddings = method.embedding.flat.detach().clone().requires_grad_()
    whole = torch.cat([embeddings, stock.get_input_embeddings()(ids[0])])
    stock(inputs_embeds=whole[None]).logits[:, len(embeddings) :].logsumexp(-1).sum().backward()
    ours, plain = method.embedding.flat.grad, embeddings.grad
    assert ours is not None and plain is not None and (ours - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("mode", ["activation", "embedding", "infix"])
def test_a_flat_random_start_is_what_the_base_makes_of_random_tokens(any_base: Base, binder: Binder, mode: str) -> None:
    if mode == "infix" and any_base.shape.is_encoder_decoder:
        return
    form = {"format_mode": mode} if mode == "infix" else {"prefix_mode": mode}
    config = PrefixTrial(preseqlen=7, mid_dim=None, init_token=None, **form)  # type: ignore[arg-type]
    one, again, other = (
        build_method(config, any_base, binder.record, init_seed=seed, dropout_seed=1) for seed in (1, 1, 2)
    )
    assert isinstance(one, Prefix) and isinstance(again, Prefix) and isinstance(other, Prefix)
    assert one.tokens is not None and len(set(one.tokens)) > 1
    assert one.tokens == again.tokens != other.tokens
    recorded, insert = binder.record(torch.tensor([one.tokens], device=any_base.device)), one.insert(None)
    for site, prefix in insert.prefixes.items():
        wanted = torch.zeros_like(prefix) if mode == "infix" else recorded[site]
        assert torch.allclose(prefix, wanted, atol=1e-6)
    if mode == "infix":
        embeddings = any_base.model.get_input_embeddings()(torch.tensor(one.tokens, device=any_base.device))
        assert insert.infix is not None and torch.equal(insert.infix, embeddings)


def test_words_are_repeated_to_preseqlen(any_base: Base, binder: Binder) -> None:
    words = ids_of(any_base, f" {WORDS}")
    length = 2 * words.shape[1] + 1
    config = PrefixTrial(preseqlen=length, mid_dim=None, init_token=WORDS)
    method = build_method(config, any_base, binder.record, init_seed=1, dropout_seed=1)
    recorded = binder.record(torch.cat([words, words, words[:, :1]], dim=1))
    prefixes = method.insert(None).prefixes
    assert set(prefixes) == set(recorded) and all(torch.equal(prefixes[site], recorded[site]) for site in recorded)


@pytest.mark.parametrize("preseqlen", [1, 6, 17])
def test_the_solved_network_reproduces_the_words_keys_and_values(
    any_base: Base, binder: Binder, preseqlen: int
) -> None:
    config = PrefixTrial(preseqlen=preseqlen, mid_dim=16, init_token=WORDS)
    method = build_method(config, any_base, binder.record, init_seed=1, dropout_seed=1)
    assert isinstance(method, Prefix) and (residual := method.residual()) is not None
    assert residual < 1e-10  # of the solve itself, in float64
    words = ids_of(any_base, f" {WORDS}")
    wanted = binder.record(words.repeat(1, preseqlen)[:, :preseqlen])
    for site, prefix in method.fold().items():
        assert (prefix - wanted[site]).norm() / wanted[site].norm() < 1e-5  # of the network, in float32


def test_what_the_network_cannot_reach_is_said(tiny_gpt2: Base, caplog: pytest.LogCaptureFixture) -> None:
    config = PrefixTrial(preseqlen=12, mid_dim=2, init_token="The Golden Palace serves French food")
    with caplog.at_level("INFO"):
        method = build_method(config, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)
    assert isinstance(method, Prefix) and 0.01 < (method.residual() or 0) < 1
    assert "start: the networks reach all but" in caplog.text


def test_a_network_stores_only_what_it_folds_to(any_base: Base, binder: Binder) -> None:
    method = build("network", any_base, binder)
    widths = [2 * site.num_layers * site.num_kv_heads * site.head_dim for site in any_base.shape.sites.values()]
    assert method.stored_parameters() == 6 * sum(widths)
    assert method.trained_parameters() == sum(6 * 32 + (32 + 1) * 16 + (16 + 1) * width for width in widths)


@pytest.mark.parametrize("name", ["network", "flat of words"])
def test_a_folded_prefix_gives_the_same_logits_in_peft(tiny_base: Base, name: str) -> None:
    binder = Binder.of(tiny_base.model)
    method = build(name, tiny_base, binder)
    train(tiny_base, binder, method)
    tensors = method.artifact()
    ids = ids_of(tiny_base, " name : The Eagle | food : Chinese")[:, :16].view(2, 8)
    with torch.no_grad():
        ours = logits_of(tiny_base, binder, method, ids)
        assert (_in_peft(tiny_base, tensors, ids) - ours).abs().max() < 1e-5


def test_a_prefix_as_long_as_the_base_is_refused(tiny_gpt2: Base) -> None:
    config = PrefixTrial(preseqlen=256, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 256: .* has 256 positions"):
        build_method(config, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)


def _in_peft(base: Base, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Logits of PEFT's own prefix tuning with an artifact's keys and values in it."""
    num_positions = tensors["decoder.key"].shape[2]
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_positions, inference_mode=False)
    model = get_peft_model(base.model, config)
    both = torch.stack([tensors["decoder.key"], tensors["decoder.value"]])  # (2, L, K, P, D)
    rows = both.permute(3, 1, 0, 2, 4).reshape(num_positions, -1)  # per position: layers, key and value, heads
    model.prompt_encoder["default"].load_prompt_embeddings(rows.to(base.device))
    model.eval()
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits
