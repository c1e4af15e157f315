"""A text in the context of a decoder-only base: what rows see who are told the text itself instead of a prefix.

The text stands where the user's message begins, in front of the source: in a chat format, inside the same message. Its
keys and values are computed once and put in front of any number of rows, as a prefix is.
"""

# L layers, K key/value heads, S tokens of the text and of what stands in front of it, D head dim

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prefixray.batching.template import Template
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert

_BETWEEN = "\n\n"  # the text and the source
_MOST_POSITIONS = 16_384  # of all rows that run at once: each has a copy of the keys and values in front of it


@dataclass(frozen=True)
class Context:
    """A text as keys and values, and the template of the rows that stand behind it."""

    insert: Insert  # its prefix: (2, L, K, S, D)
    template: Template  # without the tokens in front of a source, which stand in front of the text

    @property
    def num_tokens(self) -> int:
        """Positions in front of a row."""
        return self.insert.num_positions()


def read_context(base: Base, template: Template, ids: Sequence[int]) -> Context:
    """Run the tokens of a text through the base.

    Raises `UserError` for an encoder-decoder, whose rows do not go on from a text.
    """
    if template.is_encoder_decoder:
        raise UserError(f"base: {base.name}: is an encoder-decoder, and a document needs a decoder-only base")
    between = base.tokenizer(_BETWEEN, add_special_tokens=False).input_ids
    tokens = torch.tensor([[*template.before, *ids, *between]], device=base.device)
    with torch.no_grad():
        recorded = Binder.of(base.model).record(tokens)
    return Context(Insert({"decoder": recorded["decoder"]}), replace(template, before=()))


def most_rows(insert: Insert) -> int:
    """How many rows may run at once behind an insert; one where it is longer than there is room for."""
    return max(1, _MOST_POSITIONS // max(1, insert.num_positions()))


def fitting(base: Base, template: Template, ids: Sequence[int], room: int) -> Sequence[int]:
    """As many first tokens of a text as fit the base's positions, with `room` for a source and its answer behind it."""
    limit = base.shape.max_positions
    return ids if limit is None else ids[: max(0, limit - room - num_around(base, template))]


def num_around(base: Base, template: Template) -> int:
    """Tokens that stand around a text in a context."""
    return len(template.before) + len(base.tokenizer(_BETWEEN, add_special_tokens=False).input_ids)
