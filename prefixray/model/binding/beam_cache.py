"""The keys and values that beams look at: those of a source once for all of its beams, and each written token once.

A source has one row of columns: its prompt's, with its trial's prefix in front, and behind them one for every token
that a beam of it has written. All its beams look at that row in one product, and a mask says which tokens a beam
descends from. So going on with other beams moves no keys and values, only rows of the mask. Now and then the columns
that no beam descends from are dropped.
"""

# N sources, B beams of each, L layers, K key/value heads, G query heads for each of them, C columns, W written ones,
# D head dim

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

STEPS_AHEAD = 8  # that there is room for after the columns were sorted out: products keep their shapes that long


class BeamCache:
    """The columns of some sources, for the steps of a beam search: one beam of each source at first."""

    def __init__(self, prompts: Sequence[Tensor]) -> None:
        """`prompts`: of each source (2, L, K, C, D), keys and values of all that stands before its next token."""
        lengths = [prompt.shape[3] for prompt in prompts]
        self._num_prompt = max(lengths)
        self._lengths = torch.tensor(lengths, device=prompts[0].device)  # (N,)
        self._kept = self._empty(prompts[0], len(prompts), self._num_prompt)  # (2, L, N, K, C, D)
        for place, prompt in enumerate(prompts):
            self._kept[:, :, place, :, : lengths[place]] = prompt
        self._seen = torch.zeros(len(prompts), 1, 0, dtype=torch.bool, device=self._lengths.device)  # (N, B, W)
        self._step = 0
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}  # of this step, by query heads of a key/value head

    def begin_step(self) -> Tensor:
        """Make room for one token of each beam; their positions (N * B, 1)."""
        num_sources, num_beams, _ = self._seen.shape
        if self._num_prompt + self._seen.shape[2] + num_beams > self._kept.shape[4]:
            self._sort_out()
        own = torch.eye(num_beams, dtype=torch.bool, device=self._seen.device).expand(num_sources, -1, -1)
        self._seen = torch.cat([self._seen, own], dim=2)
        self._masks.clear()
        self._step += 1
        return (self._lengths + self._step - 1).repeat_interleave(num_beams)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention of a step's tokens, (N * B, H, 1, D), whose own keys and values are written: (N * B, 1, H, D)."""
        num_sources, num_beams, num_seen = self._seen.shape
        num_rows, num_heads, _, dim = query.shape
        num_kv = key.shape[1]
        groups, columns = num_heads // num_kv, self._kept.shape[4]
        place = self._num_prompt + num_seen - num_beams
        keys, values = self._kept[:, layer].unbind(0)  # (N, K, C, D)
        keys[:, :, place : place + num_beams] = key.view(num_sources, num_beams, num_kv, dim).transpose(1, 2)
        values[:, :, place : place + num_beams] = value.view(num_sources, num_beams, num_kv, dim).transpose(1, 2)
        split = (num_sources, num_beams, num_kv, groups * dim)
        queries = query.reshape(split).transpose(1, 2).reshape(-1, num_beams * groups, dim)  # (N * K, B * G, D)
        mask = self._mask(num_kv, groups, query.dtype)
        scores = torch.baddbmm(mask, queries, keys.flatten(0, 1).transpose(1, 2), alpha=scaling or dim**-0.5)
        weights = torch.softmax(scores, dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
        output = torch.bmm(weights.to(values.dtype), values.view(-1, columns, dim))  # (N * K, B * G, D)
        return output.view(num_sources, num_kv, num_beams, -1).transpose(1, 2).reshape(num_rows, 1, num_heads, dim)

    def follow(self, parents: Tensor) -> None:
        """Go on with these beams of each source, (N, B), any of them several times."""
        self._seen = self._seen.gather(1, parents[:, :, None].expand(-1, -1, self._seen.shape[2]))

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these, by their places."""
        self._seen, self._lengths = self._seen[sources], self._lengths[sources]
        self._kept = self._kept.index_select(2, sources)

    def _sort_out(self) -> None:
        """Drop columns that no beam descends from, and make room for the next steps."""
        living = self._seen.any(1)  # (N, W)
        num_kept = int(living.sum(1).max()) if living.numel() else 0
        order = living.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        num_sources, num_beams, _ = self._seen.shape
        more = num_kept + STEPS_AHEAD * num_beams
        kept = self._empty(self._kept[:, :, 0], num_sources, self._num_prompt + more)
        kept[..., : self._num_prompt, :] = self._kept[..., : self._num_prompt, :]
        for place, columns in enumerate(order + self._num_prompt):
            own = self._kept[:, :, place].index_select(3, columns)
            kept[:, :, place, :, self._num_prompt : self._num_prompt + num_kept] = own
        self._kept = kept
        self._seen = self._seen.gather(2, order[:, None].expand(-1, num_beams, -1))

    def _mask(self, num_kv: int, groups: int, dtype: torch.dtype) -> Tensor:
        """What is added to scores, (N * K, B * G, C): -inf where a beam may not look."""
        known = self._masks.get((groups, dtype))
        if known is not None:
            return known
        num_sources, num_beams, _ = self._seen.shape
        columns = torch.arange(self._num_prompt, device=self._seen.device)
        prompt = (columns < self._lengths[:, None])[:, None].expand(-1, num_beams, -1)
        seen = torch.cat([prompt, self._seen], dim=2)
        seen = functional.pad(seen, (0, self._kept.shape[4] - seen.shape[2]))  # (N, B, C)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
        shape = (num_sources, num_kv, num_beams, groups, mask.shape[2])
        mask = mask[:, None, :, None].expand(shape).reshape(num_sources * num_kv, num_beams * groups, -1)
        self._masks[groups, dtype] = mask
        return mask

    @staticmethod
    def _empty(like: Tensor, num_sources: int, num_columns: int) -> Tensor:
        """(2, L, N, K, C, D); what has not been written yet is looked at with a weight of 0, and so must be finite."""
        two, layers, heads, _, dim = like.shape
        return like.new_zeros(two, layers, num_sources, heads, num_columns, dim)
