"""Hypotheses while they are written: the part of each that no later step can change, in pieces of whole words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Stream = Callable[[int, str], None]
"""Called with the index of a source and the next piece of its hypothesis; the pieces make up the whole of it."""


@dataclass(frozen=True)
class Watched:
    """Who is told while sources are decoded."""

    on_done: Callable[[int], None] = lambda _: None
    """Called with how many sources have just got their hypothesis."""
    on_text: Callable[[Sequence[int], str, bool], None] | None = None
    """Called with the indices of sources, the certain part of their hypothesis, and whether that is all of it."""


NOBODY = Watched()


class Pieces:
    """Turns growing texts into pieces. The last word of a text waits, because more letters may belong to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._shown: dict[int, str] = {}  # by source

    def of(self, indices: Sequence[int]) -> Callable[[Sequence[int], str, bool], None]:
        """The `on_text` of a batch whose sources have these indices."""
        return lambda sources, text, is_whole: self._grow([indices[source] for source in sources], text, is_whole)

    def _grow(self, sources: Sequence[int], text: str, is_whole: bool) -> None:
        """Pass on what is new in the text."""
        certain = text if is_whole else text[: max(0, text.rfind(" "))]
        for source in sources:
            shown = self._shown.get(source, "")
            if certain.startswith(shown) and len(certain) > len(shown):
                self._stream(source, certain[len(shown) :])
                self._shown[source] = certain
