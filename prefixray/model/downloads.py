"""Numbers of a GPU that the host reads while the GPU works on.

They are copied to pinned memory behind everything that was launched before. An event says when they are there. The host
launches more work before it waits for the event, so the GPU never runs out of work.
"""

from typing import Any

import torch
from torch import Tensor


class Download:
    """A tensor on its way to the host. Of a CPU it is there at once."""

    def __init__(self, tensor: Tensor) -> None:
        """Nobody may write to the tensor any more."""
        self._host = tensor.to("cpu", non_blocking=True)  # torch takes pinned memory for it
        self._arrival: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Any:  # noqa: ANN401
        """Its numbers as Python's, in nested lists; waits for their arrival."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host.tolist()
