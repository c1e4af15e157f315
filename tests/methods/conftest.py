"""The place in a base where methods put what they have."""

import pytest

from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder


@pytest.fixture
def binder(any_base: Base) -> Binder:
    return Binder.of(any_base.model)
