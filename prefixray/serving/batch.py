"""One batch that rows of different artifacts join and leave at any token.

A newcomer's prompt, all but its last token, runs once, together with those of other newcomers. From then on the row
writes a token a step, in the same forward as all other rows. In fp32 a row's likeliest tokens are those that it gets
alone; in bf16 they can depend on the rows beside it, as everywhere.
"""

# R rows, V vocabulary

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefixray.decoding.beam_search import forbid
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.serving.answer import Answer, Reason
from prefixray.serving.drawing import Sampling, draw
from prefixray.serving.models import Model
from prefixray.serving.seats import SeatTable
from prefixray.training.prefill import prompt_columns


@dataclass(frozen=True)
class End:
    """How an answer ended, and what it took."""

    reason: Reason
    num_new: int  # tokens, the end token included


Listener = Callable[[str, End | None], None]
"""Called with the next piece of an answer, and at its end with how it ended; not once the request is cancelled.

With neither where the engine has ended before the answer: no piece is empty unless it is the last.
"""


@dataclass(eq=False)
class Request:
    """A prompt for a model, and who is told."""

    model: Model
    prompt: tuple[int, ...]  # with room for an infix
    infix_start: int
    answer: Answer
    sampling: Sampling
    listener: Listener
    is_cancelled: bool = False
    """Set by whoever asked: nobody listens any more."""
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    """When the first token came."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.sampling.seed)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt) - self.model.insert.infix_length

    def end(self) -> End:
        """How the answer ended."""
        assert self.answer.reason is not None, "the answer is whole"
        return End(self.answer.reason, len(self.answer.ids))


class Batch:
    """The rows that write now."""

    def __init__(self, base: Base, pad_id: int) -> None:
        self.base, self._pad_id = base, pad_id
        self._binder = Binder.of(base.model)
        self._seats = SeatTable(base)
        self._unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=base.device)  # so that the model makes no mask
        self.rows: list[Request] = []

    def join(self, requests: Sequence[Request]) -> None:
        """Seat these requests, in one forward over their prompts."""
        prompts = [(request.model.insert, request.prompt, request.infix_start) for request in requests]
        self._seats.join(prompt_columns(self.base, self._pad_id, prompts))
        self.rows += requests

    def leave(self, request: Request) -> None:
        """Free a request's seat, whether its answer is whole or not."""
        row = self.rows.index(request)
        self._seats.leave(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def step(self) -> list[Request]:
        """Write a token of each row, and tell; those whose answers are whole now have left."""
        for request, token in zip(self.rows, self._next_tokens(self._logits()), strict=True):
            if request.first_at is None:
                request.first_at = time.monotonic()
            piece = request.answer.add(token)
            end = None if request.answer.reason is None else request.end()
            if not request.is_cancelled and (piece or end is not None):
                request.listener(piece, end)
        done = [request for request in self.rows if request.answer.reason is not None]
        for request in done:
            self.leave(request)
        return done

    def _logits(self) -> Tensor:
        """The logits after each row's last token, (R, V), in fp32."""
        tokens = [(*request.prompt[-1:], *request.answer.ids)[-1:] for request in self.rows]
        bare = [Insert(functions=request.model.insert.functions) for request in self.rows]
        model: Any = self.base.model
        with self._binder.bind(bare, range(len(bare)), cache=self._seats):
            positions = self._seats.begin_step()
            ids = torch.tensor(tokens, device=self.base.device)  # (R, 1)
            inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": self._unread}
            logits: Tensor = model(**inputs, use_cache=False).logits[:, -1]
        return logits.float()

    def _next_tokens(self, logits: Tensor) -> list[int]:
        """Each row's choice."""
        for scores, request in zip(logits.split(1), self.rows, strict=True):
            model = request.model
            if model.has_rules:
                written = torch.tensor([[request.prompt[-1], *request.answer.ids]], device=logits.device)
                forbid(scores, written, model.decoding, model.template.eos_id, model.banned)
        tokens: list[int] = logits.argmax(1).tolist()
        for row, request in enumerate(self.rows):
            if request.sampling.temperature > 0.0:
                tokens[row] = draw(logits[row], request.sampling, request.generator)
        return tokens
