"""How numbers are written in a cell."""

from prefixray.reporting.grid import count_text, scientific


def test_numbers_are_short() -> None:
    counts = (0, 960, 1_150, 115_200, 999_700, 1_161_216, 134_515_008, 7_000_000_000)
    assert [count_text(count) for count in counts] == ["0", "960", "1.1k", "115k", "1.0M", "1.2M", "135M", "7.0B"]
    assert [scientific(value) for value in (0.021, 8e-4, 1e-10)] == ["2.1e-2", "8.0e-4", "1.0e-10"]
