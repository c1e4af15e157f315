"""Checkpoints with the original's names and shapes become artifacts with the same keys and values; others are refused.

The files are made here from the names and shapes of its two prefix modules; the oracle folds them position by position.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, DynamicCache

from prefixray.artifacts.store import load_artifact
from prefixray.convert import main
from prefixray.decoding.tuned_model import Tuned
from prefixray.model.base import Base, load_base

LENGTH, MID = 5, 7
BRANCHES = {
    "decoder": ("wte", "control_trans"),
    "cross": ("wte2", "control_trans2"),
    "encoder": ("wte_enc", "control_trans_enc"),
}
Sizes = tuple[int, int, int]  # layers, heads, head dim


@pytest.fixture
def even_bart(base_folders: Mapping[str, Path], tmp_path: Path) -> Base:
    """A BART like the original's: as many layers and heads in the encoder as in the decoder."""
    given = load_base(str(base_folders["bart"]))
    torch.manual_seed(1)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 256}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    ids = {
        key: getattr(given.model.config, key)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "vocab_size")
    }
    BartForConditionalGeneration(BartConfig(**sizes, **heads, **ids, init_std=0.3)).save_pretrained(tmp_path / "even")
    given.tokenizer.save_pretrained(tmp_path / "even")
    return load_base(str(tmp_path / "even"))


def _state(sizes: Sizes, sites: tuple[str, ...] = ("decoder",), *, deep: bool = False) -> dict[str, Tensor]:
    """A prefix module's state dict."""
    layers, heads, dim = sizes
    draw, width = torch.Generator().manual_seed(3), heads * dim
    outs = [MID, MID, layers * 2 * width] if deep else [MID, layers * 2 * width]
    state = {}
    for site in sites:
        embedding, network = BRANCHES[site]
        state[f"{embedding}.weight"] = torch.randn(LENGTH, width, generator=draw)
        inner = width
        for index, out in enumerate(outs):
            state[f"{network}.{2 * index}.weight"] = torch.randn(out, inner, generator=draw) / inner**0.5
            state[f"{network}.{2 * index}.bias"] = torch.randn(out, generator=draw)
            inner = out
    return state


def _by_hand(state: Mapping[str, Tensor], site: str, sizes: Sizes, *, deep: bool = False) -> tuple[Tensor, Tensor]:
    """Keys and values (layers, heads, positions, dim), one number after the other."""
    layers, heads, dim = sizes
    embedding, network = BRANCHES[site]
    both = torch.empty(2, layers, heads, LENGTH, dim)
    for position in range(LENGTH):
        row = state[f"{embedding}.weight"][position]
        for index in range(3 if deep else 2):
            row = (
                state[f"{network}.{2 * index}.weight"] @ (row if index == 0 else torch.tanh(row))
                + state[f"{network}.{2 * index}.bias"]
            )
        numbers = iter(row.tolist())
        for layer in range(layers):
            for kind in range(2):
                for head in range(heads):
                    for place in range(dim):
                        both[kind, layer, head, position, place] = next(numbers)
    return both[0], both[1]


def _convert(file: Path, base: Base, out: Path, *more: str) -> int:
    return main([str(file), "--base", base.name, "--out", str(out), *more])


@pytest.mark.parametrize("deep", [False, True], ids=["network", "deep"])
def test_a_checkpoint_of_gpt2_keeps_its_keys_and_values_and_decodes_as_transformers_would(
    tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], deep: bool
) -> None:
    sizes = (2, 4, 8)
    state = _state(sizes, deep=deep)
    (tmp_path / "checkpoint").mkdir()
    torch.save({"input_tokens": torch.arange(LENGTH), **state}, tmp_path / "checkpoint" / "pytorch_model.bin")
    assert _convert(tmp_path / "checkpoint", tiny_gpt2, tmp_path / "out") == 0
    assert "5 positions at decoder, 640 numbers, positions offset" in capsys.readouterr().out
    tensors, record = load_artifact(tmp_path / "out")
    key, value = _by_hand(state, "decoder", sizes, deep=deep)
    torch.testing.assert_close(tensors["decoder.key"], key)
    torch.testing.assert_close(tensors["decoder.value"], value)
    rules = {"length_with_prompt": True, "ban_line_breaks": True}
    assert record["decoding"] == {"num_beams": 5, "max_new_tokens": 100, **rules} and record["task"]["tokenised"]
    assert record["task"]["name"] == "e2e" and record["config"]["method"]["mid_dim"] == MID
    tuned = Tuned.load(tmp_path / "out", decoding={"num_beams": 1, "max_new_tokens": 8})
    expected = _greedy(tiny_gpt2, tuned.template.encode_source("name : The Mill"), key, value, tuned.template.eos_id)
    assert tuned.generate(["name : The Mill"]) == [expected]


