"""The groups of sources that a table scores apart."""

import pytest

from prefixray.data import Sourced
from prefixray.results.scores import groups_of


@pytest.mark.parametrize(
    ("groups", "documents", "found"),
    [
        ("e-h", "aaa", {"e": [0], "h": [2]}),
        ("e-e", "aaa", {}),
        ("---", "aaa", {}),
        ("---", "aba", {"a": [0, 2], "b": [1]}),
        ("---", "---", {}),
    ],
)
def test_documents_are_groups_where_no_source_has_a_group(
    groups: str, documents: str, found: dict[str, list[int]]
) -> None:
    """A dash is a source without one."""
    named = [(a if a != "-" else None, b if b != "-" else None) for a, b in zip(groups, documents, strict=True)]
    assert groups_of([Sourced("source", ("text",), group, document=document) for group, document in named]) == found
