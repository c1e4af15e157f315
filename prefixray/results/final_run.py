"""A training run of the final stage: what it trains, and where its files are."""

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

    @property
    def item(self) -> str:
        """Its name in the study."""
        return f"{self.number}@{self.replicate}"

    @property
    def name(self) -> str:
        """Its name everywhere else."""
        return final_name(self.arm.name, self.number, self.replicate)

    @property
    def artifact(self) -> Path:
        """The folder of its state with the best dev loss."""
        return TrialFolder(self.folder).artifact

    def result(self) -> dict[str, Any] | None:
        """The content of its result.json; None where it has not ended well."""
        result = TrialFolder(self.folder).result()
        return None if result is None or result["state"] != "done" else result
