"""Rows that run one behind another, without padding: a line.

Everything but attention treats tokens one by one, so a micro-batch of a decoder-only model is one row of all its
tokens. Where it attends, queries, keys and values stand in rows of their own again, in groups of like length, padded on
the right to their group's longest. A row may be a tree of rows that share their prompt (see `rows`).

Lines are filled up to few lengths (see `padded_count`). Fillers attend to nothing, and nothing looks at them.
"""

# N tokens of the line with its fillers, B rows of a group, S tokens of its longest, M padded tokens of all groups,
# H heads, D head dim

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prefixray.model.backend import padded_count

Move = Callable[[Tensor], Tensor]

GROUP_MULTIPLE = 8  # of which the length of a group's rows is one


class Ragged:
    """Where the tokens of a line stand in its groups' rows."""

    def __init__(
        self,
        lengths: Sequence[int],
        groups: Sequence[Sequence[int]],
        device: torch.device,
        *,
        starts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Rows of `lengths` in the order of the line, which of them each group has, and where their branches start."""
        self.groups = groups
        self._num_tokens = sum(lengths)
        num_fillers = padded_count(self._num_tokens) - self._num_tokens
        repeats = torch.tensor([*lengths[:-1], lengths[-1] + num_fillers])
        self.token_rows = torch.arange(len(lengths)).repeat_interleave(repeats).to(device)
        """(N,) the row of each token; fillers count to the last."""
        self._sizes = [
            (len(group), padded_count(max(lengths[row] for row in group), GROUP_MULTIPLE)) for group in groups
        ]
        firsts = [0, *itertools.accumulate(lengths)]
        tokens, is_token = [], []  # of each place: the token there, and whether it is not a row's last once more
        for group, (_, longest) in zip(groups, self._sizes, strict=True):
            for row in group:
                columns = torch.arange(longest)
                tokens.append(firsts[row] + columns.clamp(max=lengths[row] - 1))
                is_token.append(columns < lengths[row])
        there, kept = torch.cat(tokens), torch.cat(is_token)
        self._there = there.to(device)  # (M,)
        back = kept.nonzero()[:, 0][there[kept].argsort()]
        self._back = torch.cat([back, back.new_zeros(num_fillers)]).to(device)  # (N,) the place of each token
        self._padding = (~kept).nonzero()[:, 0].to(device)  # the places behind a row's last token
        forks = [[starts[row] for row in group] if starts else [] for group in groups]
        self.causal = [_masks(own, *size, device) for own, size in zip(forks, self._sizes, strict=True)]
        """Which tokens of its row a token of each group may look at, (B, 1, S, S): never at what stands behind it."""

    def spread(self, tokens: Tensor) -> list[Tensor]:
        """(1, H, N, D) -> of each group (B, H, S, D)."""
        num_heads, dim = tokens.shape[1], tokens.shape[3]
        flat = tokens[0].transpose(0, 1).flatten(1)
        padded: Tensor = _Moved.apply(flat, self._to_places, self._to_tokens)  # type: ignore[no-untyped-call]
        parts = padded.split([count * size for count, size in self._sizes])
        shaped = zip(parts, self._sizes, strict=True)
        return [part.view(count, size, num_heads, dim).transpose(1, 2) for part, (count, size) in shaped]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Of each group (B, S, H, D) -> (1, N, H, D)."""
        padded = torch.cat([part.flatten(2).flatten(0, 1) for part in parts])
        tokens: Tensor = _Moved.apply(padded, self._to_tokens, self._to_own_places)  # type: ignore[no-untyped-call]
        return tokens.view(1, -1, *parts[0].shape[2:])

    def _to_places(self, tokens: Tensor) -> Tensor:
        """(N, X) -> (M, X)."""
        return tokens.index_select(0, self._there)

    def _to_own_places(self, tokens: Tensor) -> Tensor:
        """The same, with zeros behind each row's last token."""
        return self._to_places(tokens).index_fill_(0, self._padding, 0.0)

    def _to_tokens(self, places: Tensor) -> Tensor:
        """(M, X) -> (N, X), with zeros for fillers."""
        tokens = places.index_select(0, self._back)
        tokens[self._num_tokens :] = 0.0
        return tokens


class _Moved(torch.autograd.Function):
    """What a function makes of a tensor; another one takes gradients back.

    Nothing flows back from padding: its queries' outputs are dropped, and nobody looks at its keys and values. So each
    token has one gradient, and none are added up, as `index_select`'s own backward would, slowly.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, there: Move, back: Move) -> Tensor:  # noqa: ANN401
        ctx.back = back
        return there(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        return ctx.back(gradients[0]), None, None


def _masks(starts: Sequence[Sequence[int]], num_rows: int, size: int, device: torch.device) -> Tensor:
    """Of rows that are as long, (B, 1, S, S): a token looks back, past branches that are not its own."""
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if not any(starts):
        return causal.expand(num_rows, 1, -1, -1)
    columns = torch.arange(size, device=device)
    edges = (torch.tensor(own, dtype=torch.long, device=device) for own in starts)
    branches = torch.stack([torch.bucketize(columns, own, right=True) for own in edges])  # (B, S), 0: the trunk
    return (causal & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None])))[:, None]
