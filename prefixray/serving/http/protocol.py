"""Requests in OpenAI's form: which of its fields are read, which values this server has, and what answers look like.

A field that changes answers and that this server lacks is refused, not ignored.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from prefixray.serving.batch import End

_MOST_PROMPTS = 128  # of one request
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(BaseModel):
    """What a stream tells besides text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    """Whether a last event counts tokens."""
    include_obfuscation: bool = False
    """Read, and not done."""


class Asked(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A name of `/v1/models`."""
    max_tokens: PositiveInt | None = None
    """New tokens at most; null: the artifact's own number."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)] | None = None
    """0 or null: the likeliest token is taken; above 0 tokens are drawn."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Tokens are drawn from the likeliest ones that together have this probability."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Of the draws; null: another one each time."""
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    """Texts before which an answer ends."""
    n: Annotated[int, Field(ge=1, le=_MOST_PROMPTS)] | None = None
    """Answers to each prompt, with the seeds seed, seed + 1 and so on."""
    stream: bool | None = None
    """Whether an answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    one_line: bool = True
    """Not OpenAI's: whether an answer ends at its first line break, as hypotheses do."""
    user: str | None = None
    """Read, and not looked at, as `metadata` and `store`."""
    metadata: Mapping[str, str] | None = None
    store: bool | None = None
    frequency_penalty: Literal[0, None] = None
    """This server has no penalties, no biases, no log-probabilities, no tools and no formats."""
    presence_penalty: Literal[0, None] = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> Sequence[str]:
        """The texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionAsked(Asked):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS)]
    """Sources in the form of the task's own, as for `Tuned.generate`."""
    best_of: Literal[1, None] = None
    echo: Literal[False, None] = None
    logprobs: None = None
    suffix: None = None


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # clients send an assistant's message back with all its fields

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and text; a developer's messages are the system's."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatAsked(Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    """A single user's message is a source; a longer conversation needs a model that was trained in a chat format."""
    max_completion_tokens: PositiveInt | None = None
    """As `max_tokens`."""
    logprobs: Literal[False, None] = None
    response_format: Mapping[Literal["type"], Literal["text"]] | None = None


@dataclass(frozen=True)
class Reply:
    """The JSON of one request's answers."""

    is_chat: bool
    model: str
    num_prompt: int  # tokens of the prompts, each counted once for all its answers
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}")

    def whole(self, texts: Sequence[str], ends: Sequence[End]) -> dict[str, Any]:
        """All answers at once."""
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}),
                "logprobs": None,
                "finish_reason": end.reason,
            }
            for index, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        return self._body("chat.completion", choices) | {"usage": self._usage(ends)}

    def piece(self, index: int, text: str, end: End | None, *, is_first: bool) -> dict[str, Any]:
        """An event of a stream."""
        delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if text or is_first:
            delta["content"] = text
        choice = {
            "index": index,
            **({"delta": delta} if self.is_chat else {"text": text}),
            "logprobs": None,
            "finish_reason": None if end is None else end.reason,
        }
        return self._body("chat.completion.chunk", [choice])

    def counted(self, ends: Sequence[End]) -> dict[str, Any]:
        """The event that counts tokens."""
        return self._body("chat.completion.chunk", []) | {"usage": self._usage(ends)}

    def _usage(self, ends: Sequence[End]) -> dict[str, int]:
        num_new = sum(end.num_new for end in ends)
        total = self.num_prompt + num_new
        return {"prompt_tokens": self.num_prompt, "completion_tokens": num_new, "total_tokens": total}

    def _body(self, chat_object: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = chat_object if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def problem(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form. Half a surrogate pair in a name from the request becomes a question mark."""
    sent = message.encode(errors="replace").decode()
    return {"error": {"message": sent, "type": kind, "param": None, "code": code}}
