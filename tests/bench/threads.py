"""What further threads are worth to a worker on a CPU.

    python tests/bench/threads.py                                # the default cases of --case, 1 and 2 threads
    python tests/bench/threads.py --case "6-layer, E2E, 5" --precision fp32 --threads 1 4
    GOMP_SPINCOUNT=300000 python tests/bench/threads.py          # threads that wait spin for a while
    python tests/bench/threads.py --busy 1                       # another process computes meanwhile

Steps of a pack of 1, 2 and 4 trials with each number of threads, in turn, on the same rows and from the same weights;
their losses stand beside the times. Times are the clock's, so nothing else may run. Threads that wait sleep, as in a
worker, unless the environment says otherwise.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time

from prefixray.system.machine import wait_passively

wait_passively()  # before torch is there

import torch  # noqa: E402
from arms import PackArm, Setting  # noqa: E402
from cases import ALL_CASES, make_model  # noqa: E402
from table import PRECISIONS, ratios, spread  # noqa: E402

from prefixray.system.logs import quieten  # noqa: E402

DEFAULT_CASES = ["6-layer, E2E, 5", "SmolLM2-135M, E2E, 5"]
SIZES = (1, 2, 4)
WARM_UP = 2  # rounds in which kernels are made


def main() -> None:
    """Time the cases one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=ALL_CASES, action="append", metavar="CASE", help="; ".join(ALL_CASES))
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a trial")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    options = parser.parse_args()
    quieten()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        _time_all(options)
    finally:
        for process in busy:
            process.kill()


def _time_all(options: argparse.Namespace) -> None:
    """A part of the table for each case and precision."""
    columns = "".join(f"{f'{count} thr. s':>10}" for count in options.threads)
    print(f"{'case':<22} {'':<5} trials{columns}  {'first / last':<17}  losses of the last step")
    for case in options.case or DEFAULT_CASES:
        for precision in options.precision or ["bf16", "fp32"]:
            loop = threading.Thread(target=_time, args=(case, precision, options))  # as a worker has one
            loop.start()
            loop.join()


def _time(name: str, precision: str, options: argparse.Namespace) -> None:
    """A line for each size of a pack."""
    case, device = ALL_CASES[name], torch.device("cpu")
    setting = Setting(case.data()[0], options.batch_size, case.preseqlen, device)
    arms = {
        count: PackArm(make_model(case, PRECISIONS[precision], device), setting, SIZES) for count in options.threads
    }
    for size in SIZES:
        seconds: dict[int, list[float]] = {count: [] for count in arms}
        losses = dict.fromkeys(arms, 0.0)
        for number in range(WARM_UP + options.rounds):
            for count, arm in arms.items():
                torch.set_num_threads(count)
                started = time.perf_counter()
                losses[count] = arm.step(size)
                seconds[count] += [time.perf_counter() - started] if number >= WARM_UP else []
        medians = "".join(f"{statistics.median(own):>10.3f}" for own in seconds.values())
        first, last = seconds[options.threads[0]], seconds[options.threads[-1]]
        found = ", ".join(f"{loss:.4f}" for loss in losses.values())
        print(f"{name:<22} {precision:<5} {size:>6}{medians}  {spread(ratios(first, last)):<17}  {found}", flush=True)


if __name__ == "__main__":
    main()
