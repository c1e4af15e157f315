"""The groups of sources that a table scores apart."""

import pytest

from prefixray.data import Sourced
from prefixray.results.scores import MOST_GROUPS, group_note, groups_of


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


def test_more_groups_than_a_table_shows_have_a_note_and_documents_have_none() -> None:
    names = [str(number) for number in range(MOST_GROUPS + 1)]
    assert group_note([Sourced(name, ("text",), name) for name in names]) == [
        "task.columns.group: 5 groups of test sources, more than 4: none is scored alone"
    ]
    assert group_note([Sourced(name, ("text",), name) for name in [*names[1:], *names[1:]]]) == []
    assert group_note([Sourced(name, ("text",), name, document=name) for name in names]) == []
