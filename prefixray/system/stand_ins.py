"""Put other things in the place of a library's own for a while."""

from collections.abc import Iterator
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
