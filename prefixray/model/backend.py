"""The seam between the model and what makes it fast on one kind of device.

Training, evaluation, decoding and attention ask `backend_for` a device; no module outside of a backend's folder names
the tricks of that device. `PREFIXRAY_PLAIN=1` in the environment leaves the plain backend alone, for comparisons.
"""

import os

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.model.fast_cuda.backend import CUDABackend
from prefixray.model.plain import PlainBackend

TOKEN_MULTIPLE = 64  # to which numbers of tokens are rounded up

_PLAIN = PlainBackend()
_FAST: dict[str, PlainBackend] = {"cpu": CPUBackend(), "cuda": CUDABackend()}  # by the type of a device


def is_plain() -> bool:
    """Whether the environment switches all faster backends off."""
    return os.environ.get("PREFIXRAY_PLAIN", "") not in ("", "0")


def backend_for(device: torch.device) -> PlainBackend:
    """The fastest backend of a device."""
    return _PLAIN if is_plain() else _FAST.get(device.type, _PLAIN)


def padded_count(count: int, multiple: int = TOKEN_MULTIPLE) -> int:
    """A number of tokens rounded up, so that few shapes occur; the plain backend gets the number itself.

    Products are prepared for a shape when that shape first comes (see `fast_cpu/onednn.py`).
    """
    return count if is_plain() else -(-count // multiple) * multiple


def pad_rows(tokens: Tensor, multiple: int = TOKEN_MULTIPLE) -> Tensor:
    """(n, W) -> (N, W), where N is n rounded up and the rows behind the n-th are zero."""
    missing = padded_count(len(tokens), multiple) - len(tokens)
    return functional.pad(tokens, (0, 0, 0, missing)) if missing else tokens
