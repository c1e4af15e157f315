"""Searched values: a choice or a range of numbers, each perhaps under a condition on another value.

A dimension stands in the sweep file where the value would stand: `preseqlen: {choice: [1, 5, 10]}`. The dimensions of
an arm are ordered: a condition refers to keys above its own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, TypeGuard, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prefixray.system.records import Scalar

_MOST = 10_000  # configurations of a space that are counted
_Bounds = TypeVar("_Bounds", tuple[float, float], tuple[int, int])


class Dimension(BaseModel):
    """A searched value, perhaps only under a condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Other keys of the arm and the values under which this dimension is searched; otherwise the default holds."""

    def is_active(self, values: Mapping[str, Scalar]) -> bool:
        """Whether its condition is met, given the values of the keys above it."""
        return all(key in values and is_among(values[key], allowed) for key, allowed in self.when.items())

    def ends(self) -> tuple[Scalar, ...]:
        """Values that must be valid for the whole dimension to be valid: every choice, or both ends of a range."""
        raise NotImplementedError

    def size(self) -> float:
        """How many different values it has: infinitely many for a range of floats."""
        return math.inf

    def values(self) -> Iterable[Scalar]:
        """All its values, where their number is finite."""
        raise AssertionError("a range of floats has no list of values")

    def contains(self, value: Scalar) -> bool:
        """Whether the value is one of its values; of a range of floats, any number between the ends."""
        low, high = self.ends()
        return _is_number(value) and _is_number(low) and _is_number(high) and low <= value <= high


def _distinct(values: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    for index, value in enumerate(values):
        if is_among(value, values[:index]):
            raise ValueError("must not list a value twice")
    return values


def _ascending(bounds: _Bounds) -> _Bounds:
    if not bounds[0] < bounds[1]:
        raise ValueError("the low end must be below the high end")
    return bounds


def _positive(bounds: _Bounds) -> _Bounds:
    if bounds[0] <= 0:
        raise ValueError("the low end must be above 0")
    return bounds


class Choice(Dimension):
    """`{choice: [a, b, ...]}`: one of the listed values; `null` may be one."""

    choice: Annotated[tuple[Scalar, ...], Field(min_length=1), AfterValidator(_distinct)]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.choice

    def size(self) -> float:  # noqa: D102
        return len(self.choice)

    def values(self) -> Iterable[Scalar]:  # noqa: D102
        return self.choice

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return is_among(value, self.choice)


class Uniform(Dimension):
    """`{uniform: [low, high]}`: a float between the two."""

    uniform: Annotated[tuple[float, float], AfterValidator(_ascending)]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.uniform


class LogUniform(Dimension):
    """`{log_uniform: [low, high]}`: a positive float whose logarithm is uniform between the two."""

    log_uniform: Annotated[tuple[float, float], AfterValidator(_ascending), AfterValidator(_positive)]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.log_uniform


class Int(Dimension):
    """`{int: [low, high]}`: a whole number between the two, both included."""

    int_: Annotated[tuple[int, int], AfterValidator(_ascending)] = Field(alias="int")

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.int_

    def size(self) -> float:  # noqa: D102
        return self.int_[1] - self.int_[0] + 1

    def values(self) -> Iterable[Scalar]:  # noqa: D102
        return range(self.int_[0], self.int_[1] + 1)

    def contains(self, value: Scalar) -> bool:  # noqa: D102
        return type(value) is int and super().contains(value)


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
