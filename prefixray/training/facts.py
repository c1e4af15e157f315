"""The facts that a worker finds out when it has loaded the base and the data; slots, speeds and tables need them.

The driver reads them, so this module is free of torch.
"""

from dataclasses import dataclass

from prefixray.batching.lengths import Lengths
from prefixray.model.shape import Shape
from prefixray.results.record import Provenance
from prefixray.system.path_or_hub import is_commit


@dataclass(frozen=True)
class WorkerFacts(Provenance):
    """The provenance of a worker's numbers, and the sizes that its memory and its speed are computed from."""

    shape: Shape
    free_bytes: int  # of the device's memory, beside the base
    num_dev: int  # examples that the dev loss is taken over
    num_test: int  # sources that are decoded
    train_lengths: Lengths
    dev_lengths: Lengths  # a prompt that several rows share is counted once
    step_bytes: int | None = None  # of these, what a step's tokens take on a GPU; None: not measured
    rows_digest: str = ""  # of the first subset's rows to train on, in the base's tokens

    @property
    def commit(self) -> str | None:
        """The commit of a base of the hub; None of any other."""
        return self.base_digest if is_commit(self.base_digest) else None

    @property
    def content(self) -> list[str]:
        """What may change under the same names, and the numbers of trials with it: digests, the precision."""
        return [self.base_digest, self.data_digest, self.rows_digest, self.precision]
