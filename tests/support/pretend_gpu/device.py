"""Loads the pretended GPU together with torch, and lets `torch.cuda` answer for it.

`pretend()` must come before torch is imported, since torch looks for devices once. Processes that are started from here
on pretend, too, and Ray counts one GPU.
"""

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOTAL = 80 << 30  # bytes of the device
LIBRARY = "PREFIXRAY_TESTS_PRETEND_GPU"  # the environment variable that names the compiled library
EVERY_PROCESS = Path(__file__).with_name("in_every_process")

launched: Counter[str] = Counter()  # operators, by name
waited: Counter[str] = Counter()
"""What makes the host wait until the device has done everything; "upload": what goes to it."""
moved: Counter[str] = Counter()  # bytes that operators read and write, and that go to the device and back, by name
_kept: list[Any] = []  # the library, and what it calls while it counts


def pretend() -> None:
    """Have the device loaded together with torch, here and in all processes that are started from here."""
    assert "torch" not in sys.modules, "torch looks for devices once, when it is imported"
    if LIBRARY not in os.environ:
        from support.pretend_gpu.build import library

        os.environ[LIBRARY] = str(library())
        paths = [str(EVERY_PROCESS), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["RAY_OVERRIDE_RESOURCES"] = '{"GPU": 1}'
    sys.meta_path.insert(0, _WithTorch())


class _WithTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the library before torch, and changes `torch.cuda` after it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None and spec.loader is not None
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        library = ctypes.CDLL(os.environ[LIBRARY], mode=ctypes.RTLD_GLOBAL)
        library.gpu_used.restype = library.gpu_peak.restype = ctypes.c_int64
        library.gpu_launched.restype = ctypes.c_int64
        library.gpu_limit.argtypes = library.gpu_wait.argtypes = [ctypes.c_int64]
        self._loader.exec_module(module)
        _answer(module, library)


def is_there() -> bool:
    """Whether the GPU is a pretended one."""
    return bool(_kept)


@contextmanager
def counting() -> Iterator[None]:
    """Count from zero in here; counting takes time."""
    for counter in (launched, waited, moved):
        counter.clear()
    library, tell = _kept
    library.gpu_tell(tell)
    try:
        yield
    finally:
        library.gpu_tell(None)


def _answer(torch: Any, library: Any) -> None:  # noqa: ANN401
    """Let `torch.cuda` answer for the device."""

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64)
    def tell(name: bytes, waits: int, num_bytes: int) -> None:
        (waited if waits else launched)[name.decode()] += 1
        moved[name.decode()] += num_bytes

    _kept.extend((library, tell))
    library.gpu_limit(TOTAL)
    sizes = {"total_memory": TOTAL, "major": 9, "minor": 0, "multi_processor_count": 132}
    share = [1.0]  # of the memory, that this process may take

    def allow(new_share: float, *_: object) -> None:
        share[0] = new_share
        library.gpu_limit(int(new_share * TOTAL))

    properties = types.SimpleNamespace(name="pretended GPU", **sizes)
    answers: dict[str, Callable[..., object]] = {
        "mem_get_info": lambda *_: (TOTAL - library.gpu_used(), TOTAL),
        "memory_allocated": lambda *_: library.gpu_used(),
        "memory_reserved": lambda *_: library.gpu_used(),
        "max_memory_allocated": lambda *_: library.gpu_peak(),
        "max_memory_reserved": lambda *_: library.gpu_peak(),
        "reset_peak_memory_stats": lambda *_: library.gpu_reset_peak(),
        "set_per_process_memory_fraction": allow,
        "get_per_process_memory_fraction": lambda *_: share[0],
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    values = {"is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1}
    values |= {"current_device": 0, "current_stream": None, "get_device_capability": (9, 0)}
    values |= {"get_device_name": properties.name, "get_device_properties": properties}
    values |= dict.fromkeys(("_lazy_init", "synchronize", "empty_cache", "manual_seed_all"))
    answers |= {name: _answering(value) for name, value in values.items()}
    answers["Event"] = lambda: _Event(library)
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.backends.cuda.is_flash_attention_available = _answering(True)
    flash_on_cpu = importlib.import_module("support.flash_on_cpu")  # imports torch
    flash_on_cpu.install()
    _copy_by_clone(torch)


class _Event:
    """What was launched before it is done when it has come. To wait for the last of all launches counts as a wait."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401
        self._library = library

    def record(self, stream: None = None) -> None:
        self._launched = self._library.gpu_launched()

    def synchronize(self) -> None:
        self._library.gpu_wait(self._launched)


def _answering(value: object) -> Callable[..., object]:
    """A new function each time: torch's tables do not take one object under two names."""
    return lambda *_, **__: value


def _copy_by_clone(torch: Any) -> None:  # noqa: ANN401
    """Let `copy.deepcopy` copy tensors of the device, whose storage Python cannot copy."""
    own = torch.Tensor.__deepcopy__

    def deepcopy(self: Any, memo: dict[int, object]) -> object:  # noqa: ANN401
        if not self.is_cuda:
            return own(self, memo)
        if id(self) not in memo:
            new = self.detach().clone().requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(new, self.requires_grad) if is_parameter else new
        return memo[id(self)]

    torch.Tensor.__deepcopy__ = torch.nn.Parameter.__deepcopy__ = deepcopy
