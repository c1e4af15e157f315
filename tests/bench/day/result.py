"""What a part of `gpu_day.py` finds: facts, and rows of tables."""

import json
import os
from pathlib import Path


class Result:
    """Findings in a file that is whole after each of them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.facts: dict[str, object] = {}
        self.tables: dict[str, list[dict[str, object]]] = {}

    def say(self, **facts: object) -> None:
        """Keep facts; an underscore in a name becomes a space."""
        named = {name.replace("_", " "): value for name, value in facts.items()}
        self.facts |= named
        self._write(named)

    def row(self, table: str, row: dict[str, object]) -> None:
        """Put a row, by column, into a table."""
        self.tables.setdefault(table, []).append(row)
        self._write(row)

    def _write(self, found: dict[str, object]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"facts": self.facts, "tables": self.tables}))
        os.replace(new, self._file)
        short = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in found.items()}
        print(", ".join(f"{name} {value}" for name, value in short.items()), flush=True)
