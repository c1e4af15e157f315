"""A trace of what a step takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PROFILE_LINES = 15  # of the table that `profiled` prints


@contextmanager
def profiled(file: Path | str) -> Iterator[None]:
    """Profile a step of a trial or a pack: write its trace (for chrome://tracing or Perfetto), print what took longest.

    `prefixray train --profile FILE` does so, and the benchmarks.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(file))
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=PROFILE_LINES, max_name_column_width=40))
    print(f"trace: {file}")
