"""Bases on this CPU run as on a GPU: the GPU's backend, with flash attention as `flash_on_cpu` has it."""

import pytest

from prefixray.model import backend
from prefixray.model.fast_cuda import unpadded
from prefixray.model.fast_cuda.backend import CUDABackend
from support.flash_on_cpu import install


def run_as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test's end; here flash attention also knows float64."""
    install()
    monkeypatch.setitem(backend._FAST, "cpu", CUDABackend())
    monkeypatch.setattr(unpadded, "knows", lambda dtype, head_dim: True)
