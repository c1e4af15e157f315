"""Beam search over logits, step by step; every rule is that of transformers' `generate`.

A source is done when nothing that its beams could still write would change its best hypothesis. The search knows no
prompt: its tokens start with the last token before the first new one. With `length_with_prompt` the rules about length
are those of the transformers of 2020, with which Li & Liang 2021 decoded; they need the prompts' lengths.
"""

# N sources, B beams of each, R = N * B, k candidates, V vocabulary, S tokens so far, counting one of the prompt

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixray.config.schema import DecodingSettings

_NEVER = -1.0e9  # transformers' score of a hypothesis that cannot be chosen
_BLOCK = 128  # entries of the vocabulary that are looked at by their maximum first
_ROWS = 8  # of logits that are looked at together on a CPU, so that they stay in its cache


@dataclass(frozen=True)
class Step:
    """The next token of each beam."""

    tokens: Tensor  # (N, B)
    parents: Tensor  # (N, B) the beam that each beam continues
    is_done: Tensor  # (N,) whether a source's best hypothesis is final: no further step changes it
    is_last: bool  # whether no token may follow: all sources are done


@dataclass
class _Ended:
    """The best ended hypotheses so far of each source, best first."""

    tokens: Tensor  # (N, B, new tokens), filled with the end token
    scores: Tensor  # (N, B)
    exists: Tensor  # (N, B) False: a place without a hypothesis

    def __getitem__(self, sources: Tensor) -> "_Ended":
        return _Ended(self.tokens[sources], self.scores[sources], self.exists[sources])


