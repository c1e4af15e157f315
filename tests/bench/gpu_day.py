"""All that a real GPU is to tell, in one command of at most 25 minutes; one JSON and one page come out of it.

    python tests/bench/gpu_day.py --out day                      # on a machine with a GPU
    python tests/bench/gpu_day.py --out day --minutes 9          # as far as that goes; once more goes on from there
    python tests/bench/gpu_day.py --out day --parts launches memory
    python tests/bench/gpu_day.py --out day --pretend            # on a pretended GPU, small: to try this file

It needs torch from 2.11 on, transformers from 5.17 on, peft, pydantic, pytest, and this folder's package by PYTHONPATH;
Ray, Optuna and MLflow are not imported. Nothing is downloaded: weights are random where the cache has none.

Each part is a process of its own with a time limit of its own. What it finds is in a file at once, and in the JSON and
the page when it ends, however it ends: a part that crashes or hangs costs only itself. This file imports no torch.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from day.page import page

RUN_PART = Path(__file__).parent / "day/run_part.py"
PRETENDED_SECONDS = 240.0  # for each part on a pretended GPU: seconds, but beside other work
LEAST_SECONDS = 15.0  # a part with less time left is not begun
LOG_LETTERS = 3000  # of what a part has printed, to keep beside its findings


@dataclass(frozen=True)
class Part:
    """Something to find out."""

    name: str
    seconds: float  # after which it is ended
    title: str
    about: str  # what is measured, what is modelled or counted
    is_small: bool = True  # whether it is tried on a pretended GPU, too


TABLE = (
    "Measured, in bf16: ms of a training step per trial, and losses of the first and the last step beside them. PEFT "
    "runs under autocast, and `plain` without it. `x PEFT` compares with the former, `x plain` with the latter."
)
PARTS = (
    Part("machine", 40, "The machine", "Measured: what the model of `launches.py` assumes of an H100."),
    Part("tests", 220, "Tests", "`tests/test_gpu.py` and `test_gpu_memory.py`: the reference is the CPU."),
    Part("table-medium", 180, "A step: gpt2-medium, E2E, prefixes of 5", TABLE),
    Part(
        "launches",
        100,
        "What a step launches",
        "Measured by torch's profiler, gpt2-medium's shape: launches, uploads, waits of the host, the time in which "
        "the device works; ms and `busy` are of steps without the profiler. Counted on a pretended GPU, where each "
        "operator is a launch: the columns named so. Modelled from those counts: an H100's ms.",
    ),
    Part(
        "memory",
        80,
        "Memory",
        "Measured: the peak of two steps of a pack. Computed from sizes: `memory.pack_bytes`.",
    ),
    Part("table-lora", 110, "A step: gpt2-medium, E2E, LoRA of rank 4", TABLE, is_small=False),
    Part("table-bart", 180, "A step: bart-large, DialogSum's lengths, prefixes of 200", TABLE, is_small=False),
    Part("table-small", 90, "A step: GPT-2 small, E2E, prefixes of 5", TABLE, is_small=False),
    Part("table-6", 70, "A step: 6 layers, E2E, prefixes of 5", TABLE, is_small=False),
    Part(
        "decode",
        150,
        "Decoding",
        "Measured, in bf16: beam search of 5 beams, 30 new tokens. In bf16 beams may tie, and hypotheses differ.",
    ),
    Part(
        "cudnn",
        80,
        "cuDNN's attention",
        "Measured: ms of the first steps of a pack, each of shapes of its own, with cuDNN's attention allowed and not.",
    ),
    Part(
        "no-memory",
        60,
        "An artificial out of memory",
        "Measured: a step of a pack that has half the memory it wants.",
    ),
    Part("resume", 80, "Kill and resume", "Measured: trials whose process is killed, against undisturbed ones."),
)
SECONDS = 1500.0  # that all parts may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; how many of them did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_day"), help="a folder")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="PART", help="these alone")
    parser.add_argument("--minutes", type=float, default=SECONDS / 60, help="after which no part goes on")
    parser.add_argument("--pretend", action="store_true", help="on a pretended GPU")
    options = parser.parse_args(arguments)
    chosen = [part for part in PARTS if part.name in (options.parts or [one.name for one in PARTS])]
    if options.pretend:
        chosen = [replace(part, seconds=PRETENDED_SECONDS) for part in chosen if part.is_small or options.parts]
    command = [sys.executable, str(RUN_PART), *(["--pretend"] if options.pretend else [])]
    day = Day(options.out, command, is_pretended=options.pretend)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the part's process ends, too
    return day.run(chosen, 60 * options.minutes, again=bool(options.parts))


class Day:
    """The findings of all parts, in a folder."""

    def __init__(self, folder: Path, command: Sequence[str], *, is_pretended: bool) -> None:
        """`command` runs a part, whose name and file are put behind it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._command, self._json, self._page = command, folder / "gpu_day.json", folder / "gpu_day.md"
        self._log, self._part_file = folder / "gpu_day.log", folder / "part.json"
        kept = json.loads(self._json.read_text()) if self._json.exists() else {}
        self.found: dict[str, Any] = kept if kept.get("is_pretended") == is_pretended else {}
        self.found |= {"is_pretended": is_pretended, "parts": self.found.get("parts", {})}

    def run(self, parts: Sequence[Part], seconds: float, *, again: bool) -> int:
        """Run parts one after the other, those that are done already only `again`; how many did not end well."""
        until = time.monotonic() + seconds
        for part in parts:
            is_done = self.found["parts"].get(part.name, {}).get("ended") == "done"
            left = min(part.seconds, until - time.monotonic())
            if is_done and not again:
                continue
            if left < min(LEAST_SECONDS, part.seconds):
                print(f"{part.name}: not begun, no time is left", flush=True)
                self.found["parts"].setdefault(part.name, {"ended": "not begun: no time was left"})
            else:
                self.found["parts"][part.name] = self._run(part, left)
            self._write()
        return sum(self.found["parts"][part.name]["ended"] != "done" for part in parts)

    def _run(self, part: Part, seconds: float) -> dict[str, Any]:
        """One part in a process of its own."""
        print(f"{part.name}: at most {seconds:.0f} s", end="", flush=True)
        started = time.monotonic()
        self._part_file.unlink(missing_ok=True)
        with self._log.open("a") as log:
            log.write(f"\n== {part.name}\n")
            log.flush()
            start = log.tell()
            ended = ended_within(seconds, [*self._command, part.name, str(self._part_file)], log)
        found = json.loads(self._part_file.read_text()) if self._part_file.exists() else {}
        self._part_file.unlink(missing_ok=True)
        took = time.monotonic() - started
        print(f" - {ended}, {took:.0f} s", flush=True)
        with self._log.open(errors="replace") as log:
            log.seek(start)
            printed = log.read()[-LOG_LETTERS:]
        about = {"title": part.title, "about": part.about}
        return {**about, "ended": ended, "seconds": round(took, 1), **found, "printed": printed}

    def _write(self) -> None:
        order = {part.name: place for place, part in enumerate(PARTS)}
        self.found["parts"] = dict(sorted(self.found["parts"].items(), key=lambda item: order.get(item[0], len(order))))
        for file, text in ((self._json, json.dumps(self.found, indent=1)), (self._page, page(self.found))):
            new = file.with_suffix(".new")
            new.write_text(text + "\n")
            os.replace(new, file)


def ended_within(seconds: float, command: Sequence[str], log: Any) -> str:  # noqa: ANN401
    """How a command has ended; with it ends all that it has started."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
    }
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    with _ended(process):
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "done" if code == 0 else f"failed with exit code {code}"


@contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End a process, whose session is its own, and all others of that session."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
