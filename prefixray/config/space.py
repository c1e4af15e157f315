"""Searched values: a choice or a range of numbers, perhaps another one in each case of the values above it.

A dimension stands in the sweep file where the value would stand: `preseqlen: {choice: [1, 5, 10]}`. The dimensions of
an arm are ordered: a condition refers to keys above its own. A list of dimensions is one dimension with cases:

    learning_rate:
      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}
      - {log_uniform: [3e-5, 1e-3], when: {mid_dim: [512]}}

Beside any values of the keys above, exactly one case has to hold. `situations` lists the values beside which a file is
checked for that.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self, TypeGuard, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prefixray.system.records import Scalar

LARGEST_GRID = 10_000
"""Points that a space may have to be listed and counted."""
_Bounds = TypeVar("_Bounds", tuple[float, float], tuple[int, int])


class Distribution(BaseModel):
    """The values that a key is searched over, perhaps only under a condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: Mapping[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Other keys of the arm and the values under which this distribution holds."""

    @property
    def cases(self) -> tuple[Self, ...]:
        """The distribution itself: it is the only case."""
        return (self,)

    def at(self, values: Mapping[str, Scalar]) -> Self | None:
        """The distribution beside these values of the keys above; None where its condition is not met."""
        is_met = all(key in values and is_among(values[key], allowed) for key, allowed in self.when.items())
        return self if is_met else None

    def ends(self) -> tuple[Scalar, ...]:
        """Values that must be valid for all values to be valid: every choice, or both ends of a range."""
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
        return is_number(value) and is_number(low) and is_number(high) and low <= value <= high


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


class Choice(Distribution):
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


class Uniform(Distribution):
    """`{uniform: [low, high]}`: a float between the two."""

    uniform: Annotated[tuple[float, float], AfterValidator(_ascending)]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.uniform


class LogUniform(Distribution):
    """`{log_uniform: [low, high]}`: a positive float whose logarithm is uniform between the two."""

    log_uniform: Annotated[tuple[float, float], AfterValidator(_ascending), AfterValidator(_positive)]

    def ends(self) -> tuple[Scalar, ...]:  # noqa: D102
        return self.log_uniform


class Int(Distribution):
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


AnyDistribution = Choice | Uniform | LogUniform | Int
Kind = Literal["choice", "uniform", "log_uniform", "int"]
KINDS: Mapping[Kind, type[AnyDistribution]] = {
    "choice": Choice,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int": Int,
}


class Cases(BaseModel):
    """`[{log_uniform: ..., when: ...}, ...]`: a distribution for each case of the values above the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: Annotated[tuple[AnyDistribution, ...], Field(min_length=1)]
    """The distributions, each with the condition under which it holds."""

    def at(self, values: Mapping[str, Scalar]) -> AnyDistribution | None:
        """The distribution that holds beside these values of the keys above; None where none does."""
        return next((case for case in self.cases if case.at(values) is not None), None)

    def ends(self) -> tuple[Scalar, ...]:
        """The ends of all cases."""
        return tuple(dict.fromkeys(end for case in self.cases for end in case.ends()))

    def size(self) -> float:
        """How many different values there are at most."""
        return sum(case.size() for case in self.cases)

    def contains(self, value: Scalar) -> bool:
        """Whether the value is one of any case's."""
        return any(case.contains(value) for case in self.cases)


AnyDimension = AnyDistribution | Cases


def count_configurations(dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar], *, limit: int) -> int:
    """How many different configurations there are, at most `limit`; a space of very many is not counted."""
    if any(math.isinf(dimension.size()) for dimension in dimensions.values()):
        return limit
    counted = sum(1 for _ in itertools.islice(configurations(dimensions, fixed), min(limit, LARGEST_GRID)))
    return limit if counted == LARGEST_GRID else counted


