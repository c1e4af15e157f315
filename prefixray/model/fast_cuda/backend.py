"""The backend of a GPU."""

from torch import Tensor

from prefixray.model.fast_cuda import unpadded
from prefixray.model.plain import LinePrefix, PlainBackend, Spans


class CUDABackend(PlainBackend):
    """Stock torch, with the products and the updates of many trials as one, and lines that attend without padding."""

    stacks_trials = True
    updates_together = True
    lays_ahead = True
    reads_late = True
    mask_multiple = 8
    """What torch's memory-efficient attention wants, which attends where flash attention cannot: in fp32, with T5's
    bias, side by side under a mask. Each call copies a mask that lies otherwise, in two launches (`preprocess_mask` in
    torch's aten/src/ATen/native/transformers/attention.cpp). Here a mask is made so, once for all layers. The memory of
    its rows is filled up, not the prefixes: wider ones would be more keys for every row, and no fewer launches.
    """

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
