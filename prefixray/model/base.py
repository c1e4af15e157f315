"""The base: a pretrained language model, decoder-only or encoder-decoder, loaded once, frozen, and described.

A base is named by a hub id, a folder, a GGUF file, or `package:file` for a file inside an installed Python package.
"""

import functools
import inspect
import struct
import weakref
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import Any

import torch
import torch.utils.checkpoint
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from prefixray.errors import UserError, first_line
from prefixray.model.attention_sites import attentions
from prefixray.model.base_files import find_weights, load_small_files, load_whole
from prefixray.model.describe import describe
from prefixray.model.shape import Shape
from prefixray.system.hub import NoAnswer, fetch_tokenizer, hub_problem, newest_commit
from prefixray.system.machine import check_four_bit, cpu_fact

disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Base:
    """A frozen model in eval mode, its tokenizer, and its description."""

    name: str
    digest: str  # of local weights, or the hub's commit; "unknown" without weights
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape
    is_checkpointed: bool = False  # see `checkpointed`
    trusts_code: bool = False  # whether Python files beside the weights were run, and may run again

    @property
    def device(self) -> torch.device:
        """Where the base's weights live."""
        return self.model.device

    @property
    def precision(self) -> str:
        """The precision of the frozen weights: "fp32", "bf16" or "4bit"."""
        if getattr(self.model, "is_loaded_in_4bit", False):
            return "4bit"
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    @property
    def positions(self) -> str:
        """Where a row's own positions start, as in the original: behind its prefix ("offset") or at 0 ("unshifted")."""
        return "unshifted" if self.shape.is_encoder_decoder else "offset"

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a text alone, without blanks around it."""
        ids: list[int] = self.tokenizer(text.strip(), add_special_tokens=False, verbose=False).input_ids
        return ids

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
    commit: str | None = None,
) -> Base:
    """Load, freeze and describe the base called `name`; with `four_bit`, its matrices as NF4 on a GPU.

    `commit` is the hub's, by default the newest; for a base on this machine it is ignored. Python files beside the
    weights run only with `trust_remote_code`. Raises `UserError` where the name names nothing, where the model is no
    language model, and where the hub cannot be reached.
    """
    device = choose_device(device)
    quantization = _nf4(device) if four_bit else None
    try:
        path, digest = find_weights(name)
    except (ValueError, struct.error) as error:  # of a GGUF file, the second where it is cut
        raise UserError(_unfit(name, error)) from error
    try:
        code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if digest is None:  # all files are of one commit
            code["revision"] = digest = commit or newest_commit(path)
            fetch_tokenizer(path, digest)
        config = AutoConfig.from_pretrained(path, **code)
        tokenizer = AutoTokenizer.from_pretrained(path, **code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        options = {} if quantization is None else {"quantization_config": quantization, "device_map": device}
        model = load_whole(kind, path, name, dtype=dtype, attn_implementation="sdpa", **code, **options)
    except (NoAnswer, OSError) as error:
        raise UserError(
            f"base: {name}: cannot be loaded: {hub_problem(error)}; give a local copy as base: a folder with "
            "config.json, the weights as safetensors and the tokenizer's files"
        ) from error
    except (ValueError, ImportError) as error:
        raise UserError(_unfit(name, error)) from error
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("PytorchStreamReader"):
            raise
        remedy = "they may be cut, or pointers of Git LFS: fetch them anew (git lfs pull)"
        raise UserError(f"base: {name}: its weights cannot be read ({type(error).__name__}); {remedy}") from error
    if quantization is None:
        torch.nn.Module.to(model, device)
    base = wrap_model(model, tokenizer, name=name, digest=digest)
    return replace(base, trusts_code=trust_remote_code)


def choose_device(device: str) -> str:
    """The device itself; for "auto" it is "cuda" where torch finds a GPU, else "cpu".

    Raises `UserError` where the device is none, and where it is a GPU and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device: {device}: must be auto, cpu or cuda: {first_line(error)}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "it is a build for CPUs" if built is None else f"is the driver new enough for CUDA {built} (nvidia-smi)?"
        remedy = "take cpu, in a sweep by CUDA_VISIBLE_DEVICES= (empty)"
        raise UserError(f"device: {device}: torch finds no GPU here: {why}; else {remedy}")
    return device