class BeamSearch:
    """The beams of some sources. A source has one row of logits at the first step, and B rows at all others."""

    def __init__(
        self,
        last: Tensor,
        decoding: DecodingSettings,
        eos_id: int,
        *,
        prompt_lengths: Tensor | None = None,
        banned: Sequence[int] = (),
    ) -> None:
        """`last`: the token before the first new one of each source, (N,); `prompt_lengths`: tokens up to it, (N,).

        `banned` are ids that are never written.
        """
        assert (prompt_lengths is not None) or not decoding.length_with_prompt, "the prompts' lengths are not known"
        num_sources, num_beams = len(last), decoding.num_beams
        self._decoding, self._eos_id, self._banned = decoding, eos_id, list(banned)
        self._prompt_lengths = prompt_lengths if decoding.length_with_prompt else None
        self._tokens = last[:, None, None]  # (N, B, S)
        self._scores = torch.zeros(num_sources, 1, device=last.device)  # (N, B) sums of log-probabilities
        size = (num_sources, num_beams)
        self._ended = _Ended(
            tokens=last.new_full((*size, decoding.max_new_tokens), eos_id),
            scores=torch.full(size, _NEVER, device=last.device),
            exists=torch.zeros(size, dtype=torch.bool, device=last.device),
        )
        self._can_improve = torch.ones(num_sources, dtype=torch.bool, device=last.device)
        self._room: Tensor | None = None  # (2, rows, V) for looking at some rows of logits in fp32

    def advance(self, logits: Tensor) -> Step:
        """Choose the next tokens from the logits (R, V) after the last tokens."""
        num_sources, num_beams, num_tokens = self._tokens.shape  # before the first step B is 1
        keep, count = self._decoding.num_beams, 2 * self._decoding.num_beams

        # The likeliest continuations of all beams of a source: twice as many as beams, since half of them may end.
        log_p, ids = self._likeliest(logits, count)  # (R, k)
        sums = (log_p.view(num_sources, num_beams, -1) + self._scores[:, :, None]).flatten(1)
        sums, candidates = sums.topk(count, dim=1)  # (N, k)
        parents, ids = candidates // log_p.shape[1], ids.view(num_sources, -1).gather(1, candidates)
        tokens = torch.cat([_pick(self._tokens, parents), ids[:, :, None]], dim=2)  # (N, k, S + 1)

        # Those that end become hypotheses; the best others are the new beams.
        is_last = num_tokens == self._decoding.max_new_tokens  # one of the tokens is not new
        is_2020s = self._prompt_lengths is not None
        ends = torch.ones_like(ids, dtype=torch.bool) if is_last and not is_2020s else ids == self._eos_id
        self._end(tokens[:, :, 1:], sums, ends)
        self._scores, best = (sums + ends * _NEVER).topk(keep, dim=1)
        self._tokens = _pick(tokens, best)
        # The transformers of 2020 measured the best candidate, ended or not, by the length before it.
        done = self._is_done(*((sums[:, :1], num_tokens - 1) if is_2020s else (self._scores[:, :1], num_tokens)))
        if is_last and is_2020s:  # what is cut counts where the source was not done before
            self._end(self._tokens[:, :, 1:], self._scores, torch.ones_like(self._scores, dtype=torch.bool))
        done = torch.ones_like(done) if is_last else done
        return Step(ids.gather(1, best), parents.gather(1, best), done, is_last)

    def best(self) -> list[list[int]]:
        """Each source's best hypothesis, filled with end tokens."""
        hypotheses: list[list[int]] = self._ended.tokens[:, 0].tolist()
        return hypotheses

    def agreed(self) -> list[list[int]]:
        """The new tokens that each source's hypothesis will begin with, whichever of the beams it comes from."""
        new, ended = self._tokens[:, :, 1:], self._ended
        first = new[:, :1]  # (N, 1, S)
        is_equal = (new == first).all(1)
        is_equal &= ((ended.tokens[:, :, : new.shape[2]] == first) | ~ended.exists[:, :, None]).all(1)
        counts: list[int] = is_equal.int().cumprod(1).sum(1).tolist()
        ids: list[list[int]] = first[:, 0].tolist()
        return [of_source[:count] for of_source, count in zip(ids, counts, strict=True)]

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these, given by their indices."""
        self._tokens, self._scores, self._ended = self._tokens[sources], self._scores[sources], self._ended[sources]
        self._can_improve = self._can_improve[sources]
        if self._prompt_lengths is not None:
            self._prompt_lengths = self._prompt_lengths[sources]

    def _likeliest(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Each row's likeliest allowed tokens: log-probabilities in fp32 and ids, (R, k) each."""
        at_once = min(_ROWS, logits.shape[0]) if logits.device.type == "cpu" else logits.shape[0]
        if self._room is None or self._room.shape[1] < at_once:
            self._room = torch.empty(2, at_once, logits.shape[1], device=logits.device)
        pieces = []
        for some, tokens in zip(logits.split(at_once), self._tokens.flatten(0, 1).split(at_once), strict=True):
            exact, rest = self._room[:, : len(some)].unbind(0)
            exact.copy_(some)
            most = exact.amax(1, keepdim=True)
            total = torch.sub(exact, most, out=rest).exp_().sum(1, keepdim=True)
            forbid(exact, tokens, self._decoding, self._eos_id, self._banned)
            found, ids = largest(exact, count)
            pieces.append((found - most - total.log_(), ids))  # in log_softmax's order
        return torch.cat([found for found, _ in pieces]), torch.cat([ids for _, ids in pieces])

    def _end(self, tokens: Tensor, sums: Tensor, ends: Tensor) -> None:
        """Let the candidates that end take their places among a source's best hypotheses."""
        ended, keep = self._ended, self._decoding.num_beams
        ends = ends & (torch.arange(ends.shape[1], device=ends.device) < keep)  # others only stand in for ended ones
        if self._prompt_lengths is None:
            scores = sums / tokens.shape[2] ** self._decoding.length_penalty
        else:
            has_end = tokens[:, :, -1] == self._eos_id
            scores = sums / self._length(tokens.shape[2] - has_end.int()) ** self._decoding.length_penalty
        closed = ~self._can_improve
        if self._decoding.early_stopping:
            closed = closed | ended.exists.all(1)
        scores = scores + closed[:, None] * _NEVER + ~ends * _NEVER
        filled = torch.full((*tokens.shape[:2], ended.tokens.shape[2]), self._eos_id, device=tokens.device)
        filled[:, :, : tokens.shape[2]] = tokens
        scores, best = torch.cat([ended.scores, scores], dim=1).topk(keep, dim=1)
        exists = torch.cat([ended.exists, ends], dim=1).gather(1, best)
        self._ended = _Ended(_pick(torch.cat([ended.tokens, filled], dim=1), best), scores, exists)

    def _length(self, num_new: int | Tensor) -> int | Tensor:
        """The length that divides a sum of log-probabilities: of new tokens, with those of the prompt where asked."""
        return num_new if self._prompt_lengths is None else self._prompt_lengths[:, None] + num_new

    def _is_done(self, best_running: Tensor, num_new: int) -> Tensor:
        """Whether a source's running beams can no longer change its best hypotheses, (N,); the best's sum is (N, 1)."""
        ended = self._ended
        best_running = best_running / self._length(num_new) ** self._decoding.length_penalty
        worst = torch.where(ended.exists, ended.scores.amin(1, keepdim=True), _NEVER)
        self._can_improve = self._can_improve & (best_running > worst).any(1)
        if self._decoding.early_stopping:
            return ~self._can_improve | ended.exists.all(1)
        return ~self._can_improve


