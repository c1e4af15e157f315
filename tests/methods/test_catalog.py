"""A method is one file, one schema and one entry; and the sizes that its entry computes are those of its tensors."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import prefixray
from prefixray.config import trials
from prefixray.config.schema import ArmConfig
from prefixray.config.space import Choice, LogUniform, Uniform
from prefixray.config.trials import (
    AdapterTrial,
    AnyTrial,
    FinetuneTrial,
    LoraTrial,
    MethodName,
    PrefixTrial,
    TrainConfig,
)
from prefixray.methods import build_method
from prefixray.methods.catalog import CATALOG, trained_parameters
from prefixray.methods.finetune import trained_names
from prefixray.model.base import Base, wrap_model
from prefixray.model.binding.binder import Binder
from prefixray.planning.memory import BYTES_PER_TRAINED, largest_trial

PACKAGE = Path(prefixray.__file__).parent
FILES = {  # of each method, besides its schema and its entry
    "prefix": {"prefix.py", "virtual_prefix.py"},
    "adapter": {"adapter.py"},
    "lora": {"lora.py"},
    "finetune": {"finetune.py"},
}
SCHEMA_AND_ENTRY = {"config/trials.py", "methods/catalog.py"}
ELSEWHERE = {
    "artifacts/cache.py": "past key values are a prefix",
    "artifacts/peft.py": "what PEFT's own formats can hold differs by method",
    "artifacts/li_liang.py": "the original's checkpoints are prefixes",
    "artifacts/record.py": "a converted artifact is a prefix",
    "results/artifacts.py": "the paper's observations are of prefixes",
    "training/device/measure.py": "a device is measured with the smallest prefix",
}

METHODS: list[AnyTrial] = [
    PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    PrefixTrial(preseqlen=7, mid_dim=16, init_token=None),
    PrefixTrial(preseqlen=7, mid_dim=16, init_token=None, sites="decoder"),
    PrefixTrial(preseqlen=7, mid_dim=None, init_token=None, prefix_mode="embedding"),
    PrefixTrial(preseqlen=7, mid_dim=16, init_token=None, prefix_mode="embedding"),
    AdapterTrial(bottleneck=6),
    AdapterTrial(bottleneck=6, design=2),
    AdapterTrial(percent=4.0, design=2),
    FinetuneTrial(),
]


def _names(path: Path) -> Iterator[str]:
    """The names in a file's code, and its texts in quotes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) | ast.Attribute(attr=name):
                yield name
            case ast.Constant(value=str(text)):
                yield repr(text)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_a_method_is_named_in_its_file_its_schema_and_its_entry_alone(method: str) -> None:
    words = {repr(method), trials.METHODS[method].__name__}  # type: ignore[index]
    named = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if words & set(_names(path))}
    assert named - set(ELSEWHERE) == SCHEMA_AND_ENTRY | {f"methods/{name}" for name in FILES[method]}


def test_every_method_has_a_schema_and_an_entry() -> None:
    assert list(CATALOG) == list(trials.METHODS) == list(get_args(MethodName))
    assert set(get_args(get_args(AnyTrial)[0])) == set(trials.METHODS.values())


def _made(method: AnyTrial, base: Base) -> int:
    return build_method(method, base, Binder.of(base.model).record, init_seed=1, dropout_seed=1).trained_parameters()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.method))
def test_trained_parameters_are_those_that_are_made(method: AnyTrial, any_base: Base) -> None:
    assert trained_parameters(method, any_base.shape) == _made(method, any_base)


def test_an_infix_trains_its_embeddings_too(tiny_base: Base) -> None:
    method = PrefixTrial(preseqlen=7, mid_dim=16, init_token=None, format_mode="infix")
    assert trained_parameters(method, tiny_base.shape) == _made(method, tiny_base)


