"""The base: a pretrained language model, decoder-only or encoder-decoder, loaded once, frozen, and described.

A base is named by a hub id, a folder, a GGUF file, or `package:file` for a file inside an installed Python package.
GGUF weights are dequantised once and kept as safetensors in the user's cache, so that later loads take under a second.
"""

import fcntl
import functools
import hashlib
import importlib.util
import inspect
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.utils.checkpoint
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from prefixray.config.base_path import find_base
from prefixray.errors import UserError, first_line
from prefixray.model.attention_sites import attentions
from prefixray.model.shape import Shape, SiteShape
from prefixray.system.atomic_files import clear_scratch, whole_folder
from prefixray.system.machine import cache_folder, cpu_fact

logger = logging.getLogger(__name__)
disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Base:
    """A frozen model in eval mode, its tokenizer, and what they are."""

    name: str
    digest: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape
    is_checkpointed: bool = False  # see `checkpointed`
    trusts_code: bool = False  # whether Python files beside the weights were let run, and may again

    @property
    def device(self) -> torch.device:
        """Where the base's weights live."""
        return self.model.device

    @property
    def precision(self) -> str:
        """Of the frozen weights: "fp32", "bf16" or "4bit"."""
        if getattr(self.model, "is_loaded_in_4bit", False):
            return "4bit"
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    @property
    def positions(self) -> str:
        """The original's policies: a row's own positions start behind its prefix ("offset"), or at 0 ("unshifted")."""
        return "unshifted" if self.shape.is_encoder_decoder else "offset"

    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        """The transformer blocks in order, by their names in the model."""
        return [(n, m) for n, m in self.model.named_modules() if isinstance(m, GradientCheckpointingLayer)]


