"""What a trace of torch's profiler says of a step: launches, uploads, waits, and the time of each kernel."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel", "cudaGraphLaunch")
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Seen:
    """Of a step."""

    launches: int
    uploads: int
    waits: int
    busy: float  # seconds in which the device does something
    kernels: Sequence[tuple[str, int, float]]  # name, times, seconds in all; most time first


def seen(events: Sequence[Mapping[str, Any]]) -> Seen:
    """The sums over the events of a trace."""
    whole = [event for event in events if event.get("ph") == "X"]
    calls = Counter(str(event["name"]) for event in whole if event.get("cat") in ("cuda_runtime", "cuda_driver"))
    times, seconds = Counter[str](), Counter[str]()
    for event in whole:
        if event.get("cat") in _ON_DEVICE:
            times[event["name"]] += 1
            seconds[event["name"]] += event["dur"] / 1e6
    return Seen(
        launches=sum(count for name, count in calls.items() if name.startswith(_LAUNCHES)),
        uploads=sum(count for name, count in times.items() if "HtoD" in name),
        waits=sum(count for name, count in calls.items() if name.startswith(_WAITS)),
        busy=_covered([(e["ts"], e["ts"] + e["dur"]) for e in whole if e.get("cat") in _ON_DEVICE]) / 1e6,
        kernels=[(name, times[name], spent) for name, spent in seconds.most_common()],
    )


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much the spans cover together."""
    total, end = 0.0, -float("inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