def _greedy(base: Base, prompt: list[int], key: Tensor, value: Tensor, eos: int) -> str:
    """Stock transformers with the prefix as a past; positions go on behind it."""
    past = DynamicCache()
    for layer in range(len(key)):
        past.update(key[layer][None], value[layer][None], layer)
    ids, new = torch.tensor([prompt]), []
    for _ in range(8):
        with torch.no_grad():
            output = base.model(input_ids=ids, past_key_values=past, use_cache=True)
        new.append(int(output.logits[0, -1].argmax()))
        if new[-1] == eos:
            break
        ids, past = torch.tensor([new[-1:]]), output.past_key_values
    text = str(base.tokenizer.decode(new, skip_special_tokens=True)).strip()
    return text.splitlines()[0].strip() if text else ""


@pytest.mark.parametrize("is_from_words", [True, False], ids=["words", "in a row"])
def test_a_flat_checkpoint_keeps_its_keys_and_values(tiny_gpt2: Base, tmp_path: Path, is_from_words: bool) -> None:
    past = torch.randn(4, 1, 4, LENGTH, 8)  # (2 layers, 1, heads, positions, dim)
    flat = past if is_from_words else past[:, 0].permute(2, 0, 1, 3).reshape(-1)
    torch.save({"control_trans": flat}, tmp_path / "pytorch_model.bin")
    assert _convert(tmp_path / "pytorch_model.bin", tiny_gpt2, tmp_path / "out") == 0
    tensors, record = load_artifact(tmp_path / "out")
    assert torch.equal(tensors["decoder.key"], past[0::2, 0]) and torch.equal(tensors["decoder.value"], past[1::2, 0])
    assert record["config"]["method"]["mid_dim"] is None


@pytest.mark.parametrize("is_lightning", [False, True], ids=["saved", "lightning"])
def test_a_checkpoint_of_bart_has_a_prefix_at_three_sites(even_bart: Base, tmp_path: Path, is_lightning: bool) -> None:
    sizes = (2, 4, 8)
    state = _state(sizes, tuple(BRANCHES))
    file = tmp_path / ("epoch=1.ckpt" if is_lightning else "pytorch_model.bin")
    base = {f"seq2seq_model.{name}": tensor for name, tensor in even_bart.model.state_dict().items()}
    whole = {"epoch": 1, "state_dict": {**{f"model.{name}": tensor for name, tensor in state.items()}, **base}}
    torch.save(whole if is_lightning else state, file)
    assert _convert(file, even_bart, tmp_path / "out") == 0
    tensors, record = load_artifact(tmp_path / "out")
    for site in BRANCHES:
        key, value = _by_hand(state, site, sizes)
        torch.testing.assert_close(tensors[f"{site}.key"], key)
        torch.testing.assert_close(tensors[f"{site}.value"], value)
    assert record["positions"] == "unshifted" and record["task"]["name"] == "xsum"
    given = len(record["template"]["target_before"])
    lengths = {"min_new_tokens": 11 - given, "max_new_tokens": 62 - given}
    assert record["decoding"] == {"num_beams": 6, **lengths, "no_repeat_ngram_size": 3, "early_stopping": True}
    assert len(Tuned.load(tmp_path / "out", decoding={"max_new_tokens": 12}).generate(["The Mill is a pub."])) == 1


