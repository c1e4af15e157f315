"""The loss of target tokens and its gradient in one pass over the vocabulary, a few tokens at a time.

The weight of every target token in the objective is known before the forward, and the head is frozen. So the logits of
a chunk of tokens give both the loss and the gradient of the hidden states: softmax minus target, times the head. The
softmax is written over the logits, block by block, in the processor's cache; a GPU takes that of a chunk at once. The
logits of a whole micro-batch, their log-softmax and the gradients of both never exist. A target token's loss is the
negative log-likelihood of its id, or, where it is taught, its divergence from the teacher (see `batching/lessons.py`).
"""

# N target tokens, n tokens of a chunk, W width of the model, V vocabulary

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from prefixray.batching.lessons import Lessons, Taught
from prefixray.model.backend import backend_for, pad_rows, padded_count

CHUNK_MULTIPLE = 16  # tokens; see `padded_count` for why there are few sizes
CHUNK = {"cpu": 256, "cuda": 4096}  # tokens that are multiplied with the head at once, at the most
CHUNK_BYTES = {"cpu": 30 << 20, "cuda": 1 << 30}  # of their logits: malloc unset keeps blocks of up to 32 MiB
LEAST = 1e-30  # likelihood that has a logarithm: a smaller one may have been rounded to nothing
BLOCK = {"cpu": 220_000, "cuda": 1 << 26}  # logits that are looked at at once: those of 4 tokens at GPT-2's vocabulary


@dataclass(frozen=True)
class Objective:
    """The weight of each target token's loss, and the share of its probability that is spread over the vocabulary."""

    weights: Tensor  # (N,)
    smoothing: Tensor  # (N,)
    is_smoothed: bool = True  # whether the smoothing is not 0 everywhere, which a tensor would have to be read for


class RowLosses:
    """The losses of rows of several trials, none smoothed. They stay on the device until all are read at once."""

    def __init__(self, num_trials: int) -> None:
        self._num_trials = num_trials
        self._row_trials: list[int] = []
        self._parts: list[Tensor] = []

    def add(self, row_trials: Sequence[int], losses: Tensor) -> None:
        """Rows of these trials, (B,)."""
        self._row_trials += row_trials
        self._parts.append(losses)

    def read(self, *others: Tensor) -> tuple[list[float], list[float]]:
        """The sum of each trial's rows, and the values of other tensors, (n,) each, for which nobody waits again."""
        tensors = [*self._parts, *others]
        values: list[float] = torch.cat(tensors).tolist() if tensors else []
        totals = [0.0] * self._num_trials
        for trial, value in zip(self._row_trials, values):  # noqa: B905  # the others' values stand behind
            totals[trial] += value
        return totals, values[len(self._row_trials) :]


class Head:
    """A frozen linear head, (V, W), whose hooks are not called."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        self.logits, self.back = backend_for(self.weight.device).head_products(self.weight, bias)

    def chunks(self, count: int) -> Iterator[slice]:
        """Cut `count` tokens into few chunks of one size; the last may be smaller."""
        device, row_bytes = self.weight.device.type, self.weight.shape[0] * self.weight.itemsize
        limit = min(CHUNK[device], CHUNK_BYTES[device] // row_bytes)
        most = max(1, limit // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
        share = math.ceil(count / max(1, math.ceil(count / most)))
        return _slices(count, max(CHUNK_MULTIPLE, padded_count(share, CHUNK_MULTIPLE)))


def plain_head(model: PreTrainedModel) -> Head | None:
    """The model's head where its output is the logits; None where the model changes that output further."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        return None
    outputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: outputs.append(output))
    tokens = torch.arange(4, device=model.device)[None]  # one alone may be padding, whose embedding and logits may be 0
    others = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {"position_ids": tokens}
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False, **others).logits
    finally:
        hook.remove()
    return Head(head) if torch.equal(outputs[0], logits) and bool(logits.any()) else None


