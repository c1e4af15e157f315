"""The loss of target tokens and its gradient in one pass over the vocabulary, a few tokens at a time.

The weight of every token in the objective is known before the forward, and the head is frozen; so a chunk's logits
give the loss and, turned into softmax minus target a block at a time in the processor's cache, the gradient of the
hidden states. Logits of a whole micro-batch, their log-softmax and the gradients of both never exist.
"""

# N target tokens, W width of the model, V vocabulary

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from prefixray.model.backend import backend_for, pad_rows, padded_count

CHUNK_MULTIPLE = 16  # tokens; see `padded_count` for why there are few sizes
CHUNK = {"cpu": 256, "cuda": 4096}  # tokens that are multiplied with the head at once, at the most
CHUNK_BYTES = {"cpu": 30 << 20, "cuda": 1 << 30}  # of their logits: malloc unset keeps blocks of up to 32 MiB
LEAST = 1e-30  # likelihood that has a logarithm: a smaller one may have been rounded to nothing
BLOCK = {"cpu": 220_000, "cuda": 1 << 26}  # logits that are looked at at once: those of 4 tokens at GPT-2's vocabulary


@dataclass(frozen=True)
class Objective:
    """What each target token counts, and how much of its probability is spread over the vocabulary; (N,) each."""

    weights: Tensor
    smoothing: Tensor


class Head:
    """A frozen linear head, (V, W), as it is used here: past its hooks."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        self.logits, self.back = backend_for(self.weight.device).head_products(self.weight, bias)

    def chunks(self, count: int) -> Iterator[slice]:
        """Which of so many tokens are multiplied with it at once: few chunks of one size, the last maybe smaller."""
        device, row_bytes = self.weight.device.type, self.weight.shape[0] * self.weight.itemsize
        limit = min(CHUNK[device], CHUNK_BYTES[device] // row_bytes)
        most = max(1, limit // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
        share = math.ceil(count / max(1, math.ceil(count / most)))
        return _slices(count, max(CHUNK_MULTIPLE, padded_count(share, CHUNK_MULTIPLE)))


def plain_head(model: PreTrainedModel) -> Head | None:
    """The model's head where the logits are its output and nothing else happens to them; else None."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    token = torch.arange(4, device=model.device)[None]  # a padding token's embedding may be 0, and its logits then too
    others = {"decoder_input_ids": token} if model.config.is_encoder_decoder else {"position_ids": token}
    try:
        with torch.no_grad():
            logits = model(input_ids=token, use_cache=False, **others).logits
    finally:
        hook.remove()
    return Head(head) if torch.equal(seen[0], logits) and bool(logits.any()) else None


def losses_of_hidden(head: Head, hidden: Tensor, ids: Tensor, objective: Objective | None) -> Tensor:
    """The negative log-likelihood of `ids`, (N,), given what goes into the head, (N, W).

    With an objective, the backward of the weighted sum of the smoothed losses has run when this returns.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    nll = torch.empty(len(ids), dtype=exact, device=hidden.device)
    gradient = torch.empty_like(hidden)
    with torch.no_grad():
        for some in head.chunks(len(ids)):
            own = hidden[some]
            logits = head.logits(pad_rows(own, CHUNK_MULTIPLE))
            if objective is None:
                nll[some] = _losses(logits[: len(own)], ids[some], exact)
            else:
                nll[some] = _losses_and_slopes_(logits[: len(own)], ids[some], objective.smoothing[some, None], exact)
                gradient[some] = head.back(logits)[: len(own)] * objective.weights[some, None]
    if objective is not None:
        hidden.backward(gradient)
    return nll


def _losses(logits: Tensor, ids: Tensor, exact: torch.dtype) -> Tensor:
    """The negative log-likelihood of ids (n,) by logits (n, V): how many times as likely as its id all are together."""
    own = logits.gather(1, ids[:, None]).to(exact)
    ratios = (logits[some].to(exact, copy=True).sub_(own[some]).exp_() for some in _blocks(logits))
    nll = torch.cat([block.sum(dim=1) for block in ratios]).log()
    if nll.isfinite().all():
        return nll
    blocks = (torch.log_softmax(logits[some].to(exact), dim=1).gather(1, ids[some, None]) for some in _blocks(logits))
    return -torch.cat(list(blocks))[:, 0]


def _losses_and_slopes_(logits: Tensor, ids: Tensor, smoothing: Tensor, exact: torch.dtype) -> Tensor:
    """The same; in place of the logits comes the gradient of the losses that are smoothed by (n, 1)."""
    nll = torch.empty(len(ids), dtype=exact, device=ids.device)
    for some in _blocks(logits):
        own, spread, block = ids[some, None], smoothing[some], logits[some].to(exact)
        slope = torch.softmax(block, dim=1)  # less what the objective wants
        likelihood = slope.gather(1, own)[:, 0]
        nll[some] = -likelihood.log() if likelihood.amin() > LEAST else _losses(block, ids[some], exact)
        if spread.any():
            slope.sub_(spread / logits.shape[1])
        logits[some] = slope.scatter_add_(1, own, spread - 1)
    return nll


def _blocks(logits: Tensor) -> Iterator[slice]:
    return _slices(len(logits), max(1, BLOCK[logits.device.type] // logits.shape[1]))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def losses_of_logits(logits: Tensor, ids: Tensor, objective: Objective | None) -> Tensor:
    """The same from logits (N, V), for heads that are trained or are not the last thing that a model does."""
    log_p = functional.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    nll = functional.nll_loss(log_p, ids, reduction="none")
    if objective is not None:
        smoothing = objective.smoothing
        smoothed = nll if not smoothing.any() else (1 - smoothing) * nll - smoothing * log_p.mean(dim=1)
        (objective.weights * smoothed).sum().backward()
    return nll.detach()
