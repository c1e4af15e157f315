"""What trials take that only wait for their workers: as seats in one process, and as Tune's own processes.

    python tests/bench/seats.py            # minutes; what the machine has no memory for is left out

Each row is one run of Ray Tune whose trials all join one worker, which is played. Memory is that of the trials' own
processes, shared pages counted once (PSS); the start is from Tune's start until all trials have asked to join.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import psutil
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `support`

from processes import proportional_bytes
from support.played_tune import run_tune

from prefixray.driver.engine import seats

NUM_TRIALS = (16, 64, 256)
BYTES_EACH = 130 << 20  # of a process of Tune's, to know beforehand whether there is room
NAMES = ("ray::House", "ray::TrialTrainable", "ray::ResourceTrainable")  # the last is Tune's, around a trainable


class Meter:
    """The processes of trials at the first report: how many there are, and their memory."""

    num_processes, num_bytes = 0, 0

    def __call__(self) -> None:
        if not self.num_processes:
            children = psutil.Process().children(recursive=True)
            ids = [child.pid for child in children if " ".join(child.cmdline()).startswith(NAMES)]
            self.num_processes, self.num_bytes = len(ids), sum(map(proportional_bytes, ids))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=NUM_TRIALS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    name = seats.PRIVATE_NAME
    print("trials  as         processes    GiB  start s", flush=True)
    for num_trials in options.trials:
        for kind in ("processes", "seats"):
            free = psutil.virtual_memory().available
            if kind == "processes" and num_trials * BYTES_EACH > free:
                print(f"{num_trials:6}  {kind:9}  no room in {free / 2**30:.0f} GiB", flush=True)
                continue
            seats.PRIVATE_NAME = name if kind == "seats" else "_NoSuchName"
            ray.init(address="local", namespace="played", num_cpus=0, include_dashboard=False, log_to_driver=False)
            meter = Meter()
            with tempfile.TemporaryDirectory() as folder:
                seconds = run_tune(Path(folder), num_trials, meter).seconds
            ray.shutdown()
            row = f"{meter.num_processes:9}  {meter.num_bytes / 2**30:5.2f}  {seconds:7.1f}"
            print(f"{num_trials:6}  {kind:9}  {row}", flush=True)


if __name__ == "__main__":
    main()
