"""Ragged rows: the rows of a micro-batch stand one behind another in one line, without padding.

Everything but attention treats tokens one by one, so a micro-batch of a decoder-only model can be one row of all its
tokens. For attention, queries, keys and values are spread into rows again: groups of rows of like length, each padded
on the right to the longest of its group. Where the device attends without padding, spans of the line take their place.
A row may be a tree of rows that share their prompt (see `batching/rows.py`).

The length of a line is rounded up (see `padded_count`). Nothing looks at the fillers, and they get no
gradients.
"""

# N tokens of the line with its fillers, B rows of a group, S tokens of its longest, M padded tokens of all groups,
# H heads, D head dim

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from prefixray.model.backend import padded_count
from prefixray.model.plain import Spans
from prefixray.model.uploads import Uploads

GROUP_MULTIPLE = 8  # to which the length of a group's rows is rounded up


class Ragged:
    """Where the tokens of a line stand in the rows of its groups, and in its spans; both are made when asked for."""

    def __init__(
        self,
        lengths: Sequence[int],
        groups: Sequence[Sequence[int]],
        uploads: Uploads,
        *,
        starts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`lengths` of the rows in the line's order, the rows of each group, and where each row's branches start."""
        self.groups = groups
        self._lengths, self._uploads = lengths, uploads
        self._starts = starts or [()] * len(lengths)
        self._num_tokens = sum(lengths)
        self._num_fillers = padded_count(self._num_tokens) - self._num_tokens
        ends = list(itertools.accumulate(lengths))
        self.edges = [0, *ends[:-1], ends[-1] + self._num_fillers]
        """Where each row starts, and the end of the last; fillers count as the last row's."""
        repeats = torch.tensor([*lengths[:-1], lengths[-1] + self._num_fillers])
        self.token_rows = uploads.add(torch.arange(len(lengths)).repeat_interleave(repeats))
        """(N,) the row of each token; fillers count as the last row's."""
        self.is_prepared_unpadded = False
        self._sizes = [
            (len(group), padded_count(max(lengths[row] for row in group), GROUP_MULTIPLE)) for group in groups
        ]

    def prepare(self, *, unpadded: bool) -> None:
        """Make what attention will ask for, so that it goes to the device with everything else."""
        self.is_prepared_unpadded = unpadded
        _ = self.own_spans if unpadded else (self._places, self._branches)

    def of_tokens(self, per_row: Sequence[int]) -> Tensor:
        """The number of each token's row, (N,)."""
        repeats = torch.tensor([*self._lengths[:-1], self._lengths[-1] + self._num_fillers])
        return self._uploads.add(torch.tensor(per_row).repeat_interleave(repeats))

    @cached_property
    def positions(self) -> Tensor:
        """The position of each token in its row, (N,), on the host; a branch's come behind its trunk's."""
        counts, firsts = list[int](), list[int]()  # tokens of a row, trunk or branch, and where its position 0 would be
        for first, length, starts in zip(self.edges, self._lengths, self._starts, strict=False):
            trunk = starts[0] if starts else 0
            for start, end in itertools.pairwise([0, *starts, length]):
                counts.append(end - start)
                firsts.append(first + max(0, start - trunk))
        own = torch.arange(self._num_tokens) - torch.tensor(firsts).repeat_interleave(torch.tensor(counts))
        return torch.cat([own, own.new_zeros(self._num_fillers)])

    @cached_property
    def causal(self) -> list[Tensor]:
        """By group, which tokens of its row a token may look at, (B, 1, S, S): never at tokens behind it."""
        device = self._uploads.device
        return [_masks(own, *size, device) for own, size in zip(self._branches, self._sizes, strict=True)]

    @cached_property
    def _branches(self) -> list[Tensor | None]:
        """By group, the branch of each token of its rows, (B, S), 0 in a trunk; None where no row is a tree."""
        forks = [[torch.tensor(self._starts[row], dtype=torch.long) for row in group] for group in self.groups]
        of_groups = zip(forks, self._sizes, strict=True)
        return [
            self._uploads.add(torch.stack([torch.bucketize(torch.arange(size), own, right=True) for own in group]))
            if any(map(len, group))
            else None
            for group, (_, size) in of_groups
        ]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The token of each place in the groups' rows, (M,), and the place of each token, (N,)."""
        firsts = [0, *itertools.accumulate(self._lengths)]
        tokens, is_token = [], []  # of each place: its token; whether it is no padding, which repeats the last token
        for group, (_, longest) in zip(self.groups, self._sizes, strict=True):
            for row in group:
                columns = torch.arange(longest)
                tokens.append(firsts[row] + columns.clamp(max=self._lengths[row] - 1))
                is_token.append(columns < self._lengths[row])
        place_tokens, is_filled = torch.cat(tokens), torch.cat(is_token)
        token_places = is_filled.nonzero()[:, 0][place_tokens[is_filled].argsort()]
        token_places = torch.cat([token_places, token_places.new_zeros(self._num_fillers)])
        return self._uploads.add(place_tokens), self._uploads.add(token_places)

    @cached_property
    def own_spans(self) -> Spans:
        """What tokens see of their own rows: a span for each row or trunk, for each branch, and for the fillers.

        A branch has copies of its trunk's keys before its own.
        """
        queries, keys, key_tokens = list[int](), list[int](), list[Tensor]()
        first = 0
        for length, starts in zip(self._lengths, self._starts, strict=True):
            edges = [0, *starts, length]
            trunk = torch.arange(first, first + edges[1])
            for start, end in itertools.pairwise(edges):
                seen = torch.arange(first + start, first + end)
                key_tokens += [trunk, seen] if start else [seen]
                queries.append(end - start)
                keys.append(end if start == 0 else edges[1] + end - start)
            first += length
        if self._num_fillers:
            queries.append(self._num_fillers)
            keys.append(self._num_fillers)
            key_tokens.append(torch.arange(first, first + self._num_fillers))
        chosen = self._uploads.add(torch.cat(key_tokens)) if any(self._starts) else None
        return _spans(queries, keys, self._uploads, chosen)

    def prefix_spans(self, row_trial: Sequence[int], num_positions: Sequence[int]) -> Spans:
        """What tokens see of the prefixes, each trial's of so many positions, one behind another."""
        queries = [0] * len(num_positions)
        for trial, length in zip(row_trial, self._lengths, strict=True):
            queries[trial] += length
        queries[row_trial[-1]] += self._num_fillers
        return _spans(queries, num_positions, self._uploads)

    def spread(self, tokens: Tensor) -> list[Tensor]:
        """Into rows: (1, H, N, D) -> (B, H, S, D) for each group."""
        num_heads, dim = tokens.shape[1], tokens.shape[3]
        padded = tokens[0].transpose(0, 1).flatten(1).index_select(0, self._places[0])  # (M, H * D)
        parts = padded.split([count * size for count, size in self._sizes])
        shaped = zip(parts, self._sizes, strict=True)
        return [part.view(count, size, num_heads, dim).transpose(1, 2) for part, (count, size) in shaped]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Back into the line: (B, S, H, D) of each group -> (1, N, H, D), with zeros for fillers."""
        padded = torch.cat([part.flatten(2).flatten(0, 1) for part in parts])  # (M, H * D)
        tokens = padded.index_select(0, self._places[1])
        tokens[self._num_tokens :] = 0.0
        return tokens.view(1, -1, *parts[0].shape[2:])


def _spans(queries: Sequence[int], keys: Sequence[int], uploads: Uploads, key_tokens: Tensor | None = None) -> Spans:
    """Spans of so many queries and keys, one behind another."""
    starts = torch.tensor([[0, *itertools.accumulate(counts)] for counts in (queries, keys)], dtype=torch.int32)
    query_starts, key_starts = (uploads.add(of_one) for of_one in starts)
    return Spans(query_starts, key_starts, max(queries), max(keys), key_tokens)


def _masks(branches: Tensor | None, num_rows: int, size: int, device: torch.device) -> Tensor:
    """Masks of rows of one length, (B, 1, S, S): a token looks back, but not into branches that are not its own."""
    causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if branches is None:
        return causal.expand(num_rows, 1, -1, -1)
    return (causal & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None])))[:, None]
