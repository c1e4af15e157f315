"""Put other things in the place of a library's own, or of environment variables, for a while."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def standing_in(owner: object, **attributes: object) -> Iterator[None]:
    """Give a module or a class these attributes in the block, in place of those that it has under the same names.

    Names that it does not have are passed over, since versions of a library differ.
    """
    before = {name: getattr(owner, name) for name in attributes if hasattr(owner, name)}
    try:
        for name in before:
            setattr(owner, name, attributes[name])
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def environment(values: Mapping[str, str | None], then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Give these environment variables their values in the block, None for none; `then` follows each change of them."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _put(values)
        then()
        yield
    finally:
        _put(before)
        then()


def _put(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
