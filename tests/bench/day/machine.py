"""What the machine is, what it takes to launch, upload and wait there, and whether the tests pass."""

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import torch

from day.result import Result

ROOT = Path(__file__).parents[3]
PACKAGES = ("torch", "transformers", "peft", "pydantic", "triton", "numpy")
FEW_TESTS = "gpt2 and float32 or to_be_built or cudnn"  # for a pretended GPU, whose tests run by themselves in CI


def machine(result: Result, is_pretended: bool) -> None:
    """Versions, and the speeds that `launches.py` models an H100 with."""
    result.say(device=torch.cuda.get_device_name(), python=platform.python_version())
    for package in PACKAGES:
        try:
            result.say(**{package: importlib.metadata.version(package)})
        except importlib.metadata.PackageNotFoundError:
            result.say(**{package: "not there"})
    result.say(
        CUDA=torch.version.cuda,
        cuDNN=torch.backends.cudnn.version(),
        compute_capability=".".join(map(str, torch.cuda.get_device_capability())),
        memory_in_GiB=torch.cuda.mem_get_info()[1] / 2**30,
        driver=_said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        commit=_said("git", "rev-parse", "HEAD"),
    )
    size, count = (256, 20) if is_pretended else (8192, 2000)
    matrix = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    rate = 2 * size**3 / _seconds(lambda: matrix @ matrix, 10)
    result.say(**{f"a bf16 product of {size} x {size} in TFLOP/s (modelled: 553)": rate / 1e12})
    other, num_bytes = torch.empty_like(matrix), 2 * matrix.numel() * matrix.itemsize
    result.say(**{"a copy in TB/s (modelled: 3)": num_bytes / _seconds(lambda: other.copy_(matrix), 10) / 1e12})
    one, host = torch.zeros(1, device="cuda"), torch.zeros(64)
    if not is_pretended:
        host = host.pin_memory()
    few: dict[str, Callable[[], object]] = {
        "a launch in us (modelled: 5 and 10)": lambda: one.add_(1),
        "an upload of 256 pinned bytes in us": lambda: host.to("cuda", non_blocking=True),
        "a wait in us": lambda: one.item(),
    }
    for name, run in few.items():
        result.say(**{name: 1e6 * _seconds(run, count)})


def tests(result: Result, is_pretended: bool) -> None:
    """`pytest -m gpu`: how many passed, and what failed."""
    report = Path(tempfile.mkdtemp()) / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=--import-mode=importlib"]
    command += ["-p", "no:cacheprovider", f"--junit-xml={report}", "tests/test_gpu.py", "tests/test_gpu_memory.py"]
    if is_pretended:
        command += ["-p", "tests.support.pretend_gpu.plugin", "-k", FEW_TESTS]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    cases = list(ElementTree.parse(report).iter("testcase"))
    ended: dict[str, list[str]] = {"passed": [], "skipped": [], "failed": []}
    for case in cases:
        tags = {child.tag for child in case}
        how = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        ended[how].append(case.get("name", ""))
        for child in case if how == "failed" else ():
            result.row("Failed", {"what": ended[how][-1], "why": " ".join(child.get("message", "").split())[:300]})
    result.say(**{how: len(names) for how, names in ended.items()})
    if code not in (0, 1):
        sys.exit(f"pytest ended with {code}")


def _said(*command: str) -> str:
    """What a command says, in one line; nothing where it is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not known"
    return done.stdout.strip() or "not known"


def _seconds(run: Callable[[], object], count: int) -> float:
    """How long it takes, on average over several times."""
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


PARTS = {"machine": machine, "tests": tests}
