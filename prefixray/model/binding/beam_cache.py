"""The keys and values that beams look at: each source's prompt once for all its beams, and each written token once.

A source has one row of columns: its trial's prefix, its prompt, and behind them a column for every token that one of
its beams has written. All its beams attend to that row in one product, and a mask says which tokens a beam descends
from. So the choice of other beams moves no keys and values, only rows of the mask. Now and then columns from which no
beam descends are dropped.
"""

# N sources, B beams of each, L layers, H query heads, K key/value heads, G = H / K, C columns, W columns of written
# tokens, D head dim

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prefixray.model.backend import backend_for
from prefixray.model.downloads import Download

STEPS_AHEAD = 8  # steps for which dropping columns makes room: so long products keep their shapes


class BeamCache:
    """The columns of some sources, for the steps of a beam search: one beam of each source at first."""

    def __init__(self, prompts: Sequence[Tensor]) -> None:
        """`prompts`: of each source (2, L, K, C, D), the keys and values of all columns before its next token."""
        lengths = [prompt.shape[3] for prompt in prompts]
        self._num_prompt = max(lengths)
        self._lengths = torch.tensor(lengths, device=prompts[0].device)  # (N,)
        self._columns = self._empty(prompts[0], len(prompts), self._num_prompt)  # (2, L, N, K, C, D)
        for source, prompt in enumerate(prompts):
            self._columns[:, :, source, :, : lengths[source]] = prompt
        self._seen = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=self._lengths.device)
        """(N, B, W) from which written tokens a beam descends."""
        self._step = 0
        self._reads_late = backend_for(self._lengths.device).reads_late
        self._most_seen: Download | None = None  # of a source: columns of written tokens, when some are to be dropped
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}  # of this step, by G and dtype

    def begin_step(self) -> Tensor:
        """Make room for one more token of each beam; the positions of these tokens, (N * B, 1)."""
        num_sources, num_beams, _ = self._seen.shape
        if not self._has_room():
            if not self._reads_late:
                self._count_seen()
            self._drop_unseen()
        own = torch.eye(num_beams, dtype=torch.bool, device=self._seen.device).expand(num_sources, -1, -1)
        self._seen = torch.cat([self._seen, own], dim=2)
        self._masks.clear()
        self._step += 1
        if self._reads_late and not self._has_room():
            self._count_seen()  # the next step, which drops columns, sees none but these
        return (self._lengths + self._step - 1).repeat_interleave(num_beams)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write a step's keys and values, (N * B, K, 1, D), and attend from its queries (N * B, H, 1, D).

        The result is (N * B, 1, H, D).
        """
        num_sources, num_beams, num_seen = self._seen.shape
        num_rows, num_heads, _, dim = query.shape
        num_kv = key.shape[1]
        groups, columns = num_heads // num_kv, self._columns.shape[4]
        end = self._num_prompt + num_seen
        written = slice(end - num_beams, end)
        keys, values = self._columns[:, layer].unbind(0)  # (N, K, C, D)
        keys[:, :, written] = key.view(num_sources, num_beams, num_kv, dim).transpose(1, 2)
        values[:, :, written] = value.view(num_sources, num_beams, num_kv, dim).transpose(1, 2)
        split = (num_sources, num_beams, num_kv, groups * dim)
        queries = query.reshape(split).transpose(1, 2).reshape(-1, num_beams * groups, dim)  # (N * K, B * G, D)
        mask = self._mask(num_kv, groups, query.dtype)
        scores = torch.baddbmm(mask, queries, keys.flatten(0, 1).transpose(1, 2), alpha=scaling or dim**-0.5)
        weights = torch.softmax(scores, dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
        output = torch.bmm(weights.to(values.dtype), values.view(-1, columns, dim))  # (N * K, B * G, D)
        return output.view(num_sources, num_kv, num_beams, -1).transpose(1, 2).reshape(num_rows, 1, num_heads, dim)

    def follow(self, parents: Tensor) -> None:
        """Continue with these beams of each source, (N, B); a beam may be continued several times."""
        self._seen = self._seen.gather(1, parents[:, :, None].expand(-1, -1, self._seen.shape[2]))

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these, given by their indices."""
        self._seen, self._lengths = self._seen[sources], self._lengths[sources]
        self._columns = self._columns.index_select(2, sources)

    def _has_room(self) -> bool:
        """Whether there are columns for one more token of each beam."""
        _, num_beams, num_seen = self._seen.shape
        return self._num_prompt + num_seen + num_beams <= self._columns.shape[4]

    def _count_seen(self) -> None:
        self._most_seen = Download(self._seen.any(1).sum(1).max())

    def _drop_unseen(self) -> None:
        """Drop columns from which no beam descends, and make room for the next steps."""
        is_seen = self._seen.any(1)  # (N, W)
        num_kept = self._seen.shape[2] if self._most_seen is None else self._most_seen.read()
        self._most_seen = None
        order = is_seen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        num_sources, num_beams, _ = self._seen.shape
        num_columns = self._num_prompt + num_kept + STEPS_AHEAD * num_beams
        columns = self._empty(self._columns[:, :, 0], num_sources, num_columns)
        columns[..., : self._num_prompt, :] = self._columns[..., : self._num_prompt, :]
        for source, kept in enumerate(order + self._num_prompt):
            of_source = self._columns[:, :, source].index_select(3, kept)
            columns[:, :, source, :, self._num_prompt : self._num_prompt + num_kept] = of_source
        self._columns = columns
        self._seen = self._seen.gather(2, order[:, None].expand(-1, num_beams, -1))

    def _mask(self, num_kv: int, groups: int, dtype: torch.dtype) -> Tensor:
        """The mask that is added to scores, (N * K, B * G, C): -inf where a beam may not look."""
        known = self._masks.get((groups, dtype))
        if known is not None:
            return known
        num_sources, num_beams, _ = self._seen.shape
        columns = torch.arange(self._num_prompt, device=self._seen.device)
        prompt = (columns < self._lengths[:, None])[:, None].expand(-1, num_beams, -1)
        seen = torch.cat([prompt, self._seen], dim=2)
        seen = functional.pad(seen, (0, self._columns.shape[4] - seen.shape[2]))  # (N, B, C)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
        shape = (num_sources, num_kv, num_beams, groups, mask.shape[2])
        mask = mask[:, None, :, None].expand(shape).reshape(num_sources * num_kv, num_beams * groups, -1)
        self._masks[groups, dtype] = mask
        return mask

    @staticmethod
    def _empty(like: Tensor, num_sources: int, num_columns: int) -> Tensor:
        """(2, L, N, K, C, D) zeros: columns not written yet get a weight of 0, and so must be finite."""
        two, layers, heads, _, dim = like.shape
        return like.new_zeros(two, layers, num_sources, heads, num_columns, dim)
