"""Every arm's scores on test, on all sources and on their groups, with intervals, differences and p values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prefixray.data import Sourced
from prefixray.metrics import Scored, is_of_likelihoods
from prefixray.metrics.challenge_words import WordForm
from prefixray.results.hypotheses import read_hypotheses, score_all
from prefixray.results.likelihoods import read_likelihoods
from prefixray.results.record import UNTRAINED, ArmResult, GroupResult, Interval
from prefixray.results.statistics import Comparison, Draws, Estimate, compare, intervals

MOST_GROUPS = 4
"""Where there are more groups of test sources, none is scored apart: XSum's articles have dozens of topics."""


def score_of(
    folders: Sequence[Path],
    split: str,
    sources: Sequence[Sourced],
    metrics: Sequence[str],
    form: WordForm | None = None,
) -> dict[str, Scored]:
    """The scores of what was decoded into folders, in the order of sources; texts are compared in this form."""
    read = [metric for metric in metrics if is_of_likelihoods(metric)]
    of_texts = [metric for metric in metrics if metric not in read]
    hypotheses = [text for folder in folders for text in read_hypotheses(folder, split)]
    scored = score_all(hypotheses, sources, of_texts, form)
    if read:
        parts = [read_likelihoods(folder, split) for folder in folders]
        for metric in read:
            of_parts = [part.scored(metric) for part in parts]
            statistics = np.concatenate([part.statistics for part in of_parts])
            scored[metric] = replace(of_parts[0], statistics=statistics)
    return {metric: scored[metric] for metric in metrics}


@dataclass(frozen=True)
class Scores:
    """Every arm's scores on test, and the settings of their comparison."""

    by_arm: Mapping[str, Sequence[Mapping[str, Scored]]]  # a mapping by metric for each seed
    metrics: Sequence[str]
    primary: str
    reference: str
    draws: Draws

    def of(self, metric: str) -> dict[str, list[Scored]]:
        """One metric's scores, a list of seeds for each arm."""
        return {arm: [seed[metric] for seed in seeds] for arm, seeds in self.by_arm.items()}

    def distances(self, arm: str) -> list[Estimate | None]:
        """How far each arm in turn is from this arm by the primary metric; nothing where there is no such arm."""
        if arm not in self.by_arm:
            return []
        return [comparison.difference for comparison in intervals(self.of(self.primary), arm, **self.draws)]

    def compare(self) -> dict[str, dict[str, Comparison]]:
        """Intervals by metric and arm, for the primary metric also p values.

        Untrained arms are no rivals: they cost no arm its p.
        """
        others = [metric for metric in self.metrics if metric != self.primary]
        compared = {metric: _by_arm(intervals(self.of(metric), self.reference, **self.draws)) for metric in others}
        primary = compare(self.of(self.primary), self.reference, UNTRAINED, **self.draws)
        return {self.primary: _by_arm(primary), **compared}


def groups_of(sources: Sequence[Sourced]) -> dict[str, list[int]]:
    """The rows of each group's sources; none where there are more than a table can show.

    Where no source has a group, each document's are one.
    """
    rows: dict[str, list[int]] = {}
    has_groups = any(sourced.group for sourced in sources)
    for row, sourced in enumerate(sources):
        if (group := sourced.group if has_groups else sourced.document) is not None:
            rows.setdefault(group, []).append(row)
    return dict(sorted(rows.items())) if 1 < len(rows) <= MOST_GROUPS else {}


def group_note(sources: Sequence[Sourced]) -> list[str]:
    """A note where the groups of sources are too many for a table; documents are no groups here."""
    groups = {sourced.group for sourced in sources if sourced.group not in (None, sourced.document)}
    note = f"task.columns.group: {len(groups)} groups of test sources, more than {MOST_GROUPS}: none is scored alone"
    return [note] if len(groups) > MOST_GROUPS else []


def add_group(name: str, rows: Sequence[int], arms: Sequence[ArmResult], scores: Scores) -> None:
    """Score a group alone and write that into the arms; NIST's and CIDEr's weights stay those of all references."""
    for metric in scores.metrics:
        part = {
            arm: [replace(seed, statistics=seed.statistics[rows]) for seed in seeds]
            for arm, seeds in scores.of(metric).items()
        }
        compared = _by_arm(intervals(part, scores.reference, **scores.draws))
        for arm in arms:
            comparison = compared[arm["arm"]]
            empty = GroupResult(num_sources=len(rows), scores={}, difference=None)
            group = arm.setdefault("groups", {}).setdefault(name, empty)
            group["scores"][metric] = as_interval(comparison.score)
            if metric == scores.primary and comparison.difference is not None:
                group["difference"] = as_interval(comparison.difference)


def as_interval(estimate: Estimate) -> Interval:
    """An estimate as the record has it."""
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


def _by_arm(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    return {comparison.arm: comparison for comparison in comparisons}
