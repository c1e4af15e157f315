"""Places inside a JSON value, for tests that change one."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Place = tuple[str | int, ...]


def json_values(numbers: st.SearchStrategy[Any], *, max_size: int, max_leaves: int) -> st.SearchStrategy[Any]:
    """Small JSON values with numbers such as these, and texts of at most this length."""
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(max_size=max_size),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=max_leaves,
    )


def change(body: dict[str, Any] | list[Any], data: st.DataObject, values: st.SearchStrategy[Any]) -> None:
    """Put one of the values somewhere in the body, or take something out of it."""
    *parents, last = data.draw(st.sampled_from(list(_places(body))))
    inside: Any = body
    for key in parents:
        inside = inside[key]
    if data.draw(st.booleans()) and isinstance(inside, dict):
        del inside[last]
    else:
        inside[last] = data.draw(values)


def _places(body: object, before: Place = ()) -> Iterator[Place]:
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in inner:
        yield (*before, key)
        yield from _places(value, (*before, key))
