"""A hidden package is not found in the block, and is found again behind it."""

import importlib.util
import sys

import pytest

from prefixray.system.hidden_packages import hidden


def test_a_hidden_package_is_not_found_until_the_block_has_ended() -> None:
    sys.modules.pop("wave", None)
    with pytest.raises(RuntimeError), hidden("chunk_of_nothing", "wave", "sys"):
        assert importlib.util.find_spec("wave") is None and sys.modules["sys"] is sys
        with pytest.raises(ImportError):
            import wave
        raise RuntimeError
    import wave

    assert wave.open and "chunk_of_nothing" not in sys.modules
