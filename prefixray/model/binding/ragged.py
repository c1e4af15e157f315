"""Ragged rows: the rows of a micro-batch stand one behind another in one line, without padding.

Everything but attention treats tokens one by one, so a micro-batch of a decoder-only model can be one row of all its
tokens. For attention, queries, keys and values are spread into rows again: groups of rows of like length, each padded
on the right to the longest of its group. A row may be a tree of rows that share their prompt (see `batching/rows.py`).

The length of a line is rounded up (see `padded_count`). The fillers attend to nothing, and nothing looks at them.
"""

# N tokens of the line with its fillers, B rows of a group, S tokens of its longest, M padded tokens of all groups,
# H heads, D head dim

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from prefixray.model.backend import padded_count

GROUP_MULTIPLE = 8  # to which the length of a group's rows is rounded up


class Ragged:
    """Where the tokens of a line stand in the rows of its groups."""

    def __init__(
        self,
        lengths: Sequence[int],
        groups: Sequence[Sequence[int]],
        device: torch.device,
        *,
        starts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`lengths` of the rows in the line's order, the rows of each group, and where each row's branches start."""
        self.groups = groups
        self._num_tokens = sum(lengths)
        num_fillers = padded_count(self._num_tokens) - self._num_tokens
        repeats = torch.tensor([*lengths[:-1], lengths[-1] + num_fillers])
        self.token_rows = torch.arange(len(lengths)).repeat_interleave(repeats).to(device)
        """(N,) the row of each token; fillers count as the last row's."""
        self._sizes = [
            (len(group), padded_count(max(lengths[row] for row in group), GROUP_MULTIPLE)) for group in groups
        ]
        firsts = [0, *itertools.accumulate(lengths)]
        tokens, is_token = [], []  # of each place: its token; whether it is no padding, which repeats the last token
        for group, (_, longest) in zip(groups, self._sizes, strict=True):
            for row in group:
                columns = torch.arange(longest)
                tokens.append(firsts[row] + columns.clamp(max=lengths[row] - 1))
                is_token.append(columns < lengths[row])
        place_tokens, is_filled = torch.cat(tokens), torch.cat(is_token)
        self._place_tokens = place_tokens.to(device)  # (M,) the token of each place
        token_places = is_filled.nonzero()[:, 0][place_tokens[is_filled].argsort()]
        self._token_places = torch.cat([token_places, token_places.new_zeros(num_fillers)]).to(device)  # (N,)
        forks = [[starts[row] for row in group] if starts else [] for group in groups]
        self.causal = [_masks(own, *size, device) for own, size in zip(forks, self._sizes, strict=True)]
        """By group, which tokens of its row a token may look at, (B, 1, S, S): never at tokens behind it."""

    def spread(self, tokens: Tensor) -> list[Tensor]:
        """Into rows: (1, H, N, D) -> (B, H, S, D) for each group."""
        num_heads, dim = tokens.shape[1], tokens.shape[3]
        padded = tokens[0].transpose(0, 1).flatten(1).index_select(0, self._place_tokens)  # (M, H * D)
        parts = padded.split([count * size for count, size in self._sizes])
        shaped = zip(parts, self._sizes, strict=True)
        return [part.view(count, size, num_heads, dim).transpose(1, 2) for part, (count, size) in shaped]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Back into the line: (B, S, H, D) of each group -> (1, N, H, D), with zeros for fillers."""
        padded = torch.cat([part.flatten(2).flatten(0, 1) for part in parts])  # (M, H * D)
        tokens = padded.index_select(0, self._token_places)
        tokens[self._num_tokens :] = 0.0
        return tokens.view(1, -1, *parts[0].shape[2:])


def _masks(starts: Sequence[Sequence[int]], num_rows: int, size: int, device: torch.device) -> Tensor:
    """Masks of rows of one length, (B, 1, S, S): a token looks back, but not into branches that are not its own."""
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if not any(starts):
        return causal.expand(num_rows, 1, -1, -1)
    columns = torch.arange(size, device=device)
    edges = (torch.tensor(own, dtype=torch.long, device=device) for own in starts)
    branches = torch.stack([torch.bucketize(columns, own, right=True) for own in edges])  # (B, S), 0: the trunk
    return (causal & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None])))[:, None]
