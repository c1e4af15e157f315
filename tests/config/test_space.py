"""Dimensions: what they contain and how many configurations they span."""

import pytest
from pydantic import ValidationError

from prefixray.config.space import AnyDimension, Choice, Int, LogUniform, Uniform, count_configurations
from prefixray.system.records import Scalar

FLAT = Choice(choice=(None, 512))


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Choice(choice=(None, 512, "a")), (None, 512, "a"), (0, 513, "b", False)),
        (Uniform(uniform=(0.0, 1.0)), (0, 0.5, 1.0), (-0.1, 1.1, None, "0.5", True)),
        (LogUniform(log_uniform=(1e-4, 1e-2)), (1e-4, 1e-3, 1e-2), (0, 1e-1)),
        (Int(int=(1, 3)), (1, 2, 3), (0, 4, 1.5, True, None)),
    ],
)
def test_a_dimension_contains_its_values_and_no_others(
    dimension: AnyDimension, inside: tuple[Scalar, ...], outside: tuple[Scalar, ...]
) -> None:
    assert [value for value in (*inside, *outside) if dimension.contains(value)] == list(inside)
    assert all(dimension.contains(end) for end in dimension.ends())


def test_a_condition_decides_whether_a_dimension_is_searched() -> None:
    dropout = Uniform(uniform=(0.0, 0.5), when={"mid_dim": (512, 800)})
    assert dropout.at({"mid_dim": 800}) is dropout
    assert dropout.at({"mid_dim": None}) is None
    assert dropout.at({}) is None


def test_configurations_that_differ_only_in_an_unsearched_value_count_once() -> None:
    dropout = Choice(choice=(0.0, 0.1, 0.2), when={"mid_dim": (512,)})
    assert count_configurations({"mid_dim": FLAT, "prefix_dropout": dropout}, {}, limit=100) == 1 + 3
    assert count_configurations({"prefix_dropout": dropout}, {"mid_dim": None}, limit=100) == 1


def test_counting_ends_at_the_limit() -> None:
    assert count_configurations({"a": Int(int=(0, 10**15)), "b": FLAT}, {}, limit=7) == 7
    assert count_configurations({"a": Int(int=(0, 10**15))}, {}, limit=10**12) == 10**12
    assert count_configurations({"a": Uniform(uniform=(0.0, 1.0)), "b": FLAT}, {}, limit=7) == 7


def test_true_is_not_the_same_choice_as_one_but_one_point_zero_is() -> None:
    assert Choice(choice=(True, 1)).choice == (True, 1)
    with pytest.raises(ValidationError, match="must not list a value twice"):
        Choice(choice=(1, 1.0))


def test_an_empty_or_impossible_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="low end must be below the high end"):
        Uniform(uniform=(1, 1))
    with pytest.raises(ValidationError, match="low end must be above 0"):
        LogUniform(log_uniform=(0, 1))
