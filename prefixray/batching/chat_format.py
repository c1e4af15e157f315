"""A tokenizer's chat format, written alike on every day.

Llama 3's format and others write the day on which they run. Trials that go on tomorrow, and a teacher and its student,
would see different prompts.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

_DAY = datetime(2024, 7, 26)  # that Llama 3's format writes where it is told none
_REPLACED = "".join(f".replace('%{code}', '{_DAY:%{code}}')" for code in "djmbByYaAHIMSp")
# In front of a format it stands for the function by which transformers tells the day. The line break is not written.
_TELL_DAY = f"{{%- macro strftime_now(form) %}}{{{{ form{_REPLACED} }}}}{{% endmacro %}}\n"


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, asks_for_answer: bool
) -> str:
    """A conversation as text, on 26 July 2024, without thinking; with `asks_for_answer` an answer begins behind it.

    Raises jinja2's `TemplateError` where the format refuses the messages.
    """
    # Without Qwen3's thinking.
    options: Any = {"add_generation_prompt": True, "enable_thinking": False} if asks_for_answer else {}
    form = _TELL_DAY + tokenizer.get_chat_template()
    written = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(written, chat_template=form, tokenize=False, **options))
