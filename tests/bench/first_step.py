"""The time from a sweep's command to its first training step, part by part, with a fresh cache and with a warm one.

    python tests/bench/first_step.py                                 # the quickstart, twice each; minutes
    python tests/bench/first_step.py --repeats 1 --caches warm --cache ~/.cache/prefixray

Each run has a folder of its own and is interrupted at its first step. A fresh cache of converted bases is an empty
folder, in which the base is converted; a warm one is that of the fresh run before, or the one that `--cache` names. All
times are those that the sweep writes itself, into `sweep.log` and `timeline.jsonl`; a part ends when the last worker
has passed it. The CPU seconds of all processes up to the first step stand beside them, since other work on the machine
lengthens them less than the wall time.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from processes import REPOSITORY, Watched
from sweep_log import lines

from prefixray.results.timeline.keeper import FILE

GIVES_UP_SECONDS = 600.0
LOOK_SECONDS = 0.1
PARTS: Mapping[str, str] = {
    "this machine: .* CPUs": "Ray runs",
    "a worker's process begins": "workers have a process",
    "torch and transformers are imported": "workers have imported torch and transformers",
    "the data is read": "workers have read the data",
    "the base is loaded": "workers have the base",
    "the rows are tokenised": "workers have tokenised it",
    r"worker-\d+: \d+ slots": "workers are ready",
    r"\S+ is placed on": "the first trial is placed",
    r"\S+ asks to join": "the first trial asks to join",
    r"\S+ begins its first step": "the first step begins",
}
"""What the log says, and what has been done by then: workers' parts are over when the last one says it."""
KINDS: Mapping[str, str] = {
    "prefixray.sweep": "the driver",
    "find_weights": "conversion of the base",
    "ray::Worker": "workers",
    "ray::House": "the seats' process",
    r"ray::(?!\w+Agent)|default_worker": "Ray's spare processes",
    "": "Ray's services",
}


def main() -> None:
    """Run the sweep so often, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=REPOSITORY / "sweeps" / "quickstart.yaml")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--caches", nargs="+", choices=("fresh", "warm"), default=["fresh", "warm"])
    parser.add_argument("--cache", type=Path, help="the warm one (that of the fresh run before)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="as of `prefixray sweep`")
    parser.add_argument("--out", type=Path, help="the folder for everything (a temporary one)")
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp(prefix="first-step-"))).absolute()
    command = [sys.executable, "-m", "prefixray.sweep", str(options.sweep.absolute())]
    command += [word for change in options.set for word in ("--set", change)]
    warm, columns = options.cache, list[tuple[str, dict[str, float], dict[str, float]]]()
    for number in range(options.repeats):
        for kind in options.caches:
            folder = out / f"{kind}-{number}"
            folder.mkdir(parents=True)
            cache = folder / "cache" if kind == "fresh" else warm
            if cache is None:
                parser.error("a warm run needs --cache, or a fresh run before it")
            columns.append((kind, *timed(command, folder, cache.expanduser().absolute())))
            warm = warm or cache
            (out / "results.json").write_text(json.dumps(columns, indent=1) + "\n")
    print(table(columns))


def timed(command: Sequence[str], folder: Path, cache: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Run the command in `folder` up to its first step: seconds until each part is over, CPU seconds by process."""
    environment = {"PREFIXRAY_CACHE": str(cache), "RAY_raylet_start_wait_time_s": "120"}
    began = time.time()
    with Watched(command, folder, environment) as watched:
        while not (marks := passed(folder, began)).get("the first step begins"):
            if watched.process.poll() is not None or time.time() > began + GIVES_UP_SECONDS:
                sys.exit(f"no first step:\n{(folder / 'output.txt').read_text(errors='replace')}")
            time.sleep(LOOK_SECONDS)
        cpu = dict.fromkeys(KINDS.values(), 0.0)
        for line, seconds in watched.cpu_by_command():
            cpu[next(kind for pattern, kind in KINDS.items() if re.search(pattern, line))] += seconds
        watched.interrupt()
    return marks, cpu


def passed(folder: Path, began: float) -> dict[str, float]:
    """Seconds from the command until each part is over; 0 for one that is not."""
    marks = dict.fromkeys(("the driver has imported its modules", *PARTS.values()), 0.0)
    for results in (folder / "runs").glob("*"):
        for line in (results / FILE).read_text().splitlines()[:1] if (results / FILE).is_file() else ():
            marks["the driver has imported its modules"] = json.loads(line)["at"] - began
        for when, message in lines(results / "sweep.log"):
            part = next((name for pattern, name in PARTS.items() if re.match(pattern, message)), None)
            if part is not None and (part.startswith("workers") or not marks[part]):
                marks[part] = when - began
    return marks


def table(columns: Sequence[tuple[str, Mapping[str, float], Mapping[str, float]]]) -> str:
    """A column for each run."""

    def row(name: str, values: Sequence[object]) -> str:
        return f"{name:<46}" + "".join(f"{value:>8}" for value in values)

    lines = [row("seconds from the command until", [kind for kind, _, _ in columns])]
    lines += [row(part, [f"{marks[part]:.1f}" for _, marks, _ in columns]) for part in columns[0][1]]
    lines += ["", row("CPU seconds until then of", [kind for kind, _, _ in columns])]
    lines += [row(kind, [f"{cpu[kind]:.1f}" for _, _, cpu in columns]) for kind in columns[0][2]]
    lines.append(row("all", [f"{sum(cpu.values()):.1f}" for _, _, cpu in columns]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
