"""Bases of two halves: their template, the length of a source, and which are refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.tiny_bases import MakeBase
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.t5 import modeling_t5

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.training.pack import Pack


def test_a_tokenizer_that_does_not_know_its_target_language_is_refused(tiny_bart: Base) -> None:
    # as M2M100's, whose files are not here
    class Tokenizer(PreTrainedTokenizerFast):
        def _switch_to_target_mode(self) -> None:
            raise KeyError(None)

    base = replace(tiny_bart, tokenizer=Tokenizer.from_pretrained(tiny_bart.name))
    with pytest.raises(
        UserError, match=r"has no target language \(None\); save the tokenizer with src_lang and tgt_lang"
    ):
        make_template(base, TaskConfig(name="custom"))


def test_the_template_is_what_the_tokenizer_puts_around_texts(tiny_bart: Base, make_base: MakeBase) -> None:
    tokens = tiny_bart.tokenizer
    template = make_template(tiny_bart, TaskConfig(name="custom", max_source_tokens=4))
    (row,) = encode([Example("The Eagle serves", "Chinese food")], template)
    assert row.encoder_ids == (0, *tokens("The Eagle serves", add_special_tokens=False).input_ids[:4], 2)
    assert list(row.ids) == [2, *tokens("Chinese food").input_ids]
    assert row.num_prompt == 2  # what decoding is given, </s> and <s>, is not predicted
    t5 = make_base("t5", torch.float32)
    (row,) = encode([Example("cheap", "Go")], make_template(t5, TaskConfig(name="custom", instruction="summarize:")))
    assert list(row.encoder_ids) == t5.tokenizer("summarize: cheap").input_ids
    assert list(row.ids) == [0, *t5.tokenizer("Go").input_ids] and row.num_prompt == 1
    with pytest.raises(UserError, match=r"task\.template: 'chat': is for decoder-only bases"):
        make_template(tiny_bart, TaskConfig(name="custom", template="chat"))


def test_a_source_longer_than_the_positions_is_cut(tiny_bart: Base, caplog: pytest.LogCaptureFixture) -> None:
    template = make_template(tiny_bart, TaskConfig(name="custom", max_source_tokens=1024))
    with caplog.at_level("INFO"):
        row, _ = encode([Example("food " * 400, "a"), Example("b", "c")], template)
    assert len(row.encoder_ids) == 256
    assert "1 of 2 sources fill the 254 source tokens" in caplog.text


def test_the_start_token_may_stand_in_the_generation_config_alone(make_base: MakeBase) -> None:
    t5 = make_base("t5", torch.float32)
    t5.model.config.decoder_start_token_id, t5.model.generation_config.decoder_start_token_id = None, 7
    assert make_template(t5, TaskConfig(name="custom")).target_before == (7,)


def test_a_base_whose_attention_prefixes_do_not_reach_is_refused(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As T5 is before it calls the common interface."""
    base = make_base("t5", torch.float32)
    stock = vars(modeling_t5)["eager_attention_forward"]
    monkeypatch.setattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS", SimpleNamespace(get_interface=lambda *given: stock))
    message = (
        r"^base: .*t5: prefixes do not reach .* T5ForConditionalGeneration in transformers .*encoder, decoder, cross"
    )
    with pytest.raises(UserError, match=message):
        Pack(base, [], pad_id=0)
    Pack(make_base("bart", torch.float32), [], pad_id=0)


def test_a_device_that_fails_while_a_base_is_tried_is_not_taken_for_a_bad_base(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float32)

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    base.blocks()[-1][1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access"):
        Pack(base, [], pad_id=0)
