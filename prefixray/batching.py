"""Examples -> token ids -> padded batches.

The template is the original's: a space, the source, a space, the separator; then a space, the target, a space, the end
token (so " name : Aromi" starts with a space token as words inside a text do). Rows are sorted by length and cut
into micro-batches under a token budget; right padding needs no mask under causal attention.
"""

# B rows, S tokens of the longest row

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefixray.config import TaskConfig, UserError
from prefixray.tasks import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """How a source and a target become token ids; kept in every artifact."""

    tokenizer: PreTrainedTokenizerBase
    separator: tuple[int, ...]
    eos_id: int
    pad_id: int
    max_source_tokens: int
    max_target_tokens: int

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts: source tokens, cut at `max_source_tokens`, and the separator."""
        return [[*ids[: self.max_source_tokens], *self.separator] for ids in self._tokens(texts)]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """What follows the prompts in training: target tokens, cut at `max_target_tokens`, and the end token."""
        return [[*ids[: self.max_target_tokens], self.eos_id] for ids in self._tokens(texts)]

    def encode_source(self, text: str) -> list[int]:
        """One prompt."""
        return self.encode_sources([text])[0]

    def record(self) -> dict[str, Any]:
        """What an artifact keeps of the template."""
        return {
            "separator": list(self.separator),
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "max_source_tokens": self.max_source_tokens,
            "max_target_tokens": self.max_target_tokens,
        }

    @classmethod
    def from_record(cls, tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]) -> "Template":
        """The template that an artifact was trained with."""
        return cls(tokenizer=tokenizer, **{**record, "separator": tuple(record["separator"])})

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer([f" {text} " for text in texts], add_special_tokens=False).input_ids
        return ids


def make_template(tokenizer: PreTrainedTokenizerBase, task: TaskConfig) -> Template:
    """The template of a task for a base's tokenizer.

    The separator is the task's own text; else the token that both begins and ends a sequence, as GPT-2's does and the
    original used; else, where they differ, a line break: SmolLM2's beginning-of-sequence token announces a speaker's
    role, and its E2E dev loss without a prefix is 3.04 behind that token, 2.76 behind a line break.
    Raises `UserError` for a tokenizer without an end token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError("base: its tokenizer has no end-of-sequence token, so a target could not end")
    if task.separator is None and tokenizer.bos_token_id in (eos, None):
        separator = (eos,)
    else:
        text = "\n" if task.separator is None else task.separator
        separator = tuple(tokenizer(text, add_special_tokens=False).input_ids)
        if not separator:
            raise UserError(f"task.separator: {text!r}: has no tokens in the base's vocabulary")
    pad = tokenizer.pad_token_id
    return Template(
        tokenizer, separator, eos, eos if pad is None else pad, task.max_source_tokens, task.max_target_tokens
    )


@dataclass(frozen=True)
class Row:
    """One tokenised example."""

    ids: tuple[int, ...]  # prompt and target
    num_prompt: int

    @property
    def num_inputs(self) -> int:
        """Tokens that go into the model: all but the last."""
        return len(self.ids) - 1

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is taken over."""
        return len(self.ids) - self.num_prompt


def encode(examples: Sequence[Example], template: Template) -> list[Row]:
    """Tokenise examples in one go; repeated sources once. Logs how many sources were cut."""
    texts = list(dict.fromkeys(example.source for example in examples))
    prompts = dict(zip(texts, template.encode_sources(texts), strict=True))
    targets = template.encode_targets([example.target for example in examples])
    full = template.max_source_tokens + len(template.separator)
    num_cut = sum(len(prompt) == full for prompt in prompts.values())
    if num_cut:
        logger.info("%d of %d sources fill max_source_tokens (%d)", num_cut, len(texts), template.max_source_tokens)
    return [
        Row((*prompts[example.source], *target), len(prompts[example.source]))
        for example, target in zip(examples, targets, strict=True)
    ]


def cut_by_length(lengths: Sequence[int], token_budget: int, piece_cost: int) -> list[list[int]]:
    """Indices sorted by length and cut into pieces of like length, of at least one row each.

    A piece ends where rows x longest row would exceed the budget, or where its padding would exceed `piece_cost`, the
    number of tokens that could be computed in the time that one more piece takes by itself.
    """
    pieces: list[list[int]] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[pieces[-1][0]] if pieces else 0
        padding += longest - lengths[index]
        if pieces and (len(pieces[-1]) + 1) * max(1, longest) <= token_budget and padding <= piece_cost:
            pieces[-1].append(index)
        else:
            pieces.append([index])
            padding = 0
    return pieces


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded on the right."""

    input_ids: Tensor  # (B, S)
    positions: Tensor  # (B, S)
    target_rows: Tensor  # (N,) the row of each target token, rows in order
    target_columns: Tensor  # (N,) the position that predicts it
    target_ids: Tensor  # (N,)


def collate(rows: Sequence[Row], *, pad_id: int, device: torch.device) -> Batch:
    """Pad rows to the longest; targets are listed, so that the head is run on them alone."""
    longest = max(row.num_inputs for row in rows)
    inputs = torch.full((len(rows), longest), pad_id)
    target_rows: list[int] = []
    target_columns: list[int] = []
    target_ids: list[int] = []
    for index, row in enumerate(rows):
        inputs[index, : row.num_inputs] = torch.tensor(row.ids[:-1])
        target_rows += [index] * row.num_targets
        target_columns += range(row.num_prompt - 1, row.num_inputs)
        target_ids += row.ids[row.num_prompt :]
    positions = torch.arange(longest).expand(len(rows), longest)
    tensors = (inputs, positions, *map(torch.tensor, (target_rows, target_columns, target_ids)))
    return Batch(*(tensor.to(device) for tensor in tensors))
