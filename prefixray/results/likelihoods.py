"""What a model makes of a split's references, as a file beside its hypotheses: `SPLIT.likelihoods.json`.

The worker that decodes the split writes it, where a metric is to be computed from it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefixray.errors import UserError
from prefixray.metrics import Scored, of_likelihoods
from prefixray.system.atomic_files import write_whole


@dataclass(frozen=True)
class Likelihoods:
    """Of each source in turn: sums over the tokens of its first reference, the end token included, in nats."""

    num_tokens: Sequence[int]
    nll: Sequence[float]  # negative log-likelihoods
    divergence: Sequence[float] | None  # from the teacher; None: a source has none

    def scored(self, metric: str) -> Scored:
        """One metric's statistics. Raises `UserError` for a divergence where there is no teacher."""
        sums = {"perplexity": self.nll, "divergence": self.divergence}[metric]
        if sums is None:
            raise UserError(f"test/{metric}: the task has no teacher for these sources; take test/perplexity")
        return of_likelihoods(metric, sums, self.num_tokens)


def write_likelihoods(folder: Path, split: str, likelihoods: Likelihoods, made_from: Mapping[str, Any]) -> None:
    """Write `SPLIT.likelihoods.json`; `made_from` says which model and which sources the sums are of."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"made_from": made_from, **asdict(likelihoods)}
    write_whole(_file(folder, split), json.dumps(record) + "\n")


def likelihoods_made_from(folder: Path, split: str) -> Any:  # noqa: ANN401  # plain values
    """What the file in this folder was made from; None where it is missing or damaged."""
    return _read(folder, split).get("made_from")


def read_likelihoods(folder: Path, split: str) -> Likelihoods:
    """What `write_likelihoods` wrote. Raises `UserError` where that is missing or damaged."""
    record = _read(folder, split)
    try:
        return Likelihoods(record["num_tokens"], record["nll"], record["divergence"])
    except KeyError:
        problem = "no such file, or a damaged one; the sweep's command makes it again"
        raise UserError(f"{_file(folder, split)}: {problem}") from None


def _read(folder: Path, split: str) -> dict[str, Any]:
    try:
        record = json.loads(_file(folder, split).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.likelihoods.json"
