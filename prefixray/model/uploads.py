"""Small tensors of the host that go to a GPU in one copy.

A step needs about ten lists of numbers on the device: ids, positions, places, weights. Each is written into one pinned
buffer, and gets its place in a buffer of the device at once; `send` copies the one into the other, behind everything
that was launched before. The host does not wait for it.
"""

import torch
from torch import Tensor

_ALIGNED = 16  # bytes: where a tensor may start


class Uploads:
    """Tensors for one forward. On a CPU they are what they are."""

    def __init__(self, device: torch.device, num_bytes: int = 0) -> None:
        """`num_bytes`: room for what comes together. What has no room, or comes after `send`, is copied by itself."""
        self.device = device
        self._room = num_bytes if device.type == "cuda" else 0
        self._used = 0
        self._host, self._there = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)
        if self._room:
            self._host = torch.empty(self._room, dtype=torch.uint8, pin_memory=True)
            self._there = torch.empty(self._room, dtype=torch.uint8, device=device)

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, where nothing may be launched that reads it before `send`."""
        start, end = self._used, self._used + tensor.numel() * tensor.element_size()
        if tensor.numel() == 0:
            return torch.empty_like(tensor, device=self.device)
        if end > self._room:
            return tensor.to(self.device)
        self._used = -(-end // _ALIGNED) * _ALIGNED
        self._host[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return self._there[start:end].view(tensor.dtype).view(tensor.shape)

    def send(self) -> None:
        """Copy all of them."""
        used, self._room = min(self._used, self._room), 0
        if used:
            self._there[:used].copy_(self._host[:used], non_blocking=True)