def configurations(dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """Every combination of searched values, the dimensions in an order in which conditions refer backwards."""
    points: Iterator[dict[str, Scalar]] = iter([{}])
    for key, dimension in dimensions.items():
        points = _extended(points, key, dimension, fixed)
    return points


def _extended(
    points: Iterator[dict[str, Scalar]], key: str, dimension: AnyDimension, fixed: Mapping[str, Scalar]
) -> Iterator[dict[str, Scalar]]:
    """The points, each with every value that the key can have beside the point's."""
    for point in points:
        distribution = dimension.at({**fixed, **point})
        if distribution is None:
            yield point
        else:
            yield from ({**point, key: value} for value in distribution.values())


def situations(
    key: str, dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar]
) -> Iterator[dict[str, Scalar]]:
    """The values of other keys that the conditions of a key tell apart.

    Of each key that a condition names, directly or through another key's condition, these are the values that are named
    and one more for all others. The keys are searched or fixed; those that are not searched in a situation are left
    out.
    """
    named: dict[str, list[Scalar]] = {}
    open_keys = [key]
    while open_keys:
        dimension = dimensions.get(open_keys.pop())
        for condition in [] if dimension is None else [case.when for case in dimension.cases]:
            open_keys += [other for other in condition if other not in named]
            for other, allowed in condition.items():
                named.setdefault(other, []).extend(allowed)
    told_apart = {
        other: _narrowed(dimension, named[other]) for other, dimension in dimensions.items() if other in named
    }
    given = {other: value for other, value in fixed.items() if other in named}
    return ({**given, **point} for point in configurations(told_apart, fixed))


def _narrowed(dimension: AnyDimension, named: Sequence[Scalar]) -> Cases:
    """The dimension with no other values than the named ones and one more."""
    return Cases(cases=tuple(_with_few_values(case, named) for case in dimension.cases))


def _with_few_values(case: AnyDistribution, named: Sequence[Scalar]) -> Choice:
    values = [value for index, value in enumerate(named) if case.contains(value) and not is_among(value, named[:index])]
    others = (value for value in _some_values(case) if not is_among(value, named))
    return Choice(choice=(*values, *itertools.islice(others, 1)), when=case.when)


def _some_values(case: AnyDistribution) -> Iterable[Scalar]:
    """All values, or of a range of floats endlessly many."""
    if isinstance(case, Choice | Int):
        return case.values()
    low, high = case.uniform if isinstance(case, Uniform) else case.log_uniform
    return (low + (high - low) / n for n in itertools.count(1))


def corner_values(dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """Values of the searched keys in which each end of each dimension meets each end of each other dimension."""
    first = {key: dimension.ends()[0] for key, dimension in dimensions.items()}
    sides = {key: list(_sides(key, dimensions)) for key in dimensions}
    yield searched_values(dimensions, fixed, first)
    for left, right in itertools.combinations_with_replacement(dimensions, 2):
        for left_side, right_side in itertools.product(sides[left], sides[right]):
            corner = {**first, **right_side, **left_side, right: right_side[right]}
            yield searched_values(dimensions, fixed, corner)


def searched_values(
    dimensions: Mapping[str, AnyDimension], fixed: Mapping[str, Scalar], values: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """The ends of keys, without those that are not searched beside the others; an end of another case is replaced."""
    searched: dict[str, Scalar] = {}
    for key, dimension in dimensions.items():
        distribution = dimension.at({**fixed, **searched})
        if distribution is not None:
            ends = distribution.ends()
            searched[key] = values[key] if is_among(values[key], ends) else ends[0]
    return searched


def _sides(key: str, dimensions: Mapping[str, AnyDimension]) -> Iterator[dict[str, Scalar]]:
    """For each end of each case of a key: the end, and values of the keys above under which the case holds."""
    for case in dimensions[key].cases:
        conditions = _values_that_meet(case, dimensions)
        yield from ({**conditions, key: end} for end in case.ends())


def _values_that_meet(case: AnyDistribution, dimensions: Mapping[str, AnyDimension]) -> dict[str, Scalar]:
    """Values of searched keys under which the case holds, as far as there are any."""
    values: dict[str, Scalar] = {}
    for other, allowed in case.when.items():
        pairs = ((value, inner) for value in allowed for inner in _cases_of(other, dimensions) if inner.contains(value))
        value, inner = next(pairs, (None, None))
        if inner is not None:
            values |= {**_values_that_meet(inner, dimensions), other: value}
    return values


def _cases_of(key: str, dimensions: Mapping[str, AnyDimension]) -> Sequence[AnyDistribution]:
    return dimensions[key].cases if key in dimensions else ()


def is_among(value: Scalar, values: Iterable[Scalar]) -> bool:
    """Whether the value is one of these; `true` is not 1, but 1.0 is."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def as_listed(distribution: "AnyDistribution", value: Scalar) -> Scalar:
    """The value as a choice lists it: a listed 16 is meant by 16.0 as well."""
    listed = distribution.choice if isinstance(distribution, Choice) else ()
    return next((choice for choice in listed if is_among(value, (choice,))), value)


def is_number(value: Scalar) -> TypeGuard[int | float]:
    """Whether the value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
