"""Draw what a sweep has printed as a picture of a terminal.

    prefixray sweep sweeps/quickstart.yaml | tee quickstart.txt
    python tests/recipes/terminal_picture.py quickstart.txt docs/pictures/terminal.svg

The text stays as it is. Left out are lines between the first trials and the table, where an ellipsis stands, and all
that comes behind the first example.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = "$ prefixray sweep sweeps/quickstart.yaml"
NUM_FIRST = 12  # lines before the ellipsis
WIDTH = 124  # columns


def shown(lines: Sequence[str]) -> list[str]:
    """The lines of the picture. Raises `StopIteration` where there is no table."""
    table = next(number for number, line in enumerate(lines) if " test, " in line)
    examples = [number for number, line in enumerate(lines) if number > table and not line.strip()]
    end = examples[1] if len(examples) > 1 else len(lines)
    return [COMMAND, *lines[: min(NUM_FIRST, table)], "...", *lines[table:end]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="what the sweep has printed")
    parser.add_argument("picture", type=Path, help="the SVG that is written")
    options = parser.parse_args(arguments)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in shown(options.text.read_text(encoding="utf-8").splitlines()):
        console.print(Text(line), overflow="ignore", no_wrap=True)
    console.save_svg(str(options.picture), title="prefixray")


if __name__ == "__main__":
    main()
