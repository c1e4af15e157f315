"""The numbers that Li & Liang 2021 report, table by table, read from `published.json`.

The paper has two versions whose numbers differ in places: arXiv 2101.00190v1, which most later papers quote, and ACL
2021. Its tables give no seeds, deviations or intervals. METEOR and TER are fractions in its WebNLG and DART tables and
percentages here. Of a figure only its text and its axes are known.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table: one of our metrics on a group of the sources, or a metric that prefixray lacks."""

    metric: str
    digits: int  # of the paper's numbers, behind the point
    group: str | None = None  # None: all sources
    is_ours: bool = True
    stays: str | None = None  # how our number is made otherwise than the paper's, under its own way of measuring too


@dataclass(frozen=True)
class Row:
    """A system's numbers in both versions, one for each column; None where a version has no number."""

    arxiv: Numbers
    acl: Numbers


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; a row's name is that of the arm of `sweep` that makes it."""

    title: str
    sweep: str  # a file of sweeps/paper
    task: str
    split: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Row]]  # by base, then by arm
    quoted: Mapping[str, Row]  # systems of others


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: what can be read off its text and axes."""

    title: str
    sweep: str
    says: str


def _row(stored: Mapping[str, list[float | None]]) -> Row:
    """Where only arXiv v1's numbers are stored, ACL has the same; where only ACL's, arXiv v1 has no such table."""
    acl = stored.get("acl", stored.get("arxiv", []))
    return Row(tuple(stored.get("arxiv", [None] * len(acl))), tuple(acl))


def _table(stored: Mapping[str, Any], columns: Mapping[str, Any]) -> PaperTable:
    rows = {base: {arm: _row(row) for arm, row in arms.items()} for base, arms in stored["rows"].items()}
    quoted = {system: _row(row) for system, row in stored["quoted"].items()}
    own_columns = tuple(Column(**column) for column in columns[stored["columns"]])
    return PaperTable(**{**stored, "columns": own_columns, "rows": rows, "quoted": quoted})


_STORED = json.loads(resources.files("prefixray.reporting").joinpath("published.json").read_text(encoding="utf-8"))
TABLES: Mapping[str, PaperTable] = {key: _table(table, _STORED["columns"]) for key, table in _STORED["tables"].items()}
FIGURES: Mapping[str, Figure] = {key: Figure(**figure) for key, figure in _STORED["figures"].items()}
