"""The template of a task for a base: which tokens stand around source and target.

A decoder-only model reads source, separator and target as one row. The plain template is the original's: a space, the
source, a space, the separator; then a space, the target, a space, the end token. So " name : Aromi" starts with a token
that begins with a space, as words inside a text do. Where the tokenizer puts a start token in front of every text, as
Llama's and Gemma's do, it stands in front of the row, as in the base's pretraining. The chat template is the one that
the tokenizer brings. An encoder-decoder model reads the source in its encoder and the target in its decoder, each with
the special tokens that its tokenizer puts around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prefixray.batching.chat_format import rendered
from prefixray.data.task_config import TaskConfig
from prefixray.data.texts import encoding_problem
from prefixray.errors import UserError
from prefixray.model.base import Base

_MARK = "PREFIXRAYMARK"  # stands for a text while a chat format is taken apart


@dataclass(frozen=True)
class Template:
    """How a source and a target become token ids; kept in every artifact."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int  # of the base; a tokenizer may have more tokens
    is_encoder_decoder: bool
    form: tuple[str, str]  # text in front of a source and behind it
    target_form: tuple[str, str]  # text in front of a target and behind it
    before: tuple[int, ...]  # ids in front of a source's text
    after: tuple[int, ...]  # ids behind it: the separator
    target_before: tuple[int, ...]  # a decoder's first ids; empty where the source's ids stand in front of the target
    eos_id: int
    pad_id: int
    max_source_tokens: int  # of the source's text
    max_target_tokens: int

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts: source tokens, cut at `max_source_tokens`, between `before` and `after`.

        Raises `UserError` as `check_texts` does.
        """
        self.check_texts(texts)
        sources = self.tokens([text.join(self.form) for text in texts])
        return [[*self.before, *ids[: self.max_source_tokens], *self.after] for ids in sources]

    @staticmethod
    def check_texts(texts: Sequence[str]) -> None:
        """Raise `UserError` for a text that no tokenizer takes: one with half a surrogate pair."""
        for text in texts:
            if (problem := encoding_problem(text)) is not None:
                raise UserError(f"source: {text!r:.60}: {problem}")

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids behind the prompts in training: target tokens, cut at `max_target_tokens`, and the end token."""
        targets = self.tokens([text.join(self.target_form) for text in texts])
        return [[*ids[: self.max_target_tokens], self.eos_id] for ids in targets]

    def encode_source(self, text: str) -> list[int]:
        """The prompt of one source."""
        return self.encode_sources([text])[0]

    @property
    def num_after(self) -> int:
        """Tokens of a prompt that stand behind an infix: the separator, or the last token."""
        return max(1, len(self.after))

    def record(self) -> dict[str, Any]:
        """The template as an artifact keeps it: all but the tokenizer and what the base says."""
        return {
            "is_encoder_decoder": self.is_encoder_decoder,
            "form": list(self.form),
            "target_form": list(self.target_form),
            "before": list(self.before),
            "after": list(self.after),
            "target_before": list(self.target_before),
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "max_source_tokens": self.max_source_tokens,
            "max_target_tokens": self.max_target_tokens,
        }

    @classmethod
    def from_record(cls, base: Base, record: Mapping[str, Any]) -> "Template":
        """The template that an artifact was trained with, on its base."""
        tuples = {key: tuple(record[key]) for key in ("form", "target_form", "before", "after", "target_before")}
        return cls(tokenizer=base.tokenizer, vocab_size=base.shape.vocab_size, **{**record, **tuples})

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, without special tokens around them; those that stand in a text are read as such.

        Raises `UserError` for a token that the base does not know.
        """
        if not texts:
            return []
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, **only_ids).input_ids
        largest = max((max(row) for row in ids if row), default=0)
        if largest >= self.vocab_size:
            text = next(text for text, row in zip(texts, ids, strict=True) if largest in row)
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"text {text!r:.80}: {token!r} is token {largest} of the tokenizer, and the base has {self.vocab_size} "
                "tokens; take it out of the text"
            )
        return ids


def make_template(base: Base, task: TaskConfig) -> Template:
    """The template of a task for a base. Raises `UserError` where the two do not fit each other."""
    if base.shape.is_encoder_decoder:
        return _encoder_decoder_template(base, task)
    if base.tokenizer.eos_token_id is None:
        raise UserError("base: its tokenizer has no end-of-sequence token, so a target could not end")
    return _chat_template(base, task) if task.template == "chat" else _plain_template(base, task)


def _plain_template(base: Base, task: TaskConfig) -> Template:
    """The original's template.

    The separator is the task's own text, where it has one. Else it is the token that both begins and ends a sequence,
    which the original used for GPT-2. Where these are two tokens it is a line break: SmolLM2's beginning-of-sequence
    token announces a speaker's role, and its E2E dev loss without a prefix is 3.04 behind it, 2.76 behind a line break.
    """
    tokenizer, eos = base.tokenizer, base.tokenizer.eos_token_id
    if task.separator is None and tokenizer.bos_token_id in (eos, None):
        separator = (eos,)
    else:
        text = "\n" if task.separator is None else task.separator
        separator = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        if not separator:
            raise UserError(f"task.separator: {text!r}: has no tokens in the base's vocabulary")
    head = " " if task.instruction is None else f" {task.instruction} "
    before, _ = _around(tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids)
    return _template(base, task, form=(head, " "), target_form=(" ", " "), before=before, after=separator)


def _chat_template(base: Base, task: TaskConfig) -> Template:
    """The source as a user's message, the target as the answer, in the format that the tokenizer brings.

    A format that writes the day writes 26 July 2024.
    """
    tokenizer = base.tokenizer
    if task.separator is not None:
        raise UserError("task.separator: must be null where task.template is chat, which has marks of its own")
    if tokenizer.chat_template is None:
        raise UserError(f"task.template: chat: the tokenizer of {base.name} has no chat format; take plain")
    question = [{"role": "user", "content": _MARK}]
    dialogue = [*question, {"role": "assistant", "content": _MARK}]
    try:
        prompt = rendered(tokenizer, question, asks_for_answer=True)
        answered = rendered(tokenizer, dialogue, asks_for_answer=False)
    except TemplateError as error:
        raise UserError(f"task.template: chat: the chat format of {base.name} refuses: {error}; take plain") from error
    before, mark, after = prompt.partition(_MARK)
    if not mark:
        raise UserError(f"task.template: chat: the chat format of {base.name} drops the user's message; take plain")
    ends = tokenizer(answered.rpartition(_MARK)[2], add_special_tokens=False).input_ids
    return _template(
        base,
        task,
        form=("" if task.instruction is None else f"{task.instruction}\n", ""),
        before=tuple(tokenizer(before, add_special_tokens=False).input_ids),
        after=tuple(tokenizer(after, add_special_tokens=False).input_ids),
        eos_id=next((token for token in ends if token in tokenizer.added_tokens_decoder), ends[0] if ends else None),
    )


def _encoder_decoder_template(base: Base, task: TaskConfig) -> Template:
    """The special tokens that the base's tokenizer puts around a source and around a target.

    Special tokens in front of a target (BART's <s>, mBART's language) are given to the decoder, not predicted, because
    decoding would force them. Where the model names no token to start from, the decoder starts from the target's last
    token, as mBART's does.
    """
    for key, value, none in (("template", task.template, "plain"), ("separator", task.separator, None)):
        if value != none:
            raise UserError(f"task.{key}: {value!r}: is for decoder-only bases; {base.name} is an encoder-decoder")
    tokenizer, config = base.tokenizer, base.model.config
    probe = tokenizer("a", add_special_tokens=False).input_ids
    before, after = _around(tokenizer("a").input_ids, probe)
    try:
        target_ids = tokenizer(text_target="a").input_ids
    except KeyError as error:  # M2M100's, which takes no other language for it
        problem = f"the tokenizer of {base.name} has no target language ({error})"
        raise UserError(f"base: {problem}; save the tokenizer with src_lang and tgt_lang") from error
    target_before, target_after = _around(target_ids, probe)
    if not target_after:
        raise UserError(f"base: the tokenizer of {base.name} ends no target with a special token")
    configs = (config, base.model.generation_config)
    named = (getattr(settings, "decoder_start_token_id", None) for settings in configs)
    start = next((token for token in named if token is not None), None)
    return _template(
        base,
        task,
        form=("" if task.instruction is None else f"{task.instruction} ", ""),
        before=before,
        after=after,
        target_before=(target_after[-1] if start is None else start, *target_before),
        eos_id=target_after[0],
    )


def _template(
    base: Base,
    task: TaskConfig,
    *,
    form: tuple[str, str],
    target_form: tuple[str, str] = ("", ""),
    before: tuple[int, ...] = (),
    after: tuple[int, ...] = (),
    target_before: tuple[int, ...] = (),
    eos_id: int | None = None,
) -> Template:
    """The template with its limits. A task's `max_source_tokens` does not count the tokens of its instruction."""
    tokenizer = base.tokenizer
    eos = tokenizer.eos_token_id if eos_id is None else eos_id
    vocab_size, pad = base.shape.vocab_size, tokenizer.pad_token_id
    if (largest := max(*before, *after, *target_before, eos)) >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        problem = f"its rows need {token!r}, token {largest} of the tokenizer, and the base has {vocab_size} tokens"
        raise UserError(f"base: {base.name}: {problem}; take another base")
    instruction = tokenizer(form[0].rstrip(), add_special_tokens=False).input_ids
    max_source, max_target = task.max_source_tokens + len(instruction), task.max_target_tokens
    limit = base.shape.max_positions
    if base.shape.is_encoder_decoder and limit is not None:  # a decoder-only row shares its positions with its prefix
        max_source = min(max_source, limit - len(before) - len(after))
        max_target = min(max_target, limit - len(target_before))
    return Template(
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        is_encoder_decoder=base.shape.is_encoder_decoder,
        form=form,
        target_form=target_form,
        before=before,
        after=after,
        target_before=target_before,
        eos_id=eos,
        pad_id=eos if pad is None or pad >= vocab_size else pad,
        max_source_tokens=max_source,
        max_target_tokens=max_target,
    )


def _around(ids: Sequence[int], inner: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids in front of `inner` in `ids`, and the ids behind it."""
    starts = [i for i in range(len(ids)) if list(ids[i : i + len(inner)]) == list(inner)]
    assert starts, "special tokens stand around a text"
    return tuple(ids[: starts[0]]), tuple(ids[starts[0] + len(inner) :])
