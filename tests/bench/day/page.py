"""The page of `gpu_day.py`: everything that its parts have found, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

_PRETENDED = (
    "**A pretended GPU.** A CPU did the work under CUDA's name, on small shapes. Times, speeds and ratios on this page "
    "mean nothing; counts, memory and losses are right."
)
_REAL = (
    "Times, memory, kernels and losses were measured here. What was counted elsewhere, computed from sizes or modelled "
    "is named so where it stands."
)
_LEADING = ("arm", "pack", "what")  # columns of words stand on the left


def page(found: Mapping[str, Any]) -> str:
    """The Markdown of all parts that ran or should have run."""
    parts: Mapping[str, Mapping[str, Any]] = found["parts"]
    facts = parts.get("machine", {}).get("facts", {})
    lines = [f"# A day with {facts.get('device', 'a GPU')}", "", _PRETENDED if found["is_pretended"] else _REAL, ""]
    lines += ["`python tests/bench/gpu_day.py` writes this page.", ""]
    lines += table([{"part": name, "ended": part["ended"], "s": part.get("seconds")} for name, part in parts.items()])
    for name, part in parts.items():
        lines += ["", f"## {part.get('title', name)}", ""]
        lines += [part["about"], ""] if "about" in part else []
        if part["ended"] != "done":
            lines += [f"**Not whole: {part['ended']}.** What was found before stands below.", ""]
        lines += [f"- {key}: {_shown(value)}" for key, value in part.get("facts", {}).items()]
        for title, rows in part.get("tables", {}).items():
            lines += ["", f"{title}:", "", *table(rows)]
        if part["ended"] != "done" and part.get("printed", "").strip():
            lines += ["", "```", *part["printed"].strip().splitlines()[-12:], "```"]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Rows of like columns, as Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    sides = ["---" if column in (*_LEADING, "part", "ended") else "---:" for column in columns]
    lines = [_line(columns), _line(sides)]
    return lines + [_line([_shown(row.get(column)) for column in columns]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")
