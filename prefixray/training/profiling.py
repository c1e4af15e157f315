"""Where a step's time goes: a trace for a viewer, and a table of what took longest.

`train --profile FILE` profiles a step of a trial, and the benchmark's that of a pack.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

NUM_LINES = 15  # of the table


@contextmanager
def profiled(file: Path | str) -> Iterator[None]:
    """Profile what runs inside; then write the trace (chrome://tracing, Perfetto) and print the table."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        yield
    found.export_chrome_trace(str(file))
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=NUM_LINES, max_name_column_width=40))
    print(f"trace: {file}")
