"""What the allocator's settings are worth that workers on CPUs start with (`prefixray.machine.ALLOCATOR`).

    python tests/bench/allocator.py                              # the default cases of --case
    python tests/bench/allocator.py --case "SmolLM2-135M, E2E, 5" --rounds 8

The settings are read when a process starts, so each arm is a process of its own, and they take turns, step by step, one
at a time: our largest pack and PEFT, as Python starts them and with the settings. Times are CPU seconds.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from arms import PackArm, PeftArm, Setting
from cases import ALL_CASES, make_model
from table import PRECISIONS, ratios, spread, timed

from prefixray.system.logs import quieten
from prefixray.system.machine import ALLOCATOR

DEFAULT_CASES = ["6-layer, E2E, 5", "SmolLM2-135M, E2E, 5"]
ARMS = ("ours", "PEFT")
PARTS = ("step", "validation")


class Server:
    """A process with one arm, which runs a part whenever it is asked."""

    def __init__(self, case: str, precision: str, arm: str, environment: dict[str, str]) -> None:
        choices = f"--arm={arm}", f"--case={case}", f"--precision={precision}"
        command = [sys.executable, str(Path(__file__).resolve()), *choices]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask("peak")  # it is there

    def ask(self, part: str) -> float:
        """Run a part; the seconds that it took. "peak" runs nothing and gives the peak memory in MiB."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(part + "\n")
        self._process.stdin.flush()
        while (answer := self._process.stdout.readline().partition("took "))[1] == "":
            assert self._process.poll() is None, "it has died"
        return float(answer[2])

    def end(self) -> None:
        """No part is asked for any more."""
        self._process.communicate()


def main() -> None:
    """Let the processes of each case take turns, and print a table; with --arm, be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=ALL_CASES, action="append", metavar="CASE", help="; ".join(ALL_CASES))
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or DEFAULT_CASES
    if options.arm is not None:
        loop = threading.Thread(target=_serve, args=(cases[0], options.precision, options.arm))  # as a worker has one
        loop.start()
        loop.join()
        return
    print(f"{options.precision}, one CPU thread, {options.rounds} rounds")
    print(f"{'case':<24} {'arm':<5} {'part':<10}  usual s   set s  {'ratio':<17}  MiB usual, set")
    for case in cases:
        _compare(case, options.precision, options.rounds)


def _compare(case: str, precision: str, rounds: int) -> None:
    usual = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    environments = {"usual": usual, "set": usual | ALLOCATOR}
    servers = {(arm, name): Server(case, precision, arm, own) for arm in ARMS for name, own in environments.items()}
    for arm in ARMS:
        two = [servers[arm, name] for name in environments]
        for part in PARTS:
            seconds: list[list[float]] = [[], []]
            for number in range(-2, rounds):  # kernels are made in the first two
                for at in (0, 1) if number % 2 else (1, 0):
                    spent = two[at].ask(part)
                    seconds[at] += [spent] if number >= 0 else []
            before, after = seconds
            medians = "".join(f"{statistics.median(own):8.3f}" for own in seconds)
            peaks = "".join(f"{server.ask('peak'):7.0f}" for server in two)
            print(f"{case:<24} {arm:<5} {part:<10} {medians}  {spread(ratios(after, before)):<17} {peaks}", flush=True)
    for server in servers.values():
        server.end()


def _serve(name: str, precision: str, arm: str) -> None:
    """Run a part per line that comes in, on the same rows in every process."""
    torch.set_num_threads(1)
    quieten()
    case, device = ALL_CASES[name], torch.device("cpu")
    train, dev = case.data()
    setting = Setting(train, case.batch_size, case.preseqlen, device)
    model, largest = make_model(case, PRECISIONS[precision], device), max(case.packs)
    parts: dict[str, Callable[[int], float]]
    if arm == "ours":
        ours = PackArm(model, setting, [largest])
        parts = {"step": lambda _: ours.step(largest), "validation": lambda _: ours.validate(dev, largest)}
    else:
        theirs = PeftArm(model, setting)
        parts = {"step": theirs.step, "validation": lambda _: theirs.validate(dev)}
    for number, part in enumerate(map(str.strip, sys.stdin)):
        if part in parts:
            took = timed(partial(parts[part], number), device)[0]
        else:
            took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # which Linux gives in KiB
        print(f"took {took}", flush=True)


if __name__ == "__main__":
    main()
