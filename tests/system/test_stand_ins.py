"""A stand-in is there in the block alone."""

from types import SimpleNamespace

import pytest

from prefixray.system.stand_ins import standing_in


def test_a_stand_in_goes_with_the_block_and_names_that_are_not_there_stay_away() -> None:
    owner = SimpleNamespace(one=1, two=2)
    with pytest.raises(RuntimeError), standing_in(owner, one=11, three=3):
        assert owner == SimpleNamespace(one=11, two=2)
        raise RuntimeError
    assert owner == SimpleNamespace(one=1, two=2)