def _unfit(name: str, error: Exception) -> str:
    if isinstance(error, ImportError):  # its own code, or its tokenizer, needs a package
        return f"base: {name}: cannot be loaded: {first_line(error)}"
    if "trust_remote_code" in str(error):
        places = "in a sweep file, --trust-remote-code of decode and serve, trust_remote_code=True in Python"
        remedy = f"read it, then allow it: trust_remote_code: true beside base {places}"
        return f"base: {name}: brings Python code of its own; {remedy}"
    return f"base: {name}: is no model that prefixray can train: {first_line(error)}"


def outline_base(name: str, *, trust_remote_code: bool = False) -> Base:
    """The base called `name` without its weights, on the meta device: sizes, configuration and tokenizer.

    Nothing is converted, and at most a few small files come from the hub. Raises `UserError` as `load_base` does.
    """
    try:
        config, tokenizer = load_small_files(name, trust_remote_code=trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            code = {"trust_remote_code": trust_remote_code}
            model = kind.from_config(config, attn_implementation="sdpa", **code)  # type: ignore[no-untyped-call]
    except (NoAnswer, OSError) as error:
        raise UserError(f"base: {name}: cannot be reached: {hub_problem(error)}") from error
    except (ValueError, ImportError) as error:
        raise UserError(_unfit(name, error)) from error
    return wrap_model(model, tokenizer, name=name, digest="unknown")


def load_in(
    name: str, precision: str, device: str, *, trust_remote_code: bool = False, commit: str | None = None
) -> Base:
    """As `load_base`, in a precision of the sweep file: "auto", "fp32", "bf16" or "4bit"."""
    device = choose_device(device)
    dtype, four_bit = choose_dtype(precision, device), precision == "4bit"
    code = trust_remote_code
    return load_base(name, dtype=dtype, device=device, four_bit=four_bit, trust_remote_code=code, commit=commit)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, digest: str) -> Base:
    """Freeze a model that is in memory already, and describe it.

    Raises `UserError` where prefixes cannot reach its attention, or shifts its positions.
    """
    _check_reachable(model, name)
    model.requires_grad_(False)
    model.train(False)
    fuse_gelu(model)
    try:
        shape = describe(model.config, model.num_parameters())
    except (AttributeError, RuntimeError) as error:  # transformers raises the second for layers that differ
        raise UserError(
            f"base: {name}: {type(model).__name__} does not say its sizes once for all layers: {first_line(error)}; "
            "take another base"
        ) from error
    return Base(name, digest, model, tokenizer, shape)


def _check_reachable(model: PreTrainedModel, name: str) -> None:
    """Refuse models such as Falcon, which would train as if there were no prefix."""
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
    list(attentions(model))  # raises where a layer has none, or several


def fuse_gelu(model: PreTrainedModel) -> None:
    """Make GPT-2's GELU one operation; transformers spells it out and keeps every step's result for the backward."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


def checkpointed(base: Base) -> Base:
    """The base with gradient checkpointing; its copies for fine-tuning will have it, too."""
    checkpoint_blocks(base.model)
    return replace(base, is_checkpointed=True)


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Let each block keep only its input for the backward, where it runs again.

    The switch of transformers works in training mode only, in which the base's dropout would be on.
    """
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = functools.partial(_checkpointed, weakref.ref(module))  # a ring would keep its weights


def _checkpointed(block: weakref.ref[nn.Module], /, *args: Any, **inputs: Any) -> Any:  # noqa: ANN401
    """The forward of a block that is checkpointed."""
    module = block()
    assert module is not None, "a block lives while its forward runs"
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **inputs)
    return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **inputs)


def _nf4(device: str) -> BitsAndBytesConfig:
    check_four_bit(has_gpu=device.startswith("cuda"))
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
    """Whether the device has AMX, or AMD's AVX-512 BF16; Intel's is slower than fp32 (89 against 148 GFLOP/s)."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and cpu_fact("vendor_id") == "AuthenticAMD"
