"""The models that requests name: artifacts, and the untuned base, all of them on one base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from prefixray.artifacts.store import load_artifact
from prefixray.batching.chat_format import rendered
from prefixray.batching.template import Template
from prefixray.config.schema import DecodingSettings
from prefixray.decoding.generate import line_breaks, with_infix_room
from prefixray.decoding.tuned_model import Tuned, open_base_of
from prefixray.errors import UserError, first_line
from prefixray.methods.contract import Untuned
from prefixray.methods.stacked import insert_all
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert
from prefixray.results.artifacts import base_of, sweep_of
from prefixray.results.record import UNTUNED
from prefixray.system.path_or_hub import leads_nowhere

Message = Mapping[str, str]
"""A message of a conversation: its role and its content."""


@dataclass(frozen=True)
class Limits:
    """How much the server takes on."""

    seats: int = 16
    """Answers that are written at once."""
    queue: int = 64
    """Requests that wait for a seat."""
    prompt_tokens: int = 2048
    """Of one prompt."""
    new_tokens: int = 1024
    """Of one answer."""


@dataclass(frozen=True, eq=False)
class Model:
    """An artifact as requests see it."""

    about: str
    insert: Insert
    template: Template
    decoding: DecodingSettings
    is_chat: bool  # trained in the tokenizer's chat format
    banned: tuple[int, ...]  # ids that are never written

    @property
    def has_rules(self) -> bool:
        """Whether some tokens may not follow others."""
        return bool(self.banned or self.decoding.no_repeat_ngram_size or self.decoding.min_new_tokens)

    def of_source(self, source: str) -> list[int]:
        """The prompt of a source, as in training: in the task's template, cut where the task cuts."""
        return self.template.encode_source(source)

    def of_messages(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation: a single user's message is a source, others need the tokenizer's chat format.

        Raises `UserError` where the model was not trained in it, where it refuses them, and where one is no text.
        """
        self.template.check_texts([message["content"] for message in messages])
        if [message["role"] for message in messages] == ["user"]:
            return self.of_source(messages[0]["content"])
        if not self.is_chat:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"messages: {roles}: this model was trained on single sources (task.template: plain); "
                "send one user message"
            )
        try:
            text = rendered(self.template.tokenizer, messages, asks_for_answer=True)
        except TemplateError as error:
            raise UserError(f"messages: the chat format of the base refuses: {first_line(error)}") from error
        return self.template.tokens([text])[0]

    def prompt(self, ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The prompt with columns for an infix, and the first of them."""
        return with_infix_room(self.template, self.insert, ids)

    def room(self, base: Base, ids: Sequence[int], asked: int | None, limits: Limits) -> int:
        """How many new tokens an answer may have: those asked for, or the artifact's own number where they fit.

        Raises `UserError` where the prompt is too long, and where those asked for do not fit.
        """
        if len(ids) > limits.prompt_tokens:
            raise UserError(
                f"prompt: {len(ids)} tokens: this server takes {limits.prompt_tokens}; shorten it, or start the server "
                "with a higher --max-prompt-tokens"
            )
        if asked is not None and asked > limits.new_tokens:
            raise UserError(
                f"max_tokens: {asked}: this server writes at most {limits.new_tokens}; ask for fewer, or start it with "
                "a higher --max-new-tokens"
            )
        wanted = min(self.decoding.max_new_tokens, limits.new_tokens) if asked is None else asked
        if (positions := base.shape.max_positions) is None:
            return wanted
        taken = self.insert.num_seen("decoder") + len(ids)
        left = positions - taken
        if left < (1 if asked is None else asked):
            raise UserError(
                f"prompt: prefix and prompt take {taken} of the {positions} positions of {base.name}, so that "
                f"{max(0, left)} are left for the answer; shorten the prompt, or ask for fewer tokens (max_tokens)"
            )
        return min(wanted, left)


@dataclass(frozen=True)
class Models:
    """All models of a server, on one base."""

    base: Base
    by_name: Mapping[str, Model]

    @property
    def pad_id(self) -> int:
        """The id that fills prompts of different lengths."""
        return self.by_name[UNTUNED].template.pad_id


def load_models(folders: Mapping[str, Path], *, device: str = "auto", trust_remote_code: bool = False) -> Models:
    """Load the base that the artifacts name, and the artifacts; `untuned` reads prompts in the first one's template.

    If a sweep was moved, its base lies where the sweep's file says. Raises `UserError` where an artifact is damaged,
    where they are not of one base in one precision, and where the base is an encoder-decoder.
    """
    distinct = list(dict.fromkeys(folders.values()))
    records = [load_artifact(folder)[1] for folder in distinct]
    first = records[0]
    if first["base"]["shape"].get("is_encoder_decoder"):
        problem = "an encoder-decoder, whose rows share no cache; use prefixray decode or Tuned.generate"
        raise UserError(f"{distinct[0]}: base: {first['base']['name']}: is {problem}")
    for folder, record in zip(distinct, records, strict=True):
        if difference := _apart(record, first):
            raise UserError(f"{folder}: {difference} of {distinct[0]}; serve them apart")
    names = [base_of(sweep_of(folder), record) for folder, record in zip(distinct, records, strict=True)]
    name = next((name for name in names if not leads_nowhere(name)), names[0])
    opened = open_base_of(first, name, device=device, trust_remote_code=trust_remote_code)
    tuned = [opened.bind(folder) for folder in distinct]
    inserts = insert_all([each.method for each in tuned], [None] * len(tuned), stacked=len(tuned) > 1).of_trials
    known = {
        folder: _model(each, insert, record)
        for folder, each, insert, record in zip(distinct, tuned, inserts, records, strict=True)
    }
    base = opened.base
    untuned = Tuned(base, Untuned(), tuned[0].template, tuned[0].decoding, about=f"{base.name}, untuned")
    by_name = {UNTUNED: _model(untuned, untuned.insert, first)}
    by_name |= {name: known[folder] for name, folder in folders.items()}
    return Models(base, by_name)


def _apart(record: Mapping[str, Any], first: Mapping[str, Any]) -> str | None:
    """Why an artifact shares no base with the first; None where it does."""
    base = record["base"]
    if base["digest"] != first["base"]["digest"]:  # the same weights may lie in several places
        return f"base: {base['name']} with digest {base['digest']}: is not that"
    if record["precision"] != first["precision"]:
        return f"precision: {record['precision']}: is not the {first['precision']}"
    return None


def _model(tuned: Tuned, insert: Insert, record: Mapping[str, Any]) -> Model:
    decoding, template = tuned.decoding, tuned.template
    banned = line_breaks(template) if decoding.ban_line_breaks else ()
    is_chat = record["task"]["template"] == "chat"
    return Model(tuned.about, insert, template, decoding, is_chat, tuple(banned))
