"""Policies of a search, replayed over recorded dev-loss curves: how much work each needs for a good configuration.

    python tests/bench/policies.py                                    # the repository's curves
    python tests/bench/policies.py --curves FILE ... --seats 1 4 16   # others, for packs of other sizes
    python tests/bench/policies.py --policies "stop" "auto" --trials 16 --seats 8 --repeats 1000

A curve file is a list of configurations, each with its dev losses by step under `curve`, up to the last step of its
schedule (`curves.py` records some), and perhaps those over a sample of a quarter of dev under `sample`. Of its other
keys, `method` and `mid_dim` say of which kind it is. In each repeat the configurations come in another order, as from a
sampler that learns nothing; with `--trials` so many of them are drawn. As many trials as there are seats train at once,
a step each in turn. A rung lies at the recorded step that is nearest to its share of the schedule. A trial whose loss
is not finite at a rung or at the end has failed. The policies are the objects that a sweep uses; `auto` is what it uses
by default.

Work is counted in steps of one trial, or with `--tokens` in target tokens. An evaluation on all of dev counts as
`--evaluation` steps: a forward pass over 32 pairs costs as much as 4 steps of a batch of 4. Where a row of the table
has a sample, a quarter of dev is evaluated at all rungs but the last, for a quarter of the work. A rung is replayed
with the losses over that sample where all curves of a file have them there; else with the order on all of dev. The best
configuration is the one with the lowest dev loss among the trials at the end of the schedule; while there is none,
among those at the highest rung. Regret is how far its loss at the end of the schedule lies above the lowest one of the
search.

The table has, for each policy, the median over the repeats of the work after which the regret stays within 0.01, 0.02
and 0.05 nats, with the middle nine tenths of the repeats in brackets (inf: never); the same for 0.02 nats as a share of
the first policy's work in the same repeat; all work; how many trials came to the end, and how often a paused one was
taken up; the mean final regret; and the share of repeats in which the very best configuration came to the end.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixray.planning.recorded import FOLDER, read_curves
from prefixray.search.policies.choice import AUTO_KEEP, AUTO_POLICY, AUTO_SHARES, DEV_SAMPLE, Rules, policy_by
from prefixray.search.policies.contract import Policy
from prefixray.search.policies.freeze_thaw import FreezeThaw
from prefixray.search.policies.halving import Halving, Promotion
from prefixray.search.policies.replay import Curve, Search
from prefixray.search.policies.settling import Settling

TARGETS = (0.01, 0.02, 0.05)  # nats above the best of a file


class OneKind(Promotion):
    """Promotion that takes all trials for one kind."""

    def begin(self, trial: str, kind: str) -> None:
        """Forget the kind."""


class Unopposed(Promotion):
    """Promotion that lets the first trial of each rung go on at once."""

    _fewest = 1


class OnePasses(Promotion):
    """Promotion by which one trial at least passes a rung."""

    _least = 1


class Whole(Promotion):
    """Promotion that lets the whole share go on from the first."""

    _early = 1.0


@dataclass(frozen=True)
class Row:
    """A policy of the table."""

    shares: tuple[float, ...]  # of the schedule, at which its rungs lie
    make: Callable[[Sequence[int], int], Policy]  # from its rungs and the steps of a schedule
    dev_sample: float = 1.0  # the share of dev on which all rungs but the last compare trials


def auto(rungs: Sequence[int], num_steps: int) -> Policy:
    """What a sweep uses by default."""
    return policy_by(Rules(AUTO_POLICY, tuple(rungs), AUTO_KEEP, DEV_SAMPLE), num_steps)


# The first is what most shipped sweeps did before `auto`.
POLICIES = {
    "stop": Row((0.2, 0.4), lambda rungs, _: Halving(rungs, 0.33)),
    "auto": Row(AUTO_SHARES, auto, DEV_SAMPLE),
    "auto, all of dev": Row(AUTO_SHARES, auto),
    "auto, unopposed": Row(AUTO_SHARES, lambda rungs, _: Unopposed(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, whole share": Row(AUTO_SHARES, lambda rungs, _: Whole(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, one passes": Row(AUTO_SHARES, lambda rungs, _: OnePasses(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, one kind": Row(AUTO_SHARES, lambda rungs, _: OneKind(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, keep 0.25": Row(AUTO_SHARES, lambda rungs, _: Promotion(rungs, 0.25), DEV_SAMPLE),
    "auto, keep 0.5": Row(AUTO_SHARES, lambda rungs, _: Promotion(rungs, 0.5), DEV_SAMPLE),
    "auto, keep 0.5, dev": Row(AUTO_SHARES, lambda rungs, _: Promotion(rungs, 0.5)),
    "auto, later rungs": Row((0.1, 0.33, 0.6), lambda rungs, _: Promotion(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, a fourth rung": Row((*AUTO_SHARES, 0.7), lambda rungs, _: Promotion(rungs, AUTO_KEEP), DEV_SAMPLE),
    "auto, rung at 0.05": Row((0.05, *AUTO_SHARES[1:]), lambda rungs, _: Promotion(rungs, AUTO_KEEP), DEV_SAMPLE),
    "stop, sample": Row((0.2, 0.4), lambda rungs, _: Halving(rungs, 0.33), DEV_SAMPLE),
    "stop, auto's rungs": Row(AUTO_SHARES, lambda rungs, _: Halving(rungs, 0.5), DEV_SAMPLE),
    "stop, keep 0.5": Row((0.2, 0.4), lambda rungs, _: Halving(rungs, 0.5)),
    "stop, short rungs": Row((0.05, 0.1, 0.2, 0.4), lambda rungs, _: Halving(rungs, 0.5)),
    "wide, a half": Row((0.025, 0.05, 0.1, 0.2, 0.4), lambda rungs, _: Halving(rungs, 0.5), DEV_SAMPLE),
    "wide, a third": Row((0.1, 0.33), lambda rungs, _: Halving(rungs, 0.33), DEV_SAMPLE),
    "promote": Row((0.2, 0.4), lambda rungs, _: Promotion(rungs, 0.33)),
    "promote, one rung": Row((0.33,), lambda rungs, _: Promotion(rungs, 0.33)),
    "promote, short rungs": Row((0.05, 0.1, 0.2, 0.4), lambda rungs, _: Promotion(rungs, 0.5)),
    "settle": Row(AUTO_SHARES, lambda rungs, _: Settling(rungs, AUTO_KEEP), DEV_SAMPLE),
    "settle, short rungs": Row((0.05, 0.1, 0.2, 0.4), lambda rungs, _: Settling(rungs, 0.5), DEV_SAMPLE),
    "freeze-thaw": Row(AUTO_SHARES, FreezeThaw),
    "none": Row((), lambda *_: Halving()),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each file of curves and each number of seats."""
    options = _options(arguments)
    for file in options.curves or sorted(FOLDER.glob("*.json")):
        curves = read_curves(file)
        for num_seats in options.seats:
            drawn = f"{options.trials} of " if options.trials else ""
            what = f"{drawn}{len(curves)} curves of {curves[0].num_steps} steps"
            print(f"\n{file.stem}: {what}, {num_seats} seats, {options.repeats} orders")
            print(table(curves, num_seats, options))


