"""The final runs of each arm."""

import logging
from collections.abc import Sequence
from pathlib import Path

from prefixray.config.schema import ArmConfig
from prefixray.data import Sourced
from prefixray.metrics import higher_is_better
from prefixray.results.compare import FinalRun, score_of
from prefixray.search.study import Record

logger = logging.getLogger(__name__)


def final_runs(arm: ArmConfig, record: Record | None, replicates: Sequence[int], folder: Path) -> list[FinalRun]:
    """The runs of one configuration: a record of the search, or the arm's only configuration."""
    number = 0 if record is None else record.number
    config = arm.trial({} if record is None else record.values)
    return [
        FinalRun(arm, config, number, replicate, folder / "final" / f"{arm.name}-{number}-{replicate}")
        for replicate in replicates
    ]


def best_candidate(runs: Sequence[FinalRun], sources: Sequence[Sourced], metric: str) -> FinalRun:
    """The candidate whose dev hypotheses score best."""
    sign = 1.0 if higher_is_better(metric) else -1.0
    scores = {run.item: score_of(run.folder, "dev", sources, [metric])[metric].corpus() for run in runs}
    logger.info("candidates on dev: %s", ", ".join(f"{item} {value:.2f}" for item, value in scores.items()))
    return max(runs, key=lambda run: sign * scores[run.item])
