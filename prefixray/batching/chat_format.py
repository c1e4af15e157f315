"""A tokenizer's chat format, written alike on every day.

Llama 3's format and others write the day on which they run. Trials that go on tomorrow, and a teacher and its student,
would see different prompts.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any
from unittest import mock

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils


class _FixedDay(datetime):
    """It is always the day that Llama 3's format writes where it is told none."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_FixedDay":
        """That day."""
        return cls(2024, 7, 26, tzinfo=tz)


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, asks_for_answer: bool
) -> str:
    """A conversation as text, on 26 July 2024, without thinking; with `asks_for_answer` an answer begins behind it.

    Raises jinja2's `TemplateError` where the format refuses the messages.
    """
    # Without Qwen3's thinking. A function of the day that is passed here would not reach the format.
    options: Any = {"add_generation_prompt": True, "enable_thinking": False} if asks_for_answer else {}
    with mock.patch.object(chat_template_utils, "datetime", _FixedDay):
        return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options))
