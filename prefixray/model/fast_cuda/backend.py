"""The backend of a GPU."""

from torch import Tensor

from prefixray.model.fast_cuda import unpadded
from prefixray.model.plain import LinePrefix, PlainBackend, Spans


class CUDABackend(PlainBackend):
    """Stock torch, with the products and the updates of many trials as one, and lines that attend without padding."""

    stacks_trials = True
    updates_together = True
    lays_ahead = True

    def attends_unpadded(self, query: Tensor) -> bool:
        """See `PlainBackend`."""
        return unpadded.knows(query.dtype, query.shape[-1])

    def attend_unpadded(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        own: Spans,
        prefix: LinePrefix | None,
        scaling: float | None,
    ) -> Tensor:
        """See `PlainBackend`."""
        return unpadded.attend(query, key, value, own, prefix, scaling)
