"""A training run of the final stage: what it trains, and where its files are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefixray.config.schema import ArmConfig
from prefixray.config.trials import TrialConfig
from prefixray.trial import TrialFolder, final_name


@dataclass(frozen=True)
class FinalRun:
    """One training run of the final stage."""

    arm: ArmConfig
    config: TrialConfig
    number: int  # the search trial that the configuration comes from; 0 where nothing was searched
    replicate: int
    folder: Path
    document: str | None = None  # the one that it is about, where there are several

    @property
    def item(self) -> str:
        """Its name in the study."""
        return f"{self.number}@{self.replicate}" + ("" if self.document is None else f"@{self.document}")

    @property
    def name(self) -> str:
        """Its name everywhere else."""
        return final_name(self.arm.name, self.number, self.replicate, self.document)

    @property
    def artifact(self) -> Path:
        """The folder of its state with the best dev loss."""
        return TrialFolder(self.folder).artifact

    def result(self) -> dict[str, Any] | None:
        """The content of its result.json; None where it has not ended well."""
        result = TrialFolder(self.folder).result()
        return None if result is None or result["state"] != "done" else result


def by_seed(runs: Sequence[FinalRun]) -> list[list[FinalRun]]:
    """The runs of each configuration and seed: one for each document, one where there are not several."""
    groups: dict[tuple[int, int], list[FinalRun]] = {}
    for run in runs:
        groups.setdefault((run.number, run.replicate), []).append(run)
    return list(groups.values())


def complete(runs: Sequence[FinalRun]) -> list[FinalRun]:
    """The runs of those seeds of which all runs have ended well: a table has all documents, or none of a seed."""
    return [run for of_seed in by_seed(runs) if all(each.result() is not None for each in of_seed) for run in of_seed]
