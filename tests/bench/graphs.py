"""What CUDA graphs over a step could gain at the most: a model, from counted launches and from E2E's lengths.

    python tests/bench/graphs.py
    python tests/bench/graphs.py --launch-us 5 10 15

A graph is captured for shapes and replayed where they recur. Of a step of E2E (batch 10, rows drawn from 200, no
prompts shared) tokens and targets are filled up to multiples; rows are as many in every step. For each pack and pair of
multiples: what fillers add to the tokens beyond what they add today, how many shapes come in so many steps, and how
many of the steps find their graph, when the 16 that were used last are kept.

The gain is a bound, not a measurement. Without graphs a step takes the longer of its launches and of the device's work
(`launches.py` counts both, for gpt2-medium's shape; `day/counted.json`). With them a step that finds its graph launches
nothing at all and works on its fillers, too; one that does not find it takes twice its time, to run and to be captured.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
from cases import e2e
from numpy.typing import NDArray

COUNTED = Path(__file__).parent / "day/counted.json"
ARMS = ("network 1", "network 4", "network 16", "adapter 1", "adapter 4", "lora 16")
BATCH_SIZE, KEPT = 10, 16
FLOPS_A_SECOND, BYTES_A_SECOND = 0.7 * 790e12, 3.0e12  # an H100's, as in launches.py
TODAY, MULTIPLES = (64, 16), ((64, 16), (256, 64), (1024, 256))  # of tokens and of targets; as packs are filled now


@dataclass(frozen=True)
class Recurring:
    """How shapes recur where tokens and targets are filled up."""

    fillers: float  # share of the tokens
    shapes: int
    hits: float  # share of the steps


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch-us", nargs="+", type=float, default=[5.0, 10.0], help="what a launch takes the host")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    counted = json.loads(COUNTED.read_text())
    rows = np.array([[row.num_inputs, row.num_targets] for row in e2e()[0]])
    print(f"{'pack of':<9}{'multiples':>11}{'fillers':>9}{'shapes':>8}{'found':>7}   of {options.steps} steps")
    found: dict[int, list[Recurring]] = {}
    for trials in dict.fromkeys(int(arm.split()[1]) for arm in ARMS):
        found[trials] = [recurring(rows, trials, multiples, options.steps) for multiples in MULTIPLES]
        for multiples, one in zip(MULTIPLES, found[trials], strict=True):
            name = ", ".join(map(str, multiples))
            print(f"{trials:<9}{name:>11}{one.fillers:>9.1%}{one.shapes:>8}{one.hits:>7.0%}")
    print("\nmodelled for an H100: the most that graphs gain, at the best of these multiples")
    print(f"{'':<12}{'launches':>9}{'device ms':>11}" + "".join(f"{f'{us:g} us':>8}" for us in options.launch_us))
    for arm in (name for name in ARMS if name in counted):
        gains = [max(gain(counted[arm], us, one) for one in found[int(arm.split()[1])]) for us in options.launch_us]
        line = f"{arm:<12}{counted[arm]['launches']:>9.0f}{1e3 * device_seconds(counted[arm]):>11.2f}"
        print(line + "".join(f"{ratio:>7.2f}x" for ratio in gains))


def recurring(rows: NDArray[np.int_], trials: int, multiples: tuple[int, int], steps: int) -> Recurring:
    """Of steps of a pack whose trials each draw their rows from these, (rows, 2): tokens and targets."""
    draw, kept, seen = np.random.default_rng(1), list[tuple[int, ...]](), Counter[tuple[int, ...]]()
    added, total, hits = 0, 0, 0
    for _ in range(steps):
        chosen = np.concatenate([draw.choice(len(rows), BATCH_SIZE, replace=False) for _ in range(trials)])
        sizes = rows[chosen].sum(axis=0)
        shape = tuple(int(-(-size // multiple) * multiple) for size, multiple in zip(sizes, multiples, strict=True))
        if shape in kept:
            hits += 1
            kept.remove(shape)
        kept = [shape, *kept[: KEPT - 1]]
        seen[shape] += 1
        total += int(sizes[0])
        added += shape[0] - -(-int(sizes[0]) // TODAY[0]) * TODAY[0]  # more than without graphs
    return Recurring(added / total, len(seen), hits / steps)


def gain(counted: dict[str, float], launch_us: float, shapes: Recurring) -> float:
    """How many times as fast steps are, given what one launches and moves."""
    device, launching = device_seconds(counted), 1e-6 * launch_us * counted["launches"]
    without = max(launching, device)
    of_hit, of_miss = device * (1 + shapes.fillers), 2 * max(launching, device * (1 + shapes.fillers))
    return without / (shapes.hits * of_hit + (1 - shapes.hits) * of_miss)


def device_seconds(counted: dict[str, float]) -> float:
    """What the work of a step takes the device."""
    return 1e9 * counted["gigaflops"] / FLOPS_A_SECOND + 1e6 * counted["megabytes"] / BYTES_A_SECOND


if __name__ == "__main__":
    main()
