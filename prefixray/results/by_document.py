"""Runs over several documents: those of one seed, one for each document, count as one model in the table.

Each document's questions are answered by the document's own run. Scores are counted for each source, so those of one
seed stand behind one another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefixray.data import Sourced
from prefixray.metrics import Scored
from prefixray.metrics.challenge_words import WordForm
from prefixray.results.final_run import FinalRun
from prefixray.results.hypotheses import read_hypotheses, sources_about
from prefixray.results.record import DocumentResult
from prefixray.results.scores import score_of
from prefixray.trial import BEST_LOSS


@dataclass(frozen=True)
class Part:
    """Where a model has decoded a split: the whole, or what it has about a document."""

    folder: Path
    document: str | None = None


def parts_of(runs: Sequence[FinalRun]) -> list[Part]:
    """What one seed's runs decode."""
    return [Part(run.folder, run.document) for run in runs]


def score_together(
    parts: Sequence[Part],
    split: str,
    sources: Sequence[Sourced],
    metrics: Sequence[str],
    form: WordForm | None = None,
) -> dict[str, Scored]:
    """The scores of one seed on all sources, which stand in the order of the parts' documents.

    A metric gets all hypotheses at once: one of the user's own may compare them.
    """
    with_sources = [part for part in parts if sources_about(sources, part.document)]
    return score_of([part.folder for part in with_sources], split, sources, metrics, form)


def read_together(parts: Sequence[Part], split: str) -> list[str]:
    """The hypotheses of one seed, in the order of the sources."""
    return [text for part in parts for text in read_hypotheses(part.folder, split)]


def of_documents(
    runs: Sequence[FinalRun], scored: Mapping[str, Scored], sources: Sequence[Sourced]
) -> dict[str, DocumentResult]:
    """What one seed's runs are and score, by document; empty where the task has no documents."""
    found = {}
    for run in runs:
        name, result = run.document or sources[0].document, run.result() or {}
        if name is None:
            return {}
        rows = [row for row, sourced in enumerate(sources) if sourced.document == name]
        parts = {metric: replace(score, statistics=score.statistics[rows]) for metric, score in scored.items()}
        found[name] = DocumentResult(
            folder=run.name,
            scores={metric: part.corpus() for metric, part in parts.items()} if rows else {},
            dev_loss=result["metrics"][BEST_LOSS],
        )
    return found