@pytest.mark.parametrize("mid_dim", [None, 16])
def test_virtual_words_are_as_wide_as_the_bases_words(tiny_gpt2: Base, mid_dim: int | None) -> None:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    narrow = OPTConfig(
        word_embed_proj_dim=16, vocab_size=tiny_gpt2.shape.vocab_size, do_layer_norm_before=False, **sizes
    )
    base = wrap_model(OPTForCausalLM(narrow), tiny_gpt2.tokenizer, name="opt", digest="")  # as OPT-350m
    trial = PrefixTrial(preseqlen=5, mid_dim=mid_dim, init_token=None, prefix_mode="embedding")
    method = build_method(trial, base, Binder.of(base.model).record, init_seed=1, dropout_seed=1)
    assert method.insert(0).prefixes["decoder"].shape == (2, 2, 4, 5, 8)
    assert method.stored_parameters() == 5 * 16 and trained_parameters(trial, base.shape) >= method.trained_parameters()


@pytest.mark.parametrize("tune_embeddings", [True, False])
@pytest.mark.parametrize("top_layers", [None, 1, 2])
def test_a_fine_tuning_of_a_part_is_about_as_large_as_said(
    any_base: Base, top_layers: int | None, tune_embeddings: bool
) -> None:
    """Within the share that a tiny base's position table has, which is taken for a third matrix of its feed-forward."""
    method = FinetuneTrial(top_layers=top_layers, tune_embeddings=tune_embeddings)
    assert trained_parameters(method, any_base.shape) == pytest.approx(_made(method, any_base), rel=0.3)


def _gpt2_medium() -> Base:
    """Its shapes alone, no weights."""
    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return wrap_model(model, None, name="gpt2-medium", digest="")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (AdapterTrial(bottleneck=100), 4_991_328),
        (AdapterTrial(bottleneck=6), 368_784),
        (AdapterTrial(percent=0.1), 368_784),
        (AdapterTrial(bottleneck=224), 11_089_152),
        (AdapterTrial(percent=3.125), 11_089_152),
        (AdapterTrial(bottleneck=100, design=2), 9_884_352),
    ],
)
def test_adapters_of_gpt2_medium_are_as_large_as_the_originals(method: AdapterTrial, count: int) -> None:
    assert trained_parameters(method, _gpt2_medium().shape) == count


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (FinetuneTrial(top_layers=2, tune_embeddings=False), 25_194_496),
        (FinetuneTrial(top_layers=2), 25_194_496 + 50_257 * 1024),
        (FinetuneTrial(top_layers=1, tune_embeddings=False), 12_598_272),
        (FinetuneTrial(top_layers=0), 2048 + 50_257 * 1024),
        (FinetuneTrial(), 354_823_168),
    ],
)
def test_the_last_blocks_of_gpt2_medium_are_as_large_as_the_papers(method: FinetuneTrial, count: int) -> None:
    base = _gpt2_medium()
    trained = trained_names(method, base)
    assert sum(p.numel() for name, p in base.model.named_parameters() if name in trained) == count
    assert trained_parameters(method, base.shape) == pytest.approx(count, rel=0.01)


def test_lora_is_no_larger_than_said(any_base: Base) -> None:
    method = LoraTrial(rank=3)
    assert 0 < _made(method, any_base) <= trained_parameters(method, any_base.shape)


def test_the_largest_trial_of_an_arm_has_the_largest_value_of_every_dimension(tiny_llama: Base) -> None:
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"init_token": None},
        dimensions={
            "preseqlen": Choice(choice=(2, 9, 4)),
            "mid_dim": Choice(choice=(None, 512)),
            "learning_rate": LogUniform(log_uniform=(1e-4, 1e-2)),
        },
        num_trials=4,
        train=TrainConfig(num_steps=3),
    )
    largest = PrefixTrial(preseqlen=9, mid_dim=512, init_token=None)
    assert largest_trial(arm, tiny_llama.shape) == BYTES_PER_TRAINED * _made(largest, tiny_llama)


def test_the_largest_trial_of_an_arm_with_conditions_is_one_that_may_be_drawn(tiny_llama: Base) -> None:
    arm = ArmConfig(
        name="adapter",
        method="adapter",
        fixed={"learning_rate": 1e-3},
        dimensions={
            "bottleneck": Choice(choice=(None, 2)),
            "percent": Uniform(uniform=(0.5, 8.0), when={"bottleneck": (None,)}),
        },
        num_trials=4,
        train=TrainConfig(num_steps=3),
    )
    largest = AdapterTrial(percent=8.0)
    assert largest_trial(arm, tiny_llama.shape) == BYTES_PER_TRAINED * _made(largest, tiny_llama)
