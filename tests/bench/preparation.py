"""How long a step of a pack keeps the host busy beside launching: laying out rows, ids, spans; in CPU seconds.

    python tests/bench/preparation.py                              # this checkout
    python tests/bench/preparation.py --packages ../older .        # and an older one's package, in turn
    python tests/bench/preparation.py --small                      # for trying this file

Steps run on a pretended GPU, on a model of one narrow layer, since rows do not depend on the model: E2E, batch 10,
prefixes of 5. What launches (forward, loss and backward, prefixes, updates) is taken off the step's CPU time; the rest
is preparation. Of that, a GPU hides what comes while it works on the launched step; it waits for what comes before.
Each package and repeat is a process of its own. What a copy to a real GPU costs the host is not in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAUNCHES, BEFORE, BEHIND = "launches", "before", "behind"  # what a step's time goes to
Seconds = list[dict[str, float]]  # of a step by part, for each number of trials
PARTS = {BEFORE: "before the step is launched", BEHIND: "while the GPU works"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="+", type=Path, default=[Path(__file__).parents[2]], metavar="FOLDER")
    parser.add_argument("--trials", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="that are timed, behind two that are not")
    parser.add_argument("--small", action="store_true", help="2 trials, once")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    trials, repeats = ([2], 1) if options.small else (options.trials, options.repeats)
    if options.apart:
        print(json.dumps([seconds_of(count, options.steps) for count in trials]))
        return
    found: dict[Path, list[Seconds]] = {package: [] for package in options.packages}
    for _ in range(repeats):
        for package, times in found.items():
            times.append(_apart(package, trials, options.steps))
    print(f"{'ms of CPU time a step':<28}{'trials':>7}" + "".join(f"{title:>30}" for title in PARTS.values()))
    for place, count in enumerate(trials):
        for package, times in found.items():
            of_parts = (sorted(1e3 * one[place][part] for one in times) for part in PARTS)
            cells = (f"{statistics.median(ms):.1f} [{ms[0]:.1f}, {ms[-1]:.1f}]" for ms in of_parts)
            print(f"{package.resolve().name:<28}{count:>7}" + "".join(f"{cell:>30}" for cell in cells), flush=True)


def _apart(package: Path, trials: Sequence[int], steps: int) -> Seconds:
    """What steps take, from a process that imports this package."""
    command = [sys.executable, __file__, "--apart", "--trials", *map(str, trials), "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(package.resolve())}
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    seconds: Seconds = json.loads(printed.splitlines()[-1])
    return seconds


class Clock:
    """CPU seconds by what they go to: what is called inside of something else does not count as that."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._now, self._since = BEFORE, time.process_time()

    def begin(self, part: str) -> str:
        """From here on; returns what it was until now."""
        before, until = self._now, time.process_time()
        self.seconds[before] += until - self._since
        self._now, self._since = part, time.process_time()
        return before

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """In here."""
        before = self.begin(part)
        try:
            yield
        finally:
            self.begin(before)

    def count(self, owner: Any, name: str, part: str, *, inside: str | None = None) -> None:  # noqa: ANN401
        """What a function takes goes to a part, wherever it is called, or only where it is called inside of another."""
        stock: Callable[..., object] = getattr(owner, name)

        def timed(*arguments: object, **options: object) -> object:
            with self.during(part if inside in (None, self._now) else self._now):
                return stock(*arguments, **options)

        setattr(owner, name, timed)


def seconds_of(trials: int, steps: int) -> dict[str, float]:
    """What a step of so many trials takes, by part; with the package that is imported."""
    import launches  # pretends a GPU before torch is there
    import torch
    from cases import gpt2

    from prefixray.methods.stacked import Inserts
    from prefixray.model.binding import binder
    from prefixray.model.binding.ragged import Ragged
    from prefixray.model.fast_cuda import unpadded
    from prefixray.training import pack as pack_module

    torch.set_num_threads(1)
    unpadded.knows = lambda dtype, head_dim: True  # type: ignore[assignment]  # narrow heads, too
    model = gpt2(1, 32, 4, 400).requires_grad_(False).to("cuda", torch.bfloat16).train(False)
    pack, keys = launches.pack_of(model, launches.METHODS["flat"], trials)
    for _ in range(2):
        pack.step(keys)
    clock = Clock()
    clock.count(pack.base.model, "forward", LAUNCHES)
    for name in ("insert_all", "losses_of_hidden", "finished"):
        clock.count(pack_module, name, LAUNCHES)
    clock.count(Inserts, "push_gradients", LAUNCHES)
    clock.count(binder, "prefixes_in_line", LAUNCHES)
    for owner, name in ((Ragged.__dict__["own_spans"], "func"), (Ragged, "prefix_spans")):
        clock.count(owner, name, BEFORE, inside=LAUNCHES)  # the first layer may be what asks for them
    if ahead := getattr(pack, "_ahead", None):  # older packages lay nothing out ahead
        clock.count(ahead, "lay_next", BEHIND)
    clock.begin(BEFORE)
    clock.seconds.clear()
    for _ in range(steps):
        pack.step(keys)
    clock.begin(BEFORE)
    return {part: clock.seconds[part] / steps for part in PARTS}


if __name__ == "__main__":
    main()
