"""The text of one answer while it grows: what of it is certain, and where it ends.

An answer ends at its end token, at its first line break as every hypothesis does (unless it may have several lines), at
a text that the request names, or when it has as many tokens as it may have.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from prefixray.data.texts import up_to_line_break

Reason = Literal["stop", "length"]
_INCOMPLETE = "\ufffd"  # what a tokenizer decodes part of a character to


class Answer:
    """Tokens in, pieces of text out; the pieces make up the whole answer."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        eos_id: int,
        max_tokens: int,
        stop: Sequence[str] = (),
        one_line: bool = True,
        by_word: bool = False,
    ) -> None:
        """`by_word`: the tokenizer may change the last word's surroundings, so that a word waits for the next one."""
        self._decode, self._eos_id, self._max_tokens = decode, eos_id, max_tokens
        self._stop, self._one_line, self._by_word = stop, one_line, by_word
        self._shown = ""
        self.ids: list[int] = []
        """All new tokens, the end token included."""
        self.reason: Reason | None = None
        """Why the answer is whole; None: it is not."""

    def add(self, token: int) -> str:
        """Take the next token; the piece of text that has become certain."""
        assert self.reason is None, "the answer has ended"
        self.ids.append(token)
        is_end = token == self._eos_id
        text = self._decode(self.ids[:-1] if is_end else self.ids).lstrip()
        end = self._end(text)
        if end is not None or is_end:
            self.reason = "stop"
        elif len(self.ids) == self._max_tokens:
            self.reason = "length"
        return self._show(self._certain(text) if self.reason is None else text[:end].rstrip())

    def _end(self, text: str) -> int | None:
        """Where the text is to be cut; None: nowhere yet."""
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if self._one_line and (first := len(up_to_line_break(text))) < len(text):
            places.append(first)
        return min(places, default=None)

    def _certain(self, text: str) -> str:
        """The text without what later tokens may change: blanks at its end, part of a character, of a stop text."""
        if self._by_word:
            text = text[: max(0, text.rfind(" "))]
        text = text.rstrip(_INCOMPLETE)
        started = [length for stop in self._stop for length in range(1, len(stop)) if text.endswith(stop[:length])]
        return text[: len(text) - max(started, default=0)].rstrip()

    def _show(self, text: str) -> str:
        """What is new in the text."""
        if not text.startswith(self._shown):
            return ""
        piece = text[len(self._shown) :]
        self._shown = text
        return piece
