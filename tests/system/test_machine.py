"""What a process may use of its machine, in containers too, and how it allocates and waits."""

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from prefixray.cluster.connect import Cluster
from prefixray.system import machine
from prefixray.system.machine import ALLOCATOR, WAITING, available_bytes, num_cpus, total_bytes, uncollected

GIB = 1 << 30
_GLIBC = platform.libc_ver()
needs_glibc = pytest.mark.skipif(
    _GLIBC[0] != "glibc" or tuple(map(int, _GLIBC[1].split("."))) < (2, 35), reason="glibc from 2.35 on has it"
)
_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# In a thread like a worker's loop: prints resident and huge MiB before and with 400 MiB in tensors of 4 MiB, after they
# were freed while a later one keeps them from the heap's end, and when what is free has been given back.
ALLOCATING = """
import threading
import psutil, torch
from prefixray.system.machine import give_back

def show():
    resident = psutil.Process().memory_info().rss >> 20
    with open("/proc/self/smaps", encoding="utf-8") as maps:
        huge = sum(int(line.split()[1]) for line in maps if line.startswith("AnonHugePages")) >> 10
    print(resident, huge)

def run():
    show()
    tensors = [torch.ones(1 << 20) for _ in range(100)]
    show()
    last = torch.ones(1)
    del tensors
    show()
    give_back()
    show()

loop = threading.Thread(target=run)
loop.start()
loop.join()
"""

# As the commands do, which load no torch before: chooses how threads wait, loads torch, and prints the CPU seconds of
# fifty sums between pauses.
WAITS = """
import os, time
import prefixray.decode, prefixray.train
from prefixray.system.machine import wait_passively

wait_passively()
import torch

torch.set_num_threads(2)
ones = torch.ones(400_000)
ones + ones
before = time.process_time()
for _ in range(50):
    ones + ones
    time.sleep(0.01)
print(os.environ["OMP_WAIT_POLICY"], time.process_time() - before)
"""


def _group(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, of which this process is said to be in `pod/box`."""
    membership = tmp_path / "membership"
    membership.write_text("12:cpu,cpuacct:/pod/box\n4:memory:/pod/box\n0::/pod/box\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_MEMBERSHIP", membership)
    return tmp_path / "groups"


def test_without_limits_it_is_the_machine(groups: Path) -> None:
    _group(groups / "pod/box", {"memory.max": "max", "memory.current": GIB})
    whole = psutil.virtual_memory()
    assert total_bytes() == whole.total
    assert abs(available_bytes() - whole.available) < GIB


def test_the_narrowest_group_counts_and_cached_files_do_not(groups: Path) -> None:
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file 7"
    _group(groups / "pod/box", {"memory.max": 2 * GIB, "memory.current": GIB, "memory.stat": stat})
    _group(groups / "pod", {"memory.max": 3 * GIB, "memory.current": int(2.5 * GIB)})
    assert total_bytes() == 2 * GIB
    assert available_bytes() == GIB // 2  # the pod has other containers
    _group(groups / "pod", {"memory.max": "max"})
    assert available_bytes() == 1.25 * GIB
    _group(groups / "pod/box", {"memory.current": 3 * GIB})
    assert available_bytes() == 0


def test_limits_of_the_first_kind_of_groups_count_too(groups: Path) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {GIB // 2}"
    files = {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": GIB, "memory.stat": stat}
    _group(groups / "memory", files)  # a container sees its own group as the root, and its path is the host's
    assert total_bytes() == GIB and available_bytes() == GIB // 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says on which CPUs a process may run")
def test_cpus_are_those_that_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= num_cpus() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@needs_glibc
def test_what_is_freed_is_kept_for_the_next_step_until_it_is_given_back() -> None:
    command = [sys.executable, "-c", ALLOCATING]
    printed = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=True)
    (before, _), (full, huge), (freed, _), (left, _) = (map(int, line.split()) for line in printed.stdout.splitlines())
    assert full > before + 390 and freed > before + 390 and left < before + 50
    if _HUGE.is_file() and "[never]" not in _HUGE.read_text() and "madvise]" in (_HUGE.parent / "defrag").read_text():
        assert huge > 200


def test_workers_start_with_their_devices_allocator_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    on_cpu, on_gpu = (Cluster("local", "", device, 2, 0, 2, 2, 1) for device in ("cpu", "cuda"))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert on_cpu.worker_environment == {**ALLOCATOR, **WAITING}
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.perturb=1", "OMP_WAIT_POLICY": "active"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert on_cpu.worker_environment == chosen
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        assert on_gpu.worker_environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
        monkeypatch.setenv(name, "max_split_size_mb:64")
        assert on_gpu.worker_environment == {name: "max_split_size_mb:64"}, "on other nodes, too"


@pytest.mark.skipif(num_cpus() < 2, reason="on one CPU OpenMP lets a second thread spin less")
def test_a_thread_that_waits_leaves_its_core_to_others_unless_the_user_has_chosen() -> None:
    """A second thread waits for a hundredth of a second, fifty times: it spins for a good part of that, or sleeps."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    chosen = ({}, {"OMP_WAIT_POLICY": "active"})
    command = [sys.executable, "-c", WAITS]
    running = [subprocess.Popen(command, env=usual | one, stdout=subprocess.PIPE, text=True) for one in chosen]
    (passive, ours), (active, theirs) = (process.communicate()[0].split() for process in running)
    assert (passive, active) == ("passive", "active")
    assert float(ours) < float(theirs) / 3, (ours, theirs)


def test_python_looks_for_no_garbage_in_a_block_and_does_so_again_after_the_outermost_one() -> None:
    with pytest.raises(ValueError, match="inside"), uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()
