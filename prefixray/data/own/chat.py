"""A column of chats, as chat models are tuned on: the last answer is the target, what stands before it the source.

    {"messages": [{"role": "user", "content": "Who wrote Emma?"}, {"role": "assistant", "content": "Jane Austen."}]}

One message in front of the answer is the source as it is. Several become a text with a line for each: instructions of
role `system` as they are, every other message behind its role, `user: ...`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from prefixray.data.entries import Entry, Form, LeftOut
from prefixray.data.row_files import Row, kind_of
from prefixray.data.texts import is_empty


@dataclass(frozen=True)
class ChatForm(Form):
    """Rows with a chat in one column. `Form`'s own columns are not read."""

    chat: str = "messages"  # the column

    def problems(self, columns: Sequence[str]) -> list[str]:
        """Why rows with these columns cannot be read."""
        if columns.count(self.chat) == 1:
            return []
        return [f'no "{self.chat}" column; columns are {", ".join(columns) or "none"} (set task.columns.messages)']

    def entry(self, row: Row) -> Entry | LeftOut | list[str]:
        """The row as an entry, or its problems, or why it is left out. A value that is no chat is a problem always."""
        read = source_and_target(row[self.chat])
        if isinstance(read, str):
            problem = f'"{self.chat}" {read}'
            return LeftOut(problem) if self.leaves_out_empty and _has_form(row[self.chat]) else [problem]
        pair = {self.sources[0]: read[0], self.targets[0]: read[1]}
        entry = Form.entry(replace(self, group=None), pair)
        if isinstance(entry, Entry) and self.group is not None:
            return replace(entry, group=self.group(row))
        return entry


def source_and_target(messages: object) -> tuple[str, str] | str:
    """The chat's source and target; or why it has none, as the end of a sentence about the column."""
    if not isinstance(messages, list):
        return f"is {kind_of(messages)}; it must be a list of messages"
    said: list[tuple[str, str]] = []
    for number, message in enumerate(messages, start=1):
        read = _message(message)
        if isinstance(read, str):
            return f"message {number} {read}"
        said.append(read)
    roles = [role for role, _ in said]
    if not roles or roles[-1] != "assistant":
        end = f"it ends with {roles[-1]!r}" if roles else "it is empty"
        return f"must end with a message of role 'assistant', which is the target; {end}"
    *before, (_, target) = said
    if all(role == "system" for role, _ in before):
        return "has no message of a user in front of the answer"
    if len(before) == 1:
        return before[0][1], target
    is_dialogue = sum(role != "system" for role, _ in before) > 1
    lines = [f"{role}: {text}" if is_dialogue and role != "system" else text for role, text in before]
    return "\n".join(lines), target


def _has_form(messages: object) -> bool:
    """Whether a value is a chat in form, or nothing at all."""
    return messages is None or (isinstance(messages, list) and all(map(_is_message, messages)))


def _is_message(message: object) -> TypeGuard[dict[str, object]]:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()


def _message(message: object) -> tuple[str, str] | str:
    """A message's role and text, or what is wrong with it."""
    if not _is_message(message):
        return f"is {kind_of(message)}{_keys(message)}; it must be an object with role and content"
    role, content = message["role"], message["content"]
    if isinstance(content, list):  # parts, as in chats with pictures
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = None if None in texts else "\n".join(map(str, texts))
    if not isinstance(role, str) or not isinstance(content, str):
        return "must have text as its role and its content"
    return "is empty" if is_empty(content) else (role, content.strip())


def _keys(message: object) -> str:
    return f" with {', '.join(map(str, message))}" if isinstance(message, dict) else ""
