"""The half-hour with a real GPU: its parts fail alone, go on where they were, and stand on one page."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCH = Path(__file__).parent / "bench"
STAND_IN = """
printf '{"facts": {"seen": "%s"}, "tables": {"Rows": [{"arm": "first", "ms": 1.5}]}}' "$1" > "$2"
echo begun
case "$1" in
  launches) kill -ABRT $$ ;;
  memory) sleep 600 & echo $!; wait ;;
  decode) echo the end >&2; exit 1 ;;
esac
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}


def has_ended(pid: int) -> bool:
    """Whether a process runs no more, even where nobody has asked how it ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("bench")
def test_a_part_that_crashes_or_hangs_costs_only_itself_and_is_run_again(tmp_path: Path) -> None:
    from gpu_day import PARTS, Day, Part

    (tmp_path / "part.sh").write_text(STAND_IN)
    command = ["sh", str(tmp_path / "part.sh")]
    names = ("machine", "launches", "memory", "decode", "resume")
    parts = [Part(name, 3.0 if name == "memory" else 30, name.title(), "Measured.") for name in names]
    assert set(names) <= {part.name for part in PARTS}
    assert Day(tmp_path / "out", command, is_pretended=True).run(parts, 60, again=False) == 3
    found = json.loads((tmp_path / "out/gpu_day.json").read_text())["parts"]
    ended = {name: part["ended"] for name, part in found.items()}
    ways = "done", "killed by SIGABRT", "ended after 3 s", "failed with exit code 1", "done"
    assert ended == dict(zip(names, ways, strict=True))
    assert all(part["facts"] == {"seen": name} and part["tables"] for name, part in found.items())
    assert has_ended(int(found["memory"]["printed"].split()[-1])), "what a part has started ends with it"

    page = (tmp_path / "out/gpu_day.md").read_text()
    assert "Times, speeds and ratios on this page mean nothing" in page
    assert "**Not whole: failed with exit code 1.**" in page and "the end" in page and "| first | 1.5 |" in page

    before = found["machine"]
    again = Day(tmp_path / "out", ["true"], is_pretended=True)
    assert again.run(parts, 60, again=False) == 0, "those that were not done"
    assert again.found["parts"]["machine"] == before
    on_a_real_one = Day(tmp_path / "out", command, is_pretended=False)
    assert on_a_real_one.run(parts[:1], 5, again=False) == 1 and "seen" not in on_a_real_one.found["parts"]["machine"]


@pytest.mark.usefixtures("bench")
def test_all_parts_are_there_and_fit_into_their_time() -> None:
    from day import machine, steps, survival
    from gpu_day import PARTS, SECONDS

    assert sum(part.seconds for part in PARTS) <= SECONDS == 25 * 60
    known = machine.PARTS | steps.PARTS | survival.PARTS
    assert {part.name for part in PARTS} == set(known)
    assert set(json.loads(steps.COUNTED.read_text())) >= {"PEFT 1", "network 1", "network 16", "lora 16"}


@pytest.mark.usefixtures("bench")
def test_a_trace_tells_launches_uploads_waits_and_the_time_in_which_the_device_works() -> None:
    from day.trace import seen

    found = seen(
        [
            {"ph": "M", "name": "process_name"},
            event("cpu_op", "aten::mm", 0, 50),
            event("cuda_runtime", "cudaLaunchKernel", 1, 5),
            event("cuda_runtime", "cudaLaunchKernelExC", 8, 5),
            event("cuda_driver", "cuLaunchKernelEx", 14, 5),
            event("cuda_runtime", "cudaMemcpyAsync", 20, 5),
            event("cuda_runtime", "cudaStreamSynchronize", 26, 20),
            event("kernel", "gemm", 10, 20),
            event("kernel", "gemm", 25, 10),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 50, 5),
            event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 60, 5),
        ]
    )
    assert (found.launches, found.uploads, found.waits) == (3, 1, 1)
    assert found.busy == pytest.approx(35e-6), "what overlaps counts once"
    assert found.kernels[0][:2] == ("gemm", 2) and found.kernels[0][2] == pytest.approx(30e-6)
