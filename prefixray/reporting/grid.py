"""A table of text cells: aligned for a terminal, or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table of finished cells, to be set for a terminal or as Markdown."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[str]  # headers of the columns that are aligned left

    def text(self) -> str:
        """Columns of equal width, two spaces apart."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return "\n".join("  ".join(self._padded(line, widths)).rstrip() for line in lines)

    def markdown(self) -> str:
        """Rows between pipes."""
        rule = [":--" if head in self.left else "--:" for head in self.header]
        lines = [self.header, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |" for line in lines)

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        cells = zip(self.header, line, widths, strict=True)
        return [cell.ljust(width) if head in self.left else cell.rjust(width) for head, cell, width in cells]


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return "".join("\\" + char if char in "\\`*_[]<>|#+" else char for char in text)


def one_line(text: str) -> str:
    """The text without line breaks and repeated spaces."""
    return " ".join(text.split())