def losses_of_hidden(
    head: Head, hidden: Tensor, ids: Tensor, objective: Objective | None, taught: Taught | None = None
) -> Tensor:
    """The losses of the target tokens `ids`, (N,), given the head's input, (N, W).

    With an objective, the backward of the weighted sum of the losses, smoothed, has run when this returns.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    losses = torch.empty(len(ids), dtype=exact, device=hidden.device)
    gradient = torch.empty_like(hidden)
    with torch.no_grad():
        for tokens, lessons in _chunks(head, len(ids), taught):
            # The product has rows of padding, so that few sizes occur; they are cut off again.
            of_tokens = ids[tokens]
            size = len(of_tokens)
            logits = head.logits(pad_rows(hidden[tokens], CHUNK_MULTIPLE))  # (n, V)
            if objective is None:
                losses[tokens] = _losses_of(logits[:size], of_tokens, lessons, exact)
                continue

            # The logits' gradient takes their place, and the head takes it back to the hidden states.
            if lessons is None:
                smoothing = objective.smoothing[tokens, None] if objective.is_smoothed else None
                of_chunk = losses[tokens]  # a part of all losses, or a copy
                logits = _losses_and_slopes(logits, of_tokens, smoothing, of_chunk)
            else:
                of_chunk = _divergences_and_slopes_(logits[:size], lessons, exact)
            slopes, weights = head.back(logits)[:size], objective.weights[tokens, None]
            if isinstance(tokens, slice):
                torch.mul(slopes, weights, out=gradient[tokens])
            else:
                losses[tokens] = of_chunk
                gradient[tokens] = (slopes * weights).to(gradient.dtype)
    if objective is not None:
        hidden.backward(gradient)
    return losses


def _chunks(head: Head, count: int, taught: Taught | None) -> Iterator[tuple[slice | Tensor, Lessons | None]]:
    """Target tokens that are multiplied with the head together, and what all of them, or none, are taught."""
    if taught is None:
        yield from ((chunk, None) for chunk in head.chunks(count))
        return
    yield from ((taught.others[chunk], None) for chunk in head.chunks(len(taught.others)))
    yield from ((taught.tokens[chunk], taught.lessons[chunk]) for chunk in head.chunks(len(taught.tokens)))


def _losses_of(logits: Tensor, ids: Tensor, lessons: Lessons | None, exact: torch.dtype) -> Tensor:
    """The losses of logits (n, V) without their gradient."""
    if lessons is None:
        return _losses(logits, ids, exact)
    return torch.cat([_divergences(logits[block].to(exact), lessons[block]) for block in _blocks(logits)])


def _losses(logits: Tensor, ids: Tensor, exact: torch.dtype) -> Tensor:
    """The negative log-likelihood of ids (n,) by logits (n, V), in the dtype `exact`.

    It is the logarithm of the sum of all tokens' likelihoods, each divided by that of the target. Where a quotient
    overflows, a log-softmax gives it, and where looking for such quotients would be waiting, all of them.
    """
    if not backend_for(logits.device).reads_at_once:
        return _by_log_softmax(logits, ids, exact)
    of_targets = logits.gather(1, ids[:, None]).to(exact)
    quotients = (logits[block].to(exact, copy=True).sub_(of_targets[block]).exp_() for block in _blocks(logits))
    nll = torch.cat([of_block.sum(dim=1) for of_block in quotients]).log()
    if nll.isfinite().all():
        return nll
    return _by_log_softmax(logits, ids, exact)


def _by_log_softmax(logits: Tensor, ids: Tensor, exact: torch.dtype) -> Tensor:
    log_p = (torch.log_softmax(logits[block].to(exact), dim=1).gather(1, ids[block, None]) for block in _blocks(logits))
    return -torch.cat(list(log_p))[:, 0]


def _losses_and_slopes(logits: Tensor, ids: Tensor, smoothing: Tensor | None, nll: Tensor) -> Tensor:
    """As `_losses`, into `nll`; returns the gradient of the losses, smoothed by (n, 1) or not at all.

    Logits may have rows of padding, and may be changed.
    """
    if not backend_for(logits.device).reads_at_once:
        return _by_softmax(logits, ids, smoothing, nll)
    exact, of_ids = nll.dtype, logits[: len(ids)]
    for block in _blocks(of_ids):
        targets, exact_logits = ids[block, None], of_ids[block].to(exact)

        # The softmax gives the likelihood of the target, unless that was rounded to nothing.
        slope = torch.softmax(exact_logits, dim=1)
        likelihood = slope.gather(1, targets)[:, 0]
        has_logarithms = bool(likelihood.amin() > LEAST)
        nll[block] = -likelihood.log() if has_logarithms else _losses(exact_logits, ids[block], exact)

        # The gradient is softmax less the wanted probabilities: `1 - spread` of the target, `spread / V` of each token.
        spread = exact_logits.new_zeros(len(targets), 1) if smoothing is None else smoothing[block]
        if smoothing is not None:
            slope.sub_(spread / logits.shape[1])
        of_ids[block] = slope.scatter_add_(1, targets, spread - 1)
    return logits


def _by_softmax(logits: Tensor, ids: Tensor, smoothing: Tensor | None, nll: Tensor) -> Tensor:
    """As `_losses_and_slopes`, without a look at the values, for which the host would wait, and without exact logits.

    The softmax comes in the logits' dtype. What it loses of a likely target, the other tokens have: their sum gives the
    target's loss and gradient. A likelihood below `LEAST` has the loss of `LEAST`, 69, and its own gradient.
    """
    targets, slopes = ids[:, None], torch.softmax(logits, dim=1)
    of_ids = slopes[: len(ids)]
    likely = of_ids.gather(1, targets)  # (n, 1)
    others = of_ids.scatter_(1, targets, 0.0).sum(dim=1, keepdim=True, dtype=nll.dtype)
    likely = torch.where(others < 0.5, 1.0 - others, likely).clamp_(min=LEAST)
    torch.neg(likely.log_()[:, 0], out=nll)
    if smoothing is not None:
        share = smoothing / logits.shape[1]
        of_ids.sub_(share)
        others = others - smoothing + share
    of_ids.scatter_(1, targets, -others.to(slopes.dtype))
    return slopes


def _divergences(logits: Tensor, lessons: Lessons) -> Tensor:
    """The losses of logits (n, V) of tokens that are taught. They can be differentiated."""
    rest = logits.scatter(1, lessons.ids, -math.inf)
    outcomes = torch.cat([logits.gather(1, lessons.ids), rest.logsumexp(dim=1, keepdim=True)], dim=1)
    losses, _ = _compared(outcomes, lessons)
    return losses


def _divergences_and_slopes_(logits: Tensor, lessons: Lessons, exact: torch.dtype) -> Tensor:
    """As `_divergences`, in the dtype `exact`, without a look at the values; the losses' gradient replaces the logits.

    The gradient is that of the outcome where the token is one of its own, else its share of that of the tail.
    """
    losses = torch.empty(len(logits), dtype=exact, device=logits.device)
    for block in _blocks(logits):
        ids = lessons.ids[block]
        kept = logits[block].gather(1, ids).to(exact)
        rest = logits[block].to(exact, copy=True).scatter_(1, ids, -math.inf)
        largest = rest.amax(dim=1, keepdim=True)
        total = rest.sub_(largest).exp_().sum(dim=1, keepdim=True)  # of 1 and more: one of its terms is 1
        losses[block], slopes = _compared(torch.cat([kept, largest + total.log()], dim=1), lessons[block])
        logits[block] = rest.mul_(slopes[:, -1:] / total).scatter_(1, ids, slopes[:, :-1])
    return losses


def _compared(outcomes: Tensor, lessons: Lessons) -> tuple[Tensor, Tensor]:
    """The losses, (n,), and their gradients, (n, k + 1), of a student's outcomes as logits, (n, k + 1)."""
    log_q, p = torch.log_softmax(outcomes / lessons.temperature, dim=1), lessons.log_p.exp()
    terms = torch.where(p > 0, p * (lessons.log_p - log_q), 0.0)  # an outcome without any likelihood adds nothing
    losses = lessons.temperature[:, 0].square() * terms.sum(dim=1)
    return losses, lessons.temperature * (log_q.exp() - p)


def _blocks(logits: Tensor) -> Iterator[slice]:
    """The rows of a block: as many as fit the processor's cache."""
    return _slices(len(logits), max(1, BLOCK[logits.device.type] // logits.shape[1]))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def losses_of_logits(logits: Tensor, ids: Tensor, objective: Objective | None, taught: Taught | None = None) -> Tensor:
    """As `losses_of_hidden`, from logits (N, V): for a head that is trained or is not the last thing in its model."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = functional.log_softmax(logits, dim=1)
    losses = functional.nll_loss(log_p, ids, reduction="none")
    if taught is not None:
        losses = losses.index_copy(0, taught.tokens, _divergences(logits[taught.tokens], taught.lessons))
    if objective is not None:
        smoothing = objective.smoothing  # 0 of tokens that are taught
        smoothed = losses if not objective.is_smoothed else (1 - smoothing) * losses - smoothing * log_p.mean(dim=1)
        (objective.weights * smoothed).sum().backward()
    return losses.detach()
