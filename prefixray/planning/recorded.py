"""Searches that are replayed over recorded dev-loss curves: how far trials come by a policy, and what it loses.

`curves/` has sets of random configurations that `tests/bench/curves.py` has trained over whole schedules, diverged ones
included. A replayed search draws its trials from one set. Its rungs lie at the same shares of the schedule.
"""

import functools
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixray.search.policies.contract import Policy
from prefixray.search.policies.replay import Curve, Search

FOLDER = Path(__file__).parent / "curves"
NUM_REPLAYS = 20
MOST_REPLAYED = 64  # trials; the counts of a larger search are in proportion


@dataclass(frozen=True)
class Replayed:
    """Means over replayed searches."""

    reached: tuple[float, ...]  # trials that come to each rung and the end
    steps: float  # of all trials
    regret: float  # nats by which the trial that is found lies above the best one; not a number where none was found


def read_curves(file: Path) -> list[Curve]:
    """The curves of a file: a list of configurations, each with its dev losses by step under `curve`.

    Those over a sample of dev are under `sample`, as far as they are known.
    """
    entries = json.loads(file.read_text(encoding="utf-8"))
    return [Curve(_losses(entry["curve"]), _kind(entry), _losses(entry.get("sample", {}))) for entry in entries]


@functools.cache
def recorded() -> Mapping[str, list[Curve]]:
    """The sets of recorded curves, by their names."""
    return {file.stem: read_curves(file) for file in sorted(FOLDER.glob("*.json"))}


def replayed(make: Callable[[], Policy], *, num_trials: int, num_steps: int, num_seats: int) -> Replayed:
    """How far the trials of a search come by a policy: means over searches that draw their trials from one set each.

    `make` gives the policy before its first trial. The same trials are drawn for each policy.
    """
    num_drawn = min(num_trials, MOST_REPLAYED)
    scale = num_trials / num_drawn
    sets, searches = list(recorded().values()), []
    for order in range(NUM_REPLAYS):
        policy = make()
        ends = (*policy.rungs, num_steps)
        drawn = random.Random(order).choices(sets[order % len(sets)], k=num_drawn)
        curves = [Curve({end: loss_at(curve, end / num_steps) for end in ends}, curve.kind) for curve in drawn]
        searches.append(Search(curves, policy, evaluation=0.0))
        searches[-1].run(max(1, round(num_seats / scale)))
    regrets = [regret for search in searches if math.isfinite(regret := search.final_regret())]
    return Replayed(
        reached=tuple(scale * statistics.mean(search.num_reached(end) for search in searches) for end in ends),
        steps=scale * statistics.mean(search.work for search in searches),
        regret=statistics.mean(regrets) if regrets else math.nan,
    )


def loss_at(curve: Curve, share: float) -> float:
    """The loss at a share of the schedule, between two recorded steps on the line that joins them."""
    step, steps = share * curve.num_steps, sorted(curve.losses)
    after = next((recorded for recorded in steps if recorded >= step), steps[-1])
    before = max((recorded for recorded in steps if recorded <= step), default=after)
    losses = curve.losses[before], curve.losses[after]
    if before == after or math.inf in losses:
        return max(losses)
    return losses[0] + (losses[1] - losses[0]) * (step - before) / (after - before)


def curves_text() -> str:
    """Of how many curves each set consists: `64 of prefix_e2e, 64 of lora_e2e`."""
    return ", ".join(f"{len(curves)} of {name}" for name, curves in recorded().items())


def _kind(entry: Mapping[str, Any]) -> str:
    """The kind of a recorded configuration, as its trial would have it."""
    return f"{entry.get('method', '')} {'flat' if entry.get('mid_dim') is None else 'network'}"


def _losses(recorded: Mapping[str, float | None]) -> dict[int, float]:
    return {int(step): _finite(loss) for step, loss in recorded.items()}


def _finite(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf
