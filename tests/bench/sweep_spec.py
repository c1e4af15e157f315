"""What the searches of `whole_sweep.py` are about, and what came of a trial: nothing here needs a library."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spec:
    """What a search is about; ours is given the same."""

    base: str  # a folder
    train: str  # JSONL of source and target
    dev: str
    separator: str  # text between the two
    precision: str  # "fp32" or "bf16"
    num_trials: int
    at_once: int
    num_steps: int
    first_rung: int | None  # ASHA's grace period: half of the trials go on there, and at each doubling of it
    warmup_steps: int
    batch_size: int
    preseqlen: tuple[int, ...]
    mid_dim: tuple[int | None, ...]
    learning_rate: tuple[tuple[float, float], ...]  # a range for each mid_dim
    max_source_tokens: int = 512
    max_target_tokens: int = 128
    seed: int = 1
    reuses_actors: bool = False
    """Tune's own default."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """ASHA's, where trials are evaluated; they are at the end, too."""
        doublings = range(self.num_steps.bit_length() if self.first_rung else 0)
        return tuple(rung for k in doublings if (rung := (self.first_rung or 0) << k) < self.num_steps)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Spec":
        """Read what `save` wrote."""
        content = json.loads(file.read_text(encoding="utf-8"))
        lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        lists["learning_rate"] = tuple(map(tuple, content["learning_rate"]))
        return cls(**{**content, **lists})


@dataclass
class TrialTimes:
    """What came of a trial, and when; UNIX times."""

    proposed: float
    first_step: float | None = None
    ended: float | None = None
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    state: str = "running"
    config: dict[str, Any] = field(default_factory=dict)  # what the search has proposed
