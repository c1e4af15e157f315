"""What a section is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefixray.reporting.figures import Figure
from prefixray.reporting.grid import Grid


@dataclass(frozen=True)
class Output:
    """An arm's output on a source."""

    arm: str
    text: str
    score: str = ""


@dataclass(frozen=True)
class Example:
    """A source with its outputs; `why` says why it was chosen."""

    source: str
    references: Sequence[str]
    outputs: Sequence[Output]
    why: str = ""


@dataclass(frozen=True)
class AllOutputs:
    """The outputs of every arm on the sources of the split."""

    arms: Sequence[str]
    reference: str
    metric: str  # as it is shown
    digits: int  # of its numbers, behind the point
    higher_is_better: bool
    examples: Sequence[Example]  # of each the outputs in the order of the arms


@dataclass(frozen=True)
class Link:
    """A file beside the report; where `content` is known, the HTML page holds it itself."""

    name: str
    what: str
    content: str | None = None


@dataclass(frozen=True)
class Section:
    """A section of the report; its parts are shown in the order of the fields."""

    key: str
    title: str
    grid: Grid | None = None
    text: Sequence[str] = ()
    reading: str = ""  # how to read its charts
    figures: Sequence[Figure] = ()
    about_examples: Sequence[str] = ()
    examples: Sequence[Example] = ()
    browser: AllOutputs | None = None  # outputs to be searched and sorted; without scripts the examples stand there
    code: Sequence[str] = ()
    links: Sequence[Link] = ()
    folded: Grid | None = None  # a long table; the page shows it on a click
