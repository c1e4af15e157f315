"""Tiny real models and a tiny real tokenizer: two layers, random weights, outputs far from uniform."""

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from prefixray.model.base import Base

MakeBase = Callable[[str, torch.dtype], Base]
MakeOn = Callable[[str, torch.dtype, str], Base]


SENTENCES = (
    "The Eagle is a cheap coffee shop in the riverside area near Burger King.",
    "name : The Eagle | Type : coffee shop | food : Chinese | price : cheap | area : riverside | near : Burger King",
    "Near Café Rouge there is a family friendly pub called The Golden Palace , which serves French food.",
    "name : The Golden Palace | Type : pub | food : French | customer rating : 5 out of 5 | family friendly : yes",
    "A high priced restaurant with an average customer rating, The Mill offers Italian food in the city centre.",
    "name : The Mill | Type : restaurant | food : Italian | price : high | customer rating : average",
    "The Vaults is not family friendly and has a low rating ; its prices are less than £ 20.",
)


SPECIAL_TOKENS = {  # beginning and end of a sequence, by architecture
    "gpt2": ("<|endoftext|>", "<|endoftext|>"),
    "llama": ("<|im_start|>", "<|im_end|>"),
    "opt": ("<s>", "</s>"),
    "bart": ("<s>", "</s>"),
    "t5": (None, "</s>"),
}


_VOCABULARY = 320  # 256 bytes, special tokens, and a few words


def stock_model(base: Base) -> PreTrainedModel:
    """A decoder-only base as transformers loads it, on the same device, frozen and in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=base.model.dtype)
    assert isinstance(model, PreTrainedModel)
    torch.nn.Module.to(model, base.device)
    model.requires_grad_(False)
    model.train(False)
    return model


def train_tokenizer(bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the sentences; an encoder-decoder's puts special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (bos, "<pad>" if eos == "</s>" else None, eos) if token is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if "<pad>" not in special:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    around = [token for token in (bos, "$A", eos) if token is not None]
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<pad>")


def random_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(1)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.3, **tokens}
    pad = tokenizer.pad_token_id
    match name:
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=32, n_layer=2, n_head=4, **sizes))
        case "llama":
            layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": True}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
            return LlamaForCausalLM(LlamaConfig(**layers, **heads, **sizes))
        case "opt":
            layers = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "word_embed_proj_dim": 32}
            heads = {"num_attention_heads": 4, "max_position_embeddings": 256, "init_std": 0.3}
            return OPTForCausalLM(OPTConfig(**layers, **heads, pad_token_id=pad, **sizes))
        case "bart":
            layers = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 256}
            heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
            wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3}
            end = {"pad_token_id": pad, "decoder_start_token_id": tokenizer.eos_token_id}
            return BartForConditionalGeneration(BartConfig(**layers, **heads, **wide, **end, **sizes))
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    del sizes["bos_token_id"], sizes["initializer_range"]
    start = {"pad_token_id": pad, "decoder_start_token_id": pad, "initializer_factor": 1.0}
    return T5ForConditionalGeneration(T5Config(**shape, **start, **sizes))
