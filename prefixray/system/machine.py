"""What of this machine a process may use, and how a worker on a CPU allocates.

In a container, or under a batch system, that is less than the machine has. CPUs are counted by joblib; of memory,
psutil sees the whole machine, so the limits of the control groups that the process is in are read here.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ALLOCATOR = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.hugetlb=1",  # transparent huge pages, where the kernel gives them to who asks
            "glibc.malloc.mmap_max=0",  # what is freed is kept, or its pages are zeroed anew
            "glibc.malloc.trim_threshold=17179869184",
            "glibc.malloc.top_pad=67108864",
            "glibc.malloc.arena_max=1",  # the loop is not the main thread, and would have an arena of small heaps
        )
    )
}
"""The environment in which a worker on a CPU starts; glibc before 2.35 has no huge pages, other libraries none of it.

A step's tensors are a few MB each, and come and go in every step. Measured by tests/bench/allocator.py.
"""

_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def num_cpus() -> int:
    """CPUs that this process may use: by its affinity and by the quota of its container."""
    from joblib import cpu_count  # type: ignore[import-untyped]  # takes a moment to import

    count: int = cpu_count()
    return count


def total_bytes() -> int:
    """The memory that there is for this process and the others in its container, or on the machine."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_bytes() -> int:
    """What of that could surely be allocated now: in a container, files that were read of late count as used."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _limits())])


def give_back() -> None:
    """Return to the system what this process has freed and would keep for its next allocations."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _limits() -> Iterator[tuple[int, int]]:
    """Of each control group with a limit that this process is in: the limit, and what counts against it, in bytes.

    Cached files that nobody reads now give way and do not count, as for Kubernetes. A container sees its own group as
    the root, whatever the path says, so groups that are not there are passed over.
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
    """A file's lines; none where it is not there for us."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def cache_folder() -> Path:
    """Where converted bases and measured speeds live: $PREFIXRAY_CACHE, else ~/.cache/prefixray."""
    return Path(os.environ.get("PREFIXRAY_CACHE") or Path.home() / ".cache" / "prefixray")


def cpu_fact(name: str) -> str:
    """What Linux says of the processor under a name, "model name" say; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