def table(curves: Sequence[Curve], num_seats: int, options: argparse.Namespace) -> str:
    """A row for each policy."""
    heads = [*(f"until {target:.2f} [90 %]" for target in TARGETS), "of the first's [90 %]"]
    row = "{:22}" + "{:>25}" * len(heads) + "{:>10}{:>7}{:>8}{:>10}{:>11}"
    lines = [row.format("policy", *heads, "all work", "ended", "resumed", "regret", "best kept")]
    first: list[float] = []
    for name in options.policies:
        searches = [
            replay(curves, name, order, num_seats, options.evaluation, options.trials)
            for order in range(options.repeats)
        ]
        works = [[search.work_until(target) * options.tokens for search in searches] for target in TARGETS]
        first = first or works[1]
        shares = [
            ours / theirs if theirs < math.inf else math.nan for ours, theirs in zip(works[1], first, strict=True)
        ]
        lines.append(
            row.format(
                name,
                *(_spread(work, ",.0f") for work in works),
                _spread([share for share in shares if not math.isnan(share)], ".2f"),
                f"{statistics.median(search.work for search in searches) * options.tokens:,.0f}",
                f"{statistics.mean(search.num_ended() for search in searches):.1f}",
                f"{statistics.mean(search.num_taken_up for search in searches):.1f}",
                f"{statistics.mean(search.final_regret() for search in searches):.4f}",
                f"{statistics.mean(search.kept_the_best() for search in searches):.0%}",
            )
        )
    return "\n".join(lines)


def replay(
    curves: Sequence[Curve], name: str, order: int, num_seats: int, evaluation: float, num_trials: int | None = None
) -> Search:
    """One search by one policy over the curves in one order, or over so many of them."""
    shuffled = random.Random(order).sample(curves, num_trials or len(curves))
    row = POLICIES[name]
    policy = row.make(_rungs(curves, row.shares), shuffled[0].num_steps)
    search = Search(shuffled, policy, evaluation, row.dev_sample)
    search.run(num_seats)
    return search


def _rungs(curves: Sequence[Curve], shares: Sequence[float]) -> list[int]:
    """The recorded steps that are nearest to shares of the schedule, each once; the last step is none."""
    recorded = sorted(set.intersection(*(set(curve.losses) for curve in curves)))
    nearest = {min(recorded[:-1], key=lambda step: abs(step - share * recorded[-1])) for share in shares}
    return sorted(nearest)


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and the middle nine tenths."""
    if not values:
        return "-"
    ranked = sorted(values)
    low, high = (ranked[round(share * (len(ranked) - 1))] for share in (0.05, 0.95))
    return f"{statistics.median_low(ranked):{form}} [{low:{form}}, {high:{form}}]"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", type=Path, metavar="FILE", help="instead of the repository's")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), metavar="POLICY")
    parser.add_argument("--trials", type=int, help="of each search, drawn from a file; without, all that it has")
    parser.add_argument("--seats", nargs="+", type=int, default=[4, 16], help="trials that train at once")
    parser.add_argument("--repeats", type=int, default=300, help="orders of the configurations")
    parser.add_argument("--evaluation", type=float, default=4.0, help="what an evaluation costs, in steps")
    parser.add_argument("--tokens", type=float, default=1.0, help="target tokens of a step; 1: work is in steps")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
