"""The dropout of a model that is trained, drawn for each row by itself.

Whether an element is dropped depends on the seed, the place in the model, the row's number, the token's position in its
row and the channel, and on nothing else: not on which rows share a forward, nor on padding. So the rows of a step may
be cut into micro-batches in any way. Each element's draw is a hash of these numbers. No layer is dropped (`layerdrop`
of BART's relatives): one draw would hold for all rows of a forward.
"""

# B rows, S tokens, W width, N tokens of a line, H heads, S' keys, D head dim

import functools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prefixray.model.dropout.hashed_draws import kept, mixed, scaled


class RowDropout:
    """Takes the place of torch's dropout in one model while `drawing`."""

    def __init__(self, model: nn.Module) -> None:
        self._seed, self._module, self._calls = 0, 0, 0
        self._tokens: Tensor | None = None  # of a line: a number for each token, (N,)
        self._rows: Tensor | None = None  # (B,)
        for index, module in enumerate(model.modules()):
            module.register_forward_pre_hook(functools.partial(self._enter, index))
            if "layerdrop" in vars(module):
                vars(module)["layerdrop"] = 0.0

    @contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Drop by this seed. Functions of torch are exchanged for that time, since models call them by name."""
        stock = functional.dropout

        @functools.wraps(stock)
        def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            if not training or p == 0.0 or (tokens := self._token_numbers(input)) is None:
                return stock(input, p, training, inplace)
            self._calls += 1
            keys = mixed(tokens + self._place(self._module, self._calls))
            is_kept = kept(keys[:, None], torch.arange(input.shape[-1], device=input.device), p).view(input.shape)
            return scaled(input, is_kept, p)

        self._seed = seed
        functional.dropout = dropout
        try:
            yield
        finally:
            functional.dropout = stock
            self._tokens = self._rows = None

    def take(self, rows: Tensor, line: tuple[Tensor, Tensor] | None) -> None:
        """The rows of the coming forward by their numbers, (B,); of a line also each token's row and position, (N,)."""
        self._rows = rows
        self._tokens = None if line is None else _numbered(rows[line[0]], line[1])

    def attend(
        self,
        place: str,
        tensors: tuple[Tensor, Tensor, Tensor],  # queries (B, H, S, D), keys and values (B, K, S', D), prefixes first
        mask: Tensor,  # (B, 1 or H, S, S'), added to the scores
        numbers: Tensor,  # (B,)
        options: Any,  # noqa: ANN401
        num_own: int,  # keys behind the prefixes
    ) -> Tensor:
        """Attention with dropout of its weights, (B, S, H, D). Its backward runs it again: weights are not kept."""
        query = tensors[0]
        heads, queries = (torch.arange(count, device=query.device) for count in query.shape[1:3])
        steps = (heads[:, None] << 20) + queries  # not by the number of queries, which is padded
        keys = mixed(_numbered(numbers[:, None, None], steps) + self._place(zlib.crc32(place.encode()), 0))  # (B, H, S)
        attended = torch.utils.checkpoint.checkpoint(
            _attend, *tensors, mask, keys, options, num_own, use_reentrant=False, preserve_rng_state=False
        )
        assert isinstance(attended, Tensor)
        return attended

    def _enter(self, index: int, module: nn.Module, args: object) -> None:
        self._module, self._calls = index, 0

    def _place(self, *numbers: int) -> int:
        """The seed and a place in the model as one number of 62 bits."""
        return zlib.crc32(repr((self._seed, *numbers)).encode()) << 30 | zlib.crc32(
            repr((numbers, self._seed)).encode()
        )

    def _token_numbers(self, hidden: Tensor) -> Tensor | None:
        """A number for each token of (..., W), flat; None where its shape tells nothing of rows."""
        count = hidden.shape[:-1].numel()
        if self._tokens is not None:
            return self._tokens if count == len(self._tokens) else None
        if self._rows is None or count % len(self._rows):
            return None
        positions = torch.arange(count // len(self._rows), device=hidden.device)
        return _numbered(self._rows[:, None], positions).flatten()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: Tensor, options: dict[str, Any], num_own: int
) -> Tensor:
    p, scaling = options["dropout"], options.get("scaling")
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling) + mask
    weights = torch.softmax(scores, dim=3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    own = torch.arange(num_own, device=key.device)
    prefixes = -1 - torch.arange(key.shape[2] - num_own, device=key.device)  # shorter ones are padded behind
    is_kept = kept(keys[..., None], torch.cat([prefixes, own]), p)  # (B, H, S, S')
    output: Tensor = scaled(weights, is_kept, p) @ value
    return output.transpose(1, 2).contiguous()


def _numbered(rows: Tensor, columns: Tensor) -> Tensor:
    return rows * (1 << 32) + columns
