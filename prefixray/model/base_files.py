"""The files of a base: where its weights lie, and its configuration and tokenizer without them.

GGUF weights are dequantised once and kept as safetensors in the user's cache, so that later loads take under a second.
"""

import fcntl
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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

from prefixray.errors import UserError
from prefixray.system.atomic_files import clear_scratch, whole_folder
from prefixray.system.hub import fetch_tokenizer, hub_answers
from prefixray.system.machine import uncollected
from prefixray.system.path_or_hub import converted_folder, digest_of_base, find_base
from prefixray.system.stand_ins import standing_in

logger = logging.getLogger(__name__)


def find_weights(name: str) -> tuple[str, str | None]:
    """The folder or hub id that transformers can load, and a digest of local weights."""
    base = find_base(name)
    if isinstance(base, str):
        return base, None
    if base.is_dir():
        return str(base), digest_of_base(base)
    return _convert_gguf(base)


def load_small_files(name: str, *, trust_remote_code: bool) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a base: from this machine, else from the hub if it answers.

    Nothing is converted; of a GGUF file that is not converted yet, its own header is read.
    """
    base, options = find_base(name), dict[str, Any](trust_remote_code=trust_remote_code)
    if isinstance(base, str) or base.is_dir():
        where = str(base)
    elif (converted := converted_folder(base)[0]).is_dir():
        where = str(converted)
    else:
        where, options["gguf_file"] = str(base.parent), base.name
    if isinstance(base, str):
        fetch_tokenizer(base)
    for is_local in (True, False):
        try:
            config = AutoConfig.from_pretrained(where, local_files_only=is_local, **options)
            return config, AutoTokenizer.from_pretrained(where, local_files_only=is_local, **options)
        except OSError:
            if not is_local or Path(where).is_dir() or not hub_answers():
                raise
    raise AssertionError("the second try returns or raises")


def load_whole(kind: Any, where: str, name: str, **options: Any) -> PreTrainedModel:  # noqa: ANN401  # an auto class
    """The model of these files, by one of transformers' auto classes; `name` is the base's in a message.

    Raises `UserError` where the files lack a part of it: transformers would draw that at random, in each process anew.
    """
    model, loaded = kind.from_pretrained(where, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    missing = {key for key in loaded["missing_keys"] if not _is_computed(model, key)}
    missing |= {key for key, *_ in loaded["mismatched_keys"]}
    drawn = [key for key, _ in model.named_parameters() if key in missing]
    if drawn:
        others = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        raise UserError(
            f"base: {name}: its files lack weights of {type(model).__name__}, or have them in other sizes: "
            f"{drawn[0]}{others}; take files that have them all, as save_pretrained of that class writes them"
        )
    whole: PreTrainedModel = model
    return whole


def _is_computed(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight is no learned one: Pegasus' files lack its positions, which are sines."""
    return "Sinusoidal" in type(model.get_submodule(key.rpartition(".")[0])).__name__


def _convert_gguf(path: Path) -> tuple[str, str]:
    """Dequantise a GGUF file to a safetensors folder in the cache, once; other processes wait for the one that does."""
    folder, digest = converted_folder(path)
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


@uncollected()  # the library makes several objects of each word of the vocabulary
def _save_converted(path: Path, folder: Path) -> None:
    where, file = str(path.parent), path.name
    with _read_once():
        options = {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
        model = load_whole(AutoModelForCausalLM, where, str(path), **options)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Let gguf read a file's header once in the block, and name the tensors of a model once.

    transformers asks for the first three times, and for the second for each of the model's modules.
    """
    import gguf  # here, since most processes convert nothing

    class HeaderReader(gguf.GGUFReader):
        """Reads from a plain array over the file's memory: each slice of a numpy.memmap is a costly object."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    names = functools.cache(gguf.get_tensor_name_map)
    with standing_in(gguf, GGUFReader=functools.cache(HeaderReader), get_tensor_name_map=names):
        yield