def test_an_infix_keeps_its_words_and_what_is_added_to_them(tiny_gpt2: Base, tmp_path: Path) -> None:
    sizes, words = (2, 4, 8), torch.randn(LENGTH, 32)
    state = _state(sizes)
    torch.save({**state, "wte2.weight": words}, tmp_path / "pytorch_model.bin")
    assert _convert(tmp_path, tiny_gpt2, tmp_path / "out") == 0
    tensors, record = load_artifact(tmp_path / "out")
    key, value = _by_hand(state, "decoder", sizes)
    torch.testing.assert_close(tensors["decoder.key"], key)
    torch.testing.assert_close(tensors["decoder.value"], value)
    assert torch.equal(tensors["infix.embedding"], words) and record["config"]["method"]["format_mode"] == "infix"
    assert len(Tuned.load(tmp_path / "out", decoding={"max_new_tokens": 4}).generate(["name : The Mill"])) == 1


@pytest.mark.parametrize("has_network", [True, False], ids=["MLP", "Emb"])
def test_embeddings_become_the_keys_and_values_that_the_base_finds_over_them(
    tiny_gpt2: Base, tmp_path: Path, has_network: bool
) -> None:
    torch.manual_seed(0)
    words, rows = torch.randn(LENGTH, 32), torch.empty(LENGTH, 32)
    state = {"wte.weight": words}
    if has_network:
        inner, outer = torch.randn(MID, 32), torch.randn(32, MID)
        state |= {"control_trans.0.weight": inner, "control_trans.0.bias": torch.ones(MID)}
        state |= {"control_trans.2.weight": outer, "control_trans.2.bias": torch.ones(32)}
        rows = torch.tanh(words @ inner.T + 1) @ outer.T + 1
    else:
        rows = words
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert _convert(tmp_path, tiny_gpt2, tmp_path / "out") == 0
    tensors, record = load_artifact(tmp_path / "out")
    with torch.no_grad():
        past = tiny_gpt2.model(inputs_embeds=rows[None], use_cache=True).past_key_values
    for layer in range(2):
        for name, expected in (("key", past.layers[layer].keys), ("value", past.layers[layer].values)):
            torch.testing.assert_close(tensors[f"decoder.{name}"][layer], expected[0], atol=1e-4, rtol=1e-4)
    assert record["config"]["method"]["prefix_mode"] == "embedding"
    assert len(Tuned.load(tmp_path / "out", decoding={"max_new_tokens": 4}).generate(["name : The Mill"])) == 1


def _refusal(state: object, base: Base, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    torch.save(state, folder / "pytorch_model.bin")
    assert _convert(folder, base, folder / "out") == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err


def test_what_is_no_checkpoint_of_the_original_is_refused(
    tiny_gpt2: Base, even_bart: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _state((2, 4, 8))
    assert _convert(tmp_path / "nothing", tiny_gpt2, tmp_path / "out") == 2
    assert "no such file; give the original's checkpoint folder" in capsys.readouterr().err
    cases = {
        "has a prefix at decoder, ": _state((2, 4, 8), ("decoder", "cross")),
        "has no control_trans": {"lm_head.weight": torch.zeros(2)},
        "gives 192 numbers a position; keys and values of all layers of the base are 128": _state((3, 4, 8)),
        "do not fit one another": {**whole, "wte.weight": torch.zeros(LENGTH, 31)},
        "a network's are 0.bias, 0.weight, 2.bias, 2.weight, embedding": {
            k: t for k, t in whole.items() if k != "wte.weight"
        },
        "is no state dict": [1, 2],
        "which could run code, and is not loaded": {
            "state_dict": whole,
            "hyper_parameters": argparse.Namespace(bsz=10),
        },
        "a flat prefix of this base is": {"control_trans": torch.zeros(3, 3)},
    }
    for reason, state in cases.items():
        assert reason in _refusal(state, tiny_gpt2, tmp_path, capsys)
    assert "has a prefix at decoder; " in _refusal(whole, even_bart, tmp_path, capsys)
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 5):
        (tmp_path / "pytorch_model.bin").write_bytes(content[:cut])
        assert _convert(tmp_path, tiny_gpt2, tmp_path / "out") == 2
        assert "is no whole checkpoint" in capsys.readouterr().err


def test_nothing_is_overwritten(tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.json").write_text(json.dumps({}))
    assert _convert(tmp_path, tiny_gpt2, tmp_path / "out") == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
