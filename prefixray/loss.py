"""The loss of target tokens and its gradient in one pass over the vocabulary, a few tokens at a time.

The weight of every token in the objective is known before the forward, and the head is frozen; so while a chunk's
logits are still in the processor's cache they give the loss and, turned into softmax minus target, the gradient of the
hidden states. Logits of a whole micro-batch, their log-softmax and the gradients of both never exist.
"""

# N target tokens, W width of the model, V vocabulary

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from prefixray.products import linear

CHUNK = {"cpu": 128, "cuda": 4096}  # tokens at once: 25 MB of logits at GPT-2's vocabulary


@dataclass(frozen=True)
class Objective:
    """What each target token counts, and how much of its probability is spread over the vocabulary; (N,) each."""

    weights: Tensor
    smoothing: Tensor


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The model's head where the logits are its output and nothing else happens to them; else None."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear:
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    others = {"decoder_input_ids": token} if model.config.is_encoder_decoder else {"position_ids": token}
    try:
        with torch.no_grad():
            logits = model(input_ids=token, use_cache=False, **others).logits
    finally:
        hook.remove()
    return head if torch.equal(seen[0], logits) else None


def losses_of_hidden(head: nn.Linear, hidden: Tensor, ids: Tensor, objective: Objective | None) -> Tensor:
    """The negative log-likelihood of `ids`, (N,), given what goes into the head, (N, W).

    With an objective, the backward of the weighted sum of the smoothed losses has run when this returns.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    nll = torch.empty(len(ids), dtype=exact, device=hidden.device)
    gradient = torch.empty_like(hidden)
    with torch.no_grad():
        for start in range(0, len(ids), CHUNK[hidden.device.type]):
            some = slice(start, start + CHUNK[hidden.device.type])
            logits = linear(hidden[some], head.weight, head.bias).to(exact)  # (n, V); past the head's hooks
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            nll[some] = (log_sum - logits.gather(1, ids[some, None]))[:, 0]
            if objective is not None:
                weights, smoothing = objective.weights[some, None], objective.smoothing[some, None]
                slope = logits.sub_(log_sum).exp_().mul_(weights)  # the softmax, less what the objective wants
                if smoothing.any():
                    slope.sub_(weights * smoothing / logits.shape[1])
                slope.scatter_add_(1, ids[some, None], weights * (smoothing - 1))
                gradient[some] = linear(slope.to(hidden.dtype), head.weight.t())
    if objective is not None:
        hidden.backward(gradient)
    return nll


def losses_of_logits(logits: Tensor, ids: Tensor, objective: Objective | None) -> Tensor:
    """The same from logits (N, V), for heads that are trained or are not the last thing that a model does."""
    log_p = functional.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    nll = functional.nll_loss(log_p, ids, reduction="none")
    if objective is not None:
        smoothing = objective.smoothing
        smoothed = nll if not smoothing.any() else (1 - smoothing) * nll - smoothing * log_p.mean(dim=1)
        (objective.weights * smoothed).sum().backward()
    return nll.detach()
