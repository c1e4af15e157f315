"""A table of text cells, and how numbers and searched values are written in a cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefixray.errors import printable
from prefixray.system.records import Scalar

SHORT: Mapping[str, str] = {"learning_rate": "lr", "init_token": "init"}  # keys in column headers
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",  # after the end of a row, LaTeX would read it as a distance
}


@dataclass(frozen=True)
class Grid:
    """A table of finished cells; it is printed in a terminal, or written as Markdown or LaTeX."""

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

    def latex(self) -> str:
        """A `tabular` with the rules of the package `booktabs`."""
        head, *rows = (" & ".join(_latex(cell.strip()) for cell in line) + r" \\" for line in (self.header, *self.rows))
        columns = "".join("l" if name in self.left else "r" for name in self.header)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"])

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        cells = zip(self.header, line, widths, strict=True)
        return [cell.ljust(width) if head in self.left else cell.rjust(width) for head, cell, width in cells]


def escaped(text: str) -> str:
    """The text with a backslash before every character that Markdown would interpret."""
    return "".join("\\" + char if char in "\\`*_[]<>|#+" else char for char in text)


def _latex(text: str) -> str:
    """The text with every character written out that LaTeX would interpret."""
    return "".join(_LATEX.get(char, char) for char in text)


def one_line(text: str) -> str:
    """The text without line breaks and repeated spaces, its control characters spelt out."""
    return printable(" ".join(text.split()))


def differing_keys(trials: Sequence[tuple[str, Mapping[str, Scalar]]]) -> list[str]:
    """The keys whose values differ among the trials of some arm, in their order of appearance.

    Each trial is given as its arm and its values. An arm with a single trial keeps all keys: nobody knows yet which of
    them will differ.
    """
    keys = list(dict.fromkeys(key for _, values in trials for key in values))
    arms = {arm: [values for name, values in trials if name == arm] for arm, _ in trials}
    return [key for key in keys if any(_differs(key, values) for values in arms.values())]


def value_text(key: str, value: Scalar) -> str:
    """A searched value in at most ten characters."""
    if value is None:
        return "random" if key == "init_token" else "-"
    if isinstance(value, float):
        return scientific(value) if value and abs(value) < 0.1 else f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 10 else text[:8] + ".."


def scientific(value: float) -> str:
    """`2.1e-2`: two digits, and an exponent without leading zeros."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def count_text(count: int) -> str:
    """A count for people: 960, 115k, 1.2M, 134M."""
    for scale, unit in ((1_000, "k"), (1_000_000, "M"), (1_000_000_000, "B")):
        if count < 1_000:
            break
        scaled = count / scale
        if round(scaled) < 1_000:
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return str(count)


def _differs(key: str, trials: Sequence[Mapping[str, Scalar]]) -> bool:
    if len(trials) == 1:
        return key in trials[0]
    return len({(key in values, values.get(key)) for values in trials}) > 1