class GreedySearch:
    """The likeliest token of each source, step by step: what transformers does for one beam."""

    def __init__(self, last: Tensor, decoding: DecodingSettings, eos_id: int, *, banned: Sequence[int] = ()) -> None:
        self._decoding, self._eos_id, self._banned = decoding, eos_id, list(banned)
        self._tokens = last[:, None]  # (N, S)
        self._is_done = torch.zeros(len(last), dtype=torch.bool, device=last.device)

    def advance(self, logits: Tensor) -> Step:
        """Choose the next tokens from the logits (N, V) after the last tokens."""
        allowed = logits.to(torch.float32, copy=True)
        forbid(allowed, self._tokens, self._decoding, self._eos_id, self._banned)
        ids = self._choose(allowed).masked_fill(self._is_done, self._eos_id)
        self._is_done = self._is_done | (ids == self._eos_id)
        is_last = self._tokens.shape[1] == self._decoding.max_new_tokens
        self._tokens = torch.cat([self._tokens, ids[:, None]], dim=1)
        done = torch.ones_like(self._is_done) if is_last else self._is_done
        return Step(ids[:, None], torch.zeros_like(ids)[:, None], done, is_last)

    def best(self) -> list[list[int]]:
        """Each source's hypothesis, filled with end tokens."""
        hypotheses: list[list[int]] = self._tokens[:, 1:].tolist()
        return hypotheses

    def agreed(self) -> list[list[int]]:
        """The new tokens so far."""
        return self.best()

    def _choose(self, allowed: Tensor) -> Tensor:
        """The next ids, (N,), by logits in which forbidden ids are -inf, (N, V)."""
        return allowed.argmax(1)

    def keep(self, sources: Tensor) -> None:
        """Drop all sources but these, given by their indices."""
        self._tokens, self._is_done = self._tokens[sources], self._is_done[sources]


def start_search(
    last: Tensor, decoding: DecodingSettings, eos_id: int, prompt_lengths: Tensor, banned: Sequence[int] = ()
) -> BeamSearch | GreedySearch:
    """A search that continues the tokens `last`, (N,), which end prompts of these lengths, (N,), without banned ids."""
    if decoding.num_beams == 1:
        return GreedySearch(last, decoding, eos_id, banned=banned)
    return BeamSearch(last, decoding, eos_id, prompt_lengths=prompt_lengths, banned=banned)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `topk` along rows (R, V): the blocks with the largest maxima hold the largest values."""
    num_blocks = values.shape[1] // _BLOCK
    if num_blocks < 4 * count:
        return values.topk(count, dim=1)
    cut = num_blocks * _BLOCK
    blocks = values[:, :cut].unflatten(1, (num_blocks, _BLOCK))
    chosen = blocks.amax(2).topk(count, dim=1)[1].sort(dim=1)[0]  # in order, as ties go to the first
    own = blocks.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    found, places = torch.cat([own, values[:, cut:]], dim=1).topk(count, dim=1)
    in_blocks = chosen.gather(1, (places // _BLOCK).clamp(max=count - 1)) * _BLOCK + places % _BLOCK
    return found, torch.where(places < count * _BLOCK, in_blocks, places - count * _BLOCK + cut)


def forbid(scores: Tensor, tokens: Tensor, decoding: DecodingSettings, eos_id: int, banned: Sequence[int] = ()) -> None:
    """Write -inf into scores (R, V) where an id may not follow the tokens (R, S)."""
    for banned_id in banned:  # one by one: a list would go to the device as a tensor
        scores[:, banned_id] = float("-inf")
    if decoding.no_repeat_ngram_size:
        ids, repeats = _repeating(tokens, decoding.no_repeat_ngram_size)
        scores.scatter_add_(1, ids, torch.zeros_like(ids, dtype=scores.dtype).masked_fill_(repeats, float("-inf")))
    if tokens.shape[1] <= decoding.min_new_tokens:  # one of the tokens is not new
        scores[:, eos_id] = float("-inf")


def _repeating(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each row's ids that end an n-gram of `size`, and whether they would end the same one again, (R, n-grams) each."""
    if tokens.shape[1] < size:
        return tokens[:, :0], tokens[:, :0].bool()
    ngrams = tokens.unfold(1, size, 1)  # (R, n-grams, size)
    current = tokens[:, tokens.shape[1] - size + 1 :]
    return ngrams[:, :, -1], (ngrams[:, :, :-1] == current[:, None]).all(2)


def _pick(tokens: Tensor, beams: Tensor) -> Tensor:
    """The tokens of these beams: (N, B, S) and (N, k) -> (N, k, S)."""
    return tokens.gather(1, beams[:, :, None].expand(-1, -1, tokens.shape[2]))