def load_base(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    four_bit: bool = False,
    trust_remote_code: bool = False,
) -> Base:
    """Load, freeze and describe the base called `name`; `four_bit`: its matrices as NF4, on a GPU.

    Python files beside the weights are run only with `trust_remote_code`. Raises `UserError` when the name leads
    nowhere, when the model is no language model, or when the hub cannot be reached.
    """
    _check_device(device)
    quantization = _nf4(device) if four_bit else None
    path, digest = _resolve(name)
    try:
        code = {"trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(path, **code)
        tokenizer = AutoTokenizer.from_pretrained(path, **code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        options = {} if quantization is None else {"quantization_config": quantization, "device_map": device}
        model = kind.from_pretrained(path, dtype=dtype, attn_implementation="sdpa", **code, **options)
    except OSError as error:
        raise UserError(
            f"base: {name}: cannot be loaded: {first_line(error)}; give a local copy as base: a folder with "
            "config.json, the weights as safetensors and the tokenizer's files"
        ) from error
    except ValueError as error:
        raise UserError(_unfit(name, error)) from error
    if quantization is None:
        torch.nn.Module.to(model, device)
    base = wrap_model(model, tokenizer, name=name, digest=digest or str(config._commit_hash or "unknown"))
    return replace(base, trusts_code=trust_remote_code)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device: {device}: must be cpu or cuda: {first_line(error)}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {device}: torch finds no GPU here; take cpu, or see what nvidia-smi says")


def _unfit(name: str, error: ValueError) -> str:
    if "trust_remote_code" in str(error):
        return f"base: {name}: brings Python code of its own; read it, then set trust_remote_code: true beside base"
    return f"base: {name}: is no model that prefixray can train: {first_line(error)}"


def outline_base(name: str, *, trust_remote_code: bool = False) -> Base:
    """The base called `name` without its weights: its sizes, its configuration and tokenizer, on the meta device.

    Nothing is converted, and from the hub come a few small files at most. Raises `UserError` as `load_base` does.
    """
    found = find_base(name)
    options: dict[str, str | bool] = {"trust_remote_code": trust_remote_code}
    if isinstance(found, str) or found.is_dir():
        where = str(found)
    elif (converted := _converted(found, _digest(found))).is_dir():
        where = str(converted)
    else:
        where = str(found.parent)
        options["gguf_file"] = found.name
    try:
        config, tokenizer = _small_files(where, options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            code = {"trust_remote_code": trust_remote_code}
            model = kind.from_config(config, attn_implementation="sdpa", **code)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise UserError(f"base: {name}: cannot be reached: {first_line(error)}") from error
    except ValueError as error:
        raise UserError(_unfit(name, error)) from error
    return wrap_model(model, tokenizer, name=name, digest="unknown")


def _small_files(where: str, options: Mapping[str, str | bool]) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer: from this machine, else from the hub if it answers."""
    for is_local in (True, False):
        try:
            config = AutoConfig.from_pretrained(where, local_files_only=is_local, **options)
            return config, AutoTokenizer.from_pretrained(where, local_files_only=is_local, **options)
        except OSError:
            if not is_local or Path(where).is_dir() or not _hub_answers():
                raise
    raise AssertionError("the second try returns or raises")


def _hub_answers() -> bool:
    """Whether it is worth trying: transformers itself would try for half a minute."""
    if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 3.0).close()
    except OSError:
        return False
    return True


def load_in(name: str, precision: str, device: str, *, trust_remote_code: bool = False) -> Base:
    """Load a base in a precision of the sweep file: "auto", "fp32", "bf16" or "4bit"."""
    dtype, four_bit = choose_dtype(precision, device), precision == "4bit"
    return load_base(name, dtype=dtype, device=device, four_bit=four_bit, trust_remote_code=trust_remote_code)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, digest: str) -> Base:
    """Freeze a model that is already in memory and describe it.

    Raises `UserError` where its attention or its positions cannot be reached from outside.
    """
    _check_reachable(model, name)
    model.requires_grad_(False)
    model.train(False)
    fuse_gelu(model)
    try:
        shape = describe(model.config, model.num_parameters())
    except (AttributeError, RuntimeError) as error:  # the second is what transformers raises of layers that differ
        raise UserError(
            f"base: {name}: {type(model).__name__} does not say its sizes once for all layers: {first_line(error)}; "
            "take another base"
        ) from error
    return Base(name, digest, model, tokenizer, shape)


def _check_reachable(model: PreTrainedModel, name: str) -> None:
    """Falcon, for one, would train as if there were no prefix."""
    kind = type(model).__name__
    if not model._can_set_attn_implementation():
        raise UserError(
            f"base: {name}: {kind} computes its attention itself, past transformers' attention interface, so that no "
            "prefix could reach it; take another base"
        )
    if model.config.is_encoder_decoder:
        return
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        raise UserError(
            f"base: {name}: {kind} takes no position_ids, so that no row could start behind a prefix; take another base"
        )
    list(attentions(model))  # raises where there is not one in each layer


def fuse_gelu(model: PreTrainedModel) -> None:
    """GPT-2's GELU as one operation: transformers' spells the same function out and keeps what stands between."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


def describe(config: PreTrainedConfig, num_parameters: int) -> Shape:
    """Read the sizes of a model off its configuration."""
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    num_kv_heads = _first(text, "num_key_value_heads") or num_heads
    head_dim = _first(text, "head_dim") or text.hidden_size // num_heads
    first = SiteShape(text.num_hidden_layers, num_kv_heads, head_dim)
    sites = {"decoder": first}
    if config.is_encoder_decoder:
        layers = _first(text, "decoder_layers", "num_decoder_layers") or first.num_layers
        heads = _first(text, "decoder_attention_heads") or num_heads
        second = SiteShape(layers, heads, head_dim if heads == num_heads else text.hidden_size // heads)
        sites = {"encoder": first, "decoder": second, "cross": second}
    return Shape(
        is_encoder_decoder=config.is_encoder_decoder,
        sites=sites,
        hidden_size=text.hidden_size,
        ffn_size=_first(text, "intermediate_size", "encoder_ffn_dim", "d_ff", "n_inner") or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        num_parameters=num_parameters,
        max_positions=_max_positions(text),
    )


def _max_positions(config: PreTrainedConfig) -> int | None:
    """Positions of a row; where a layer's attention reaches back over a window or chunk alone, as many as that has.

    A prefix is seen from everywhere, and so is a prompt that rows share: beyond the window they would see more than
    the base was trained to.
    """
    limits = [getattr(config, "max_position_embeddings", None), getattr(config, "attention_chunk_size", None)]
    kinds = getattr(config, "layer_types", None)
    if kinds is None or "sliding_attention" in kinds:
        limits.append(getattr(config, "sliding_window", None))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond these, one long row changes the positions of all rows beside it
        own = getattr(config, "original_max_position_embeddings", None)
        limits.append(rope.get("original_max_position_embeddings", own))
    return min((limit for limit in limits if limit is not None), default=None)


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    """The first of these that a configuration has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def checkpointed(base: Base) -> Base:
    """The base with gradient checkpointing, which copies of it for fine-tuning shall have too."""
    checkpoint_blocks(base.model)
    return replace(base, is_checkpointed=True)


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Let each block keep only its input for the backward, and run again there.

    transformers' own switch works in training mode alone, where the base's dropout would be on.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = _checkpointed(module.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **inputs: Any) -> Any:  # noqa: ANN401
        if not torch.is_grad_enabled():
            return forward(*args, **inputs)
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **inputs)

    return run


def _nf4(device: str) -> BitsAndBytesConfig:
    if not device.startswith("cuda"):
        raise UserError("train.precision: 4bit: needs a GPU, and this is a CPU; take bf16, fp32 or auto")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.precision: 4bit: bitsandbytes is not installed (pip install 'prefixray[4bit]')")
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """The dtype of the frozen base: bf16 under "auto" where the hardware multiplies bf16 matrices faster than fp32."""
    if precision == "fp32":
        return torch.float32
    if precision in ("bf16", "4bit") or _has_fast_bf16(device):
        return torch.bfloat16
    return torch.float32


def _has_fast_bf16(device: str) -> bool:
    """AMX, or AVX-512 BF16 on AMD; Intel's AVX-512 BF16 without AMX is slower than fp32 (89 against 148 GFLOP/s)."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and cpu_fact("vendor_id") == "AuthenticAMD"


def _resolve(name: str) -> tuple[str, str | None]:
    """The folder or hub id that transformers can load, and a digest of local weights."""
    found = find_base(name)
    if isinstance(found, str):
        return found, None
    if found.is_dir():
        return str(found), _digest(*sorted(found.glob("*.safetensors")), found / "config.json")
    return _convert_gguf(found)


def _converted(path: Path, digest: str) -> Path:
    """The folder in the cache that a GGUF file is converted to."""
    return cache_folder() / f"{path.stem}-{digest}"


def _convert_gguf(path: Path) -> tuple[str, str]:
    """Dequantise a GGUF file to a safetensors folder in the cache, once; other processes wait for the one that does."""
    digest = _digest(path)
    folder = _converted(path, digest)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{folder.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                clear_scratch(folder.parent, folder.name)
                with whole_folder(folder) as scratch:
                    logger.info("converting %s to safetensors, once (%s)", path.name, folder)
                    _save_converted(path, scratch)
    return str(folder), digest


def _save_converted(path: Path, folder: Path) -> None:
    where, file = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(folder)


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:16]
