"""CSV with fields of any length: texts are longer than the 131,072 characters that Python's reader takes by default."""

import csv
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its name at run time depends on Python's version
    from _csv import Reader

_LONGEST = 2**31 - 1  # the largest limit that Python takes on every system


def csv_reader(lines: Iterable[str], *, strict: bool = False) -> "Reader":
    """`csv.reader` without its limit, for files that Python has written.

    A `strict` one is for files of others: a field loses the blanks in front of it, so that a quoted field may follow a
    comma and a blank, and what is not quite CSV raises `csv.Error`.
    """
    csv.field_size_limit(_LONGEST)
    return csv.reader(lines, strict=strict, skipinitialspace=strict)
