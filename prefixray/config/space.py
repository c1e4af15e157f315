"""What a searched value is: a choice, a range of numbers, or either under a condition on another value.

A dimension stands in the sweep file where the value would stand: `preseqlen: {choice: [1, 5, 10]}`. The dimensions of
an arm are ordered: a condition refers to what stands above it.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Self, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefixray.system.records import Scalar

_MOST = 10_000  # configurations of a space that are counted


class Dimension(BaseModel):
    """A searched value, possibly only under a condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Other keys of the arm and the values under which this dimension is searched; otherwise the default holds."""

    def is_active(self, values: Mapping[str, Scalar]) -> bool:
        """Whether it is searched, given the values of the keys above it."""
        return all(key in values and is_among(values[key], allowed) for key, allowed in self.when.items())

    def ends(self) -> tuple[Scalar, ...]:
        """Values that must be valid for the whole dimension to be valid: every choice, or both ends of a range."""
        raise AssertionError("a dimension is one of the four kinds")

    def size(self) -> float:
        """How many different values it has; infinite for a range of floats."""
        raise AssertionError("a dimension is one of the four kinds")

    def values(self) -> Iterable[Scalar]:
        """All its values, where their number is finite."""
        raise AssertionError("a range of floats has no list of values")

    def contains(self, value: Scalar) -> bool:
        """Whether the value is one of its values."""
        raise AssertionError("a dimension is one of the four kinds")


class Choice(Dimension):
    """`{choice: [a, b, ...]}`: one of the listed values; `null` may be one."""

    choice: tuple[Scalar, ...] = Field(min_length=1)

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.choice

    def size(self) -> float:  # noqa: D102
        return len(self.choice)

    def values(self) -> Iterable[Scalar]:  # noqa: D102
        return self.choice

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return is_among(value, self.choice)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for index, value in enumerate(self.choice):
            if is_among(value, self.choice[:index]):
                raise ValueError("must not list a value twice")
        return self


class Uniform(Dimension):
    """`{uniform: [low, high]}`: a float between the two."""

    uniform: tuple[float, float]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.uniform

    def size(self) -> float:  # noqa: D102
        return math.inf

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return _is_number(value) and self.uniform[0] <= value <= self.uniform[1]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.uniform)
        return self


class LogUniform(Dimension):
    """`{log_uniform: [low, high]}`: a positive float whose logarithm is uniform between the two."""

    log_uniform: tuple[float, float]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.log_uniform

    def size(self) -> float:  # noqa: D102
        return math.inf

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return _is_number(value) and self.log_uniform[0] <= value <= self.log_uniform[1]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.log_uniform)
        if self.log_uniform[0] <= 0:
            raise ValueError("the low end must be above 0")
        return self


class Int(Dimension):
    """`{int: [low, high]}`: a whole number between the two, both included."""

    int_: tuple[int, int] = Field(alias="int")

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.int_

    def size(self) -> float:  # noqa: D102
        return self.int_[1] - self.int_[0] + 1

    def values(self) -> Iterable[Scalar]:  # noqa: D102
        return range(self.int_[0], self.int_[1] + 1)

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return type(value) is int and self.int_[0] <= value <= self.int_[1]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_order(self.int_)
        return self


AnyDimension = Choice | Uniform | LogUniform | Int
Kind = Literal["choice", "uniform", "log_uniform", "int"]
KINDS: Mapping[Kind, type[AnyDimension]] = {"choice": Choice, "uniform": Uniform, "log_uniform": LogUniform, "int": Int}


def count_configurations(dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar], *, limit: int) -> int:
    """How many different configurations there are, at most `limit`; a space of very many is not counted."""
    if any(math.isinf(dimension.size()) for dimension in dimensions.values()):
        return limit
    counted = sum(1 for _ in itertools.islice(_configurations(list(dimensions.items()), fixed), min(limit, _MOST)))
    return limit if counted == _MOST else counted


def is_among(value: Scalar, values: Iterable[Scalar]) -> bool:
    """Whether the value is one of these; `true` is not 1, but 1.0 is."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _configurations(
    dimensions: list[tuple[str, AnyDimension]], given: Mapping[str, Scalar]
) -> Iterator[Mapping[str, Scalar]]:
    if not dimensions:
        yield given
        return
    (key, dimension), *rest = dimensions
    if not dimension.is_active(given):
        yield from _configurations(rest, given)
        return
    for value in dimension.values():
        yield from _configurations(rest, {**given, key: value})


def _is_number(value: Scalar) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_order(bounds: tuple[float, float]) -> None:
    if not bounds[0] < bounds[1]:
        raise ValueError("the low end must be below the high end")
