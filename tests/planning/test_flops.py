"""Counted operations are those of the matrix products that a forward has."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from prefixray.batching.lengths import Lengths
from prefixray.config.trials import FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.model.base import Base
from prefixray.model.describe import describe
from prefixray.planning.flops import forward_flops, training_flops

SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
PYTHIA = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
REAL = {  # as on the hub: GPT-2, SmolLM2-135M, BART-large, T5-large, Pythia-70m (a head of its own), Qwen3-0.6B
    "gpt2": (GPT2LMHeadModel, GPT2Config()),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    ),
    "bart": (BartForConditionalGeneration, BartConfig()),
    "t5": (T5ForConditionalGeneration, T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16)),
    "pythia": (GPTNeoXForCausalLM, GPTNeoXConfig(**PYTHIA, vocab_size=50304, tie_word_embeddings=False)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**QWEN3, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)),
}


@pytest.mark.parametrize("name", REAL)
def test_a_forward_has_the_products_that_are_counted(name: str) -> None:
    kind, config = REAL[name]
    config._attn_implementation = "eager"  # sdpa looks at the mask, and meta tensors have no values
    with torch.device("meta"):
        model, ids = kind(config).eval(), torch.zeros(1, 20, dtype=torch.long)
        targets = {"decoder_input_ids": ids[:, :8]} if config.is_encoder_decoder else {}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, **targets)
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    lengths = Lengths(20, 8, 8) if config.is_encoder_decoder else Lengths(0, 20, 20)
    shape = describe(config, model.num_parameters())
    assert forward_flops(shape, lengths) == pytest.approx(products, rel=0.01)


def test_a_frozen_base_costs_two_forwards_and_its_own_weights_a_third(tiny_llama: Base) -> None:
    shape, lengths = tiny_llama.shape, Lengths(0, 10, 4)
    once = forward_flops(shape, lengths, is_last_whole=True)
    assert training_flops(shape, lengths, LoraTrial(rank=2)) == 2 * once
    assert training_flops(shape, lengths, FinetuneTrial()) == 3 * once
    assert training_flops(shape, lengths, LoraTrial(rank=2), is_checkpointed=True) == 3 * once


def test_a_fine_tuning_of_the_last_block_of_two_goes_back_through_half_of_it(tiny_llama: Base) -> None:
    shape, lengths = tiny_llama.shape, Lengths(0, 10, 4)
    once = forward_flops(shape, lengths, is_last_whole=True)
    assert training_flops(shape, lengths, FinetuneTrial(top_layers=1, tune_embeddings=False)) == 2 * once
    assert training_flops(shape, lengths, FinetuneTrial(top_layers=1)) == 2.5 * once


def test_an_infix_makes_rows_longer(tiny_llama: Base) -> None:
    shape = tiny_llama.shape
    infix = PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, format_mode="infix")
    assert training_flops(shape, Lengths(0, 10, 4), infix) == 2 * forward_flops(shape, Lengths(0, 15, 4))
