"""Artifacts become models where they share a base; prompts become tokens where they fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_bases import MakeBase
from support.tuned_artifacts import METHODS, save_tuned

from prefixray.batching.template import make_template
from prefixray.config.identity import dump
from prefixray.config.load import load_sweep
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.serving.models import Limits, load_models

ROOT = Path(__file__).resolve().parents[2]


def test_artifacts_that_share_no_base_are_refused(
    make_base: MakeBase, tiny_gpt2: Base, tiny_bart: Base, tmp_path: Path
) -> None:
    for name, base in (("own", tiny_gpt2), ("other", make_base("llama", torch.float32)), ("pair", tiny_bart)):
        save_tuned(tmp_path / name, base, METHODS["short"])
    save_tuned(tmp_path / "short", make_base("gpt2", torch.bfloat16), METHODS["short"])
    for names, told in (
        (("own", "other"), "other: base: .* with digest .*: is not that of .*own; serve them apart"),
        (("own", "short"), "short: precision: bf16: is not the fp32 of .*own; serve them apart"),
        (("pair",), "pair: base: .*: is an encoder-decoder"),
    ):
        with pytest.raises(UserError, match=told):
            load_models({name: tmp_path / name for name in names}, device="cpu")


def test_artifacts_share_a_base_that_lies_in_several_places(tiny_gpt2: Base, tmp_path: Path) -> None:
    """One is of a sweep that was fetched from a cluster: its sweep's file says where the base is here."""
    fetched = tmp_path / "sweep" / "trials" / "prefix" / "0" / "artifact"
    save_tuned(tmp_path / "own", tiny_gpt2, METHODS["short"])
    save_tuned(fetched, replace(tiny_gpt2, name="/mnt/of/the/cluster/base"), METHODS["long"])
    config = load_sweep(ROOT / "sweeps" / "quickstart.yaml").model_copy(update={"base": tiny_gpt2.name})
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(dump(config)))
    for folders in ({"fetched": fetched}, {"fetched": fetched, "own": tmp_path / "own"}):
        assert set(load_models(folders, device="cpu").by_name) == {"untuned", *folders}
    (tmp_path / "sweep" / "sweep.json").unlink()
    assert load_models({"fetched": fetched, "own": tmp_path / "own"}, device="cpu").base.name == tiny_gpt2.name


def test_a_prompt_that_leaves_no_room_is_refused(tiny_gpt2: Base, tmp_path: Path) -> None:
    save_tuned(tmp_path / "long", tiny_gpt2, METHODS["long"], decoding={"max_new_tokens": 30})
    model, limits = load_models({"long": tmp_path / "long"}, device="cpu").by_name["long"], Limits()
    assert model.room(tiny_gpt2, [1] * 10, None, limits) == 30
    assert model.room(tiny_gpt2, [1] * 10, 50, limits) == 50
    assert model.room(tiny_gpt2, [1] * 241, None, limits) == 10, "256 positions, 5 of the prefix"
    for num_tokens, asked, told in (
        (10, 242, "15 of the 256 positions of .*, so that 241 are left"),
        (251, None, "256 of the 256 positions of .*, so that 0 are left"),
        (2049, None, "^prompt: 2049 tokens: this server takes 2048; .*--max-prompt-tokens"),
        (10, 1025, "^max_tokens: 1025: this server writes at most 1024; .*--max-new-tokens"),
    ):
        with pytest.raises(UserError, match=told):
            model.room(tiny_gpt2, [1] * num_tokens, asked, limits)


def test_a_conversation_is_read_as_the_tokenizer_writes_it(tiny_llama: Base, tmp_path: Path) -> None:
    save_tuned(tmp_path / "short", tiny_llama, METHODS["short"])
    plain = load_models({"short": tmp_path / "short"}, device="cpu").by_name["short"]
    one = [{"role": "user", "content": "The Mill"}]
    several = [{"role": "system", "content": "Be brief."}, *one]
    assert plain.of_messages(one) == plain.of_source("The Mill")
    with pytest.raises(UserError, match=r"^messages: system, user: this model was trained on single sources"):
        plain.of_messages(several)

    form = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"
    tiny_llama.tokenizer.chat_template = form + "{% endif %}"
    chat = replace(plain, template=make_template(tiny_llama, TaskConfig(name="e2e", template="chat")), is_chat=True)
    assert tiny_llama.tokenizer.decode(chat.of_messages(several)) == "<system>Be brief.<user>The Mill<assistant>"
    assert chat.of_messages(one) == chat.of_source("The Mill")
    tiny_llama.tokenizer.add_tokens(["<tool>"], special_tokens=True)
    with pytest.raises(UserError, match=r"^text .*: '<tool>' is token \d+ of the tokenizer, and the base has"):
        chat.of_messages([*several, {"role": "assistant", "content": "<tool>"}])
    with pytest.raises(UserError, match="has half a surrogate pair, which is no text"):
        chat.of_messages([*several, {"role": "assistant", "content": "\ud83d"}])
    tiny_llama.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match=r"^messages: the chat format of the base refuses: no system here"):
        chat.of_messages(several)


def test_the_chat_format_is_told_by_the_task(tiny_llama: Base, tmp_path: Path) -> None:
    save_tuned(tmp_path / "short", tiny_llama, METHODS["short"])
    record = json.loads((tmp_path / "short" / "prefix_config.json").read_text())
    assert record["task"]["template"] == "plain"
    assert not load_models({"short": tmp_path / "short"}, device="cpu").by_name["short"].is_chat
