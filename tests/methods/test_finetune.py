"""What fine-tuning trains of its copy of the base."""

from dataclasses import replace

import pytest
from support.built_methods import ids_of, inputs_of
from transformers import PegasusConfig, PegasusForConditionalGeneration

from prefixray.config.trials import FinetuneTrial
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base, wrap_model
from prefixray.model.binding.binder import Binder


def test_nothing_below_the_last_blocks_is_differentiated(tiny_base: Base) -> None:
    trial = FinetuneTrial(top_layers=1, tune_embeddings=False)
    method = build_method(trial, tiny_base, Binder.of(tiny_base.model).record, init_seed=1, dropout_seed=1)
    model = method.own_model
    assert model is not None
    Binder.of(model)
    outputs: list[bool] = []
    for _, block in replace(tiny_base, model=model).blocks():
        block.register_forward_hook(
            lambda module, args, output: outputs.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    model(**inputs_of(tiny_base, ids_of(tiny_base, " The Mill")), use_cache=False)
    assert outputs == [False, True]


def test_layers_that_a_base_does_not_have_are_refused(any_base: Base, binder: Binder) -> None:
    with pytest.raises(UserError, match=r"top_layers: 9: .* has [25] blocks"):
        build_method(FinetuneTrial(top_layers=9), any_base, binder.record, init_seed=1, dropout_seed=1)


def test_fine_tuning_leaves_computed_position_tables_alone() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40, "pad_token_id": 0}
    config = PegasusConfig(max_position_embeddings=32, **sizes, **heads)
    model = PegasusForConditionalGeneration(config)
    natural = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = wrap_model(model, None, name="pegasus", digest="")  # type: ignore[arg-type]
    method = build_method(FinetuneTrial(), base, Binder.of(model).record, init_seed=1, dropout_seed=1)
    trained = {name.removeprefix("model.") for name, p in method.named_parameters() if p.requires_grad}
    assert trained == natural
    assert not any("embed_positions" in name for name in trained)


def test_the_copy_keeps_the_settings_that_the_base_generates_with(tiny_bart: Base) -> None:
    tiny_bart.model.generation_config.no_repeat_ngram_size = 3
    method = build_method(FinetuneTrial(), tiny_bart, Binder.of(tiny_bart.model).record, init_seed=1, dropout_seed=1)
    assert method.own_model is not None
    kept = method.own_model.generation_config
    assert kept.to_dict() == tiny_bart.model.generation_config.to_dict()
    assert kept is not tiny_bart.model.generation_config
