"""Families besides GPT-2 and Llama: a prefix of words is the plain model behind those words, or they are refused."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForCausalLM,
    BlenderbotSmallConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    FalconConfig,
    FalconH1Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    Lfm2Config,
    Llama4TextConfig,
    MarianConfig,
    MBartConfig,
    MistralConfig,
    OPTConfig,
    PegasusConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
    RobertaConfig,
)

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base, wrap_model
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.describe import describe
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SOURCES = ("name : The Eagle | food : Chinese", "name : The Mill")
_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
CONFIGS = {
    "opt": OPTConfig(ffn_dim=64, word_embed_proj_dim=32),
    "gpt-neox": GPTNeoXConfig(intermediate_size=64),
    "gemma 3": Gemma3TextConfig(intermediate_size=64, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "qwen 3": Qwen3Config(intermediate_size=64, num_key_value_heads=2, head_dim=8),
    "phi 3": Phi3Config(intermediate_size=64, num_key_value_heads=2, pad_token_id=0),
}


def _sized(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    for key, value in {**sizes, "vocab_size": len(tokenizer), "layer_types": None}.items():
        if hasattr(config, key) and (value is not None or getattr(config, key) is not None):
            setattr(config, key, ["full_attention"] * 2 if key == "layer_types" else value)
    return config


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest, tiny_llama: Base) -> Base:
    """Two random layers of each family, under a tiny tokenizer."""
    torch.manual_seed(1)
    config = _sized(CONFIGS[request.param], tiny_llama.tokenizer)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else None
    return wrap_model(model, tiny_llama.tokenizer, name=request.param, digest="")


def test_a_prefix_of_words_decodes_as_the_plain_model_behind_them(base: Base) -> None:
    stock = copy.deepcopy(base.model)
    binder, template = Binder.of(base.model), make_template(base, TaskConfig(name="e2e"))
    words = torch.tensor([base.tokenizer(" a cheap pub").input_ids])
    insert = Insert({"decoder": binder.record(words)["decoder"]})
    decoding = DecodingSettings(num_beams=3, max_new_tokens=8)
    ours = generate(base, template, SOURCES, [insert] * 2, decoding)
    for source, hypothesis in zip(SOURCES, ours, strict=True):
        prompt = torch.cat([words, torch.tensor([template.encode_source(source)])], dim=1)
        ids = {"eos_token_id": template.eos_id, "pad_token_id": template.pad_id}
        output = stock.generate(prompt, num_beams=3, max_new_tokens=8, do_sample=False, **ids)
        text = base.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
        assert hypothesis == (text.splitlines() or [""])[0].strip() != ""


def test_references_that_share_their_source_have_the_loss_that_they_have_alone(base: Base) -> None:
    template = make_template(base, TaskConfig(name="e2e"))
    rows = encode([Example(source, target) for source in SOURCES for target in ("It is Chinese.", "A mill")], template)
    pack = Pack(base, rows, pad_id=template.pad_id)
    pack.admit("a", TrialConfig(arm="a", learning_rate=1e-3, num_steps=1, method=LoraTrial(rank=2)), Seeds(1, 2, 3))
    alone = sum(pack.evaluate(["a"], [row])["a"] * row.num_targets for row in rows)
    assert abs(pack.evaluate(["a"], rows)["a"] - alone / sum(row.num_targets for row in rows)) < 1e-5


def test_rows_one_behind_another_have_the_losses_that_they_have_side_by_side(base: Base) -> None:
    template = make_template(base, TaskConfig(name="e2e"))
    rows = encode([Example(SOURCES[0], "A"), Example(SOURCES[1], "It is Chinese.")], template)
    pack, method = Pack(base, rows, pad_id=template.pad_id), PrefixTrial(preseqlen=3, mid_dim=None, init_token=None)
    pack.admit("a", TrialConfig(arm="a", learning_rate=1e-3, num_steps=1, method=method), Seeds(1, 2, 3))
    assert pack.layout.knows_lines
    in_line = pack.evaluate(["a"], rows)
    pack.layout.knows_lines = False
    assert in_line["a"] == pytest.approx(pack.evaluate(["a"], rows)["a"], abs=1e-5)


@pytest.mark.parametrize("config", [BlenderbotSmallConfig, MarianConfig, MBartConfig, PegasusConfig])
def test_embeddings_of_words_are_read_as_the_words_where_a_family_scales_them(
    tiny_bart: Base, config: type[PreTrainedConfig]
) -> None:
    tokenizer = tiny_bart.tokenizer
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in _SIDE.items()}
    sized = config(vocab_size=len(tokenizer), d_model=32, pad_token_id=1, scale_embedding=True, **sides)
    base = wrap_model(
        AutoModelForSeq2SeqLM.from_config(sized, attn_implementation="sdpa"), tokenizer, name="", digest=""
    )
    binder = Binder.of(base.model)
    trial = PrefixTrial(preseqlen=None, mid_dim=None, init_token="a pub", prefix_mode="embedding")
    method = build_method(trial, base, binder.record, init_seed=1, dropout_seed=1)
    words = binder.record(torch.tensor([tokenizer(" a pub", add_special_tokens=False).input_ids]))
    prefixes = method.insert(None).prefixes
    assert set(prefixes) == {"encoder", "decoder", "cross"}
    assert all((prefixes[site] - words[site]).abs().max() < 1e-5 for site in prefixes)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (Gemma3TextConfig(sliding_window=512, max_position_embeddings=32768), 512),
        (MistralConfig(sliding_window=4096, max_position_embeddings=32768), 4096),
        (MistralConfig(sliding_window=None, max_position_embeddings=32768), 32768),
        (Qwen3Config(max_position_embeddings=32768), 32768),
        (Llama4TextConfig(attention_chunk_size=8192, max_position_embeddings=32768), 8192),
        (
            Phi3Config(
                max_position_embeddings=131072,
                original_max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                },
            ),
            4096,
        ),
    ],
)
def test_rows_stay_within_the_window_of_a_base_that_looks_back_no_further(
    config: PreTrainedConfig, positions: int
) -> None:
    assert describe(config, 1).max_positions == positions


_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        FalconH1Config(**_SIZES, **_MAMBA, num_key_value_heads=2),  # a state beside each attention
        DiffLlamaConfig(**_SIZES, num_key_value_heads=2),  # two attentions in one
        RobertaConfig(**_SIZES),  # tokens that look ahead
        DeepseekV3Config(**_SIZES, num_key_value_heads=4),  # keys that are wider than values
    ],
    ids=lambda config: str(config.model_type),
)
def test_a_family_whose_rows_do_not_go_on_from_their_beginnings_is_refused(
    config: PreTrainedConfig, dtype: torch.dtype, tiny_llama: Base
) -> None:
    config.vocab_size, config.pad_token_id = len(tiny_llama.tokenizer), 0
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else None
    base = wrap_model(model, tiny_llama.tokenizer, name="x/y", digest="")
    with pytest.raises(UserError, match=r"^base: x/y: rows do not go on from the keys and values of their beginnings"):
        Pack(base, [], pad_id=0)


def test_layers_that_differ_or_have_no_attention_are_refused_before_there_are_weights(tiny_llama: Base) -> None:
    gemma, lfm2 = Gemma4TextConfig(**_SIZES), Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"])
    for config, told in ((gemma, "does not say its sizes once for all layers"), (lfm2, "has 1 attentions in 2 layers")):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        with pytest.raises(UserError, match=told):
            wrap_model(model, tiny_llama.tokenizer, name="x/y", digest="")


def test_a_family_that_no_prefix_can_reach_is_refused(tiny_llama: Base) -> None:
    tokenizer = tiny_llama.tokenizer
    falcon = AutoModelForCausalLM.from_config(_sized(FalconConfig(), tokenizer))
    with pytest.raises(UserError, match=r"^base: x/y: FalconForCausalLM computes its attention itself, past .* base$"):
        wrap_model(falcon, tokenizer, name="x/y", digest="")
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    half = BartForCausalLM(BartConfig(vocab_size=len(tokenizer), is_encoder_decoder=False, is_decoder=True, **sizes))
    with pytest.raises(UserError, match=r"^base: x/y: BartForCausalLM takes no position_ids, so that .* base$"):
        wrap_model(half, tokenizer, name="x/y", digest="")
