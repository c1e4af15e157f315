"""The cores and the memory that a process may use, what 4 bits need, how a CPU's workers allocate memory and wait.

In a container, or under a batch system, a process may use less than the machine has. joblib counts the CPUs. psutil
sees the memory of the whole machine, so the limits of the process's control groups are read here.
"""

import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import psutil

from prefixray.errors import UserError

ALLOCATOR = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.hugetlb=1",  # transparent huge pages, where the kernel allows them on request
            "glibc.malloc.mmap_max=0",  # keep freed memory: the kernel zeroes pages that are new to a process
            "glibc.malloc.trim_threshold=17179869184",
            "glibc.malloc.top_pad=67108864",
            "glibc.malloc.arena_max=1",  # outside the main thread, where the loop runs, an arena has small heaps
        )
    )
}
"""Environment variables of a worker on a CPU. glibc before 2.35 ignores `hugetlb`, other C libraries ignore all.

A step's tensors are a few MB each, allocated and freed in every step. Measured by tests/bench/allocator.py.
"""

WAITING = {"OMP_WAIT_POLICY": "passive"}
"""The environment variable with which threads that wait for others sleep, and leave their core to other processes.

OpenMP reads it once, when torch loads it. What the user sets more finely wins: GOMP_SPINCOUNT, KMP_BLOCKTIME.
"""

CUDA_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
CUDA_ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Environment variables of a worker on a GPU: nearly each step has new shapes, which would leave pieces of segments."""

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def check_four_bit(*, has_gpu: bool) -> None:
    """Raise `UserError` where matrices cannot be kept in 4 bits."""
    if not has_gpu:
        raise UserError("train.precision: 4bit: needs a GPU, and this is a CPU; take bf16, fp32 or auto")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.precision: 4bit: bitsandbytes is not installed (pip install 'prefixray[4bit]')")


def num_cpus() -> int:
    """The CPUs that this process may use, by its affinity and by the quota of its container."""
    from joblib import cpu_count  # type: ignore[import-untyped]  # takes a moment to import

    count: int = cpu_count()
    return count


def wait_passively() -> None:
    """Have `WAITING` in this process, unless the user has chosen, or torch is loaded and it would come too late."""
    if "torch" not in sys.modules:
        for key, value in WAITING.items():
            os.environ.setdefault(key, value)


def total_bytes() -> int:
    """The memory of the container that this process runs in, or of the machine."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_bytes() -> int:
    """The memory that can surely be allocated now. In a container, recently read files in the cache count as used."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _limits())])


def give_back() -> None:
    """Return to the system the memory that this process has freed, which glibc keeps for later allocations."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no garbage in the block, which makes many objects that stay, such as modules."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _limits() -> Iterator[tuple[int, int]]:
    """For each control group of this process that has a limit: the limit and the memory that is used of it, in bytes.

    Inactive files in the cache do not count as used, as in Kubernetes: the kernel drops them when memory is needed. A
    container sees its own group as the root, whatever the path says, so groups that do not exist are skipped.
    """
    for line in _lines(_MEMBERSHIP):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (root / each for each in (group, *group.parents)):
            limit, used, cached = _lines(folder / names[0]), _lines(folder / names[1]), 0
            for entry in _lines(folder / "memory.stat"):
                key, _, value = entry.partition(" ")
                cached = int(value) if key == names[2] else cached
            if limit and used and limit[0].isdigit():
                yield int(limit[0]), int(used[0]) - cached


def _lines(file: Path) -> list[str]:
    """The lines of a file; none where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def cache_folder() -> Path:
    """The folder of converted bases, tokenised rows and measured speeds: $PREFIXRAY_CACHE, else ~/.cache/prefixray."""
    return Path(os.environ.get("PREFIXRAY_CACHE") or Path.home() / ".cache" / "prefixray")


def cpu_fact(name: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo, for example "model name"; empty where it is missing."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
