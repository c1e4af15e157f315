"""Runs one part of `gpu_day.py`: python tests/bench/day/run_part.py [--pretend] PART FILE."""

import argparse
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1]
sys.path[:0] = [str(BENCH), str(BENCH.parent)]


def main() -> None:
    """Find out what the part is about, and keep it in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("file", type=Path)
    parser.add_argument("--pretend", action="store_true")
    options = parser.parse_args()
    if options.pretend:
        from support.pretend_gpu import device

        device.pretend()  # before torch is there

    from day import machine, steps, survival
    from day.result import Result

    parts = machine.PARTS | steps.PARTS | survival.PARTS
    parts[options.part](Result(options.file), options.pretend)


if __name__ == "__main__":
    main()
