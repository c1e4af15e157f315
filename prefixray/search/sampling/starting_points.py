"""Starting points for `first: auto`: the best learning rates that were measured, from `starting_points.json`.

Each point is the best of a curve of `docs/measurements/learning_rates.md`; the file has the command that measured it.
Nothing in between is made up: an arm gets the points that are near it, or none. Near is a base of at most twice or half
the width, the same kind of task, the same method in the same form, and sizes (positions, rank, bottleneck, width of a
network) within a factor of two. For data of the user's own, whose kind is not known, the points of all kinds count.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.space import AnyDistribution, Choice, is_number
from prefixray.config.trials import METHODS, TrainConfig
from prefixray.data.catalog import CATALOG, own_task
from prefixray.system.records import Scalar

_FILE = Path(__file__).with_suffix(".json")
_MOST = 2  # points for an arm
_FACTOR = 2.0  # by which near sizes may differ
_TEXT = "init_token"  # the key whose text depends on the task: any words stand for the measured ones


class Source(TypedDict):
    """Where points come from."""

    family: str  # the kind of the task, as the hub calls it
    data: str
    base: str
    width: int  # of the base's hidden states
    num_steps: int
    command: str
    page: str


class Point(TypedDict):
    """A method's best learning rate in one form; keys that it lacks had their defaults."""

    source: str
    method: str
    values: dict[str, Scalar]
    dev_loss: float


@cache
def measured() -> tuple[Mapping[str, Source], tuple[Point, ...]]:
    """The sources by name, and all points."""
    table = json.loads(_FILE.read_text(encoding="utf-8"))
    return table["sources"], tuple(table["points"])


def starting_points(config: SweepConfig, arm: ArmConfig, width: int) -> list[dict[str, Scalar]]:
    """The best measured points near an arm on a base of that width, in the arm's searched keys; two at most.

    Points of the sweep's own data set come first. Those of several data sets are compared by their distance to the
    method's best on the same data.
    """
    if not arm.first_auto:
        return []
    sources, points = measured()
    of_method = [point for point in points if point["method"] == arm.method]
    least = {source: min(p["dev_loss"] for p in of_method if p["source"] == source) for source in _sources(of_method)}

    def order(point: Point) -> tuple[bool, float]:
        return point["source"] != config.task.name, point["dev_loss"] - least[point["source"]]

    near: list[dict[str, Scalar]] = []
    for point in sorted(of_method, key=order):
        if _is_near_source(config, sources[point["source"]], width):
            values = _fitted(arm, point["values"])
            if values is not None and values not in near:
                near.append(values)
    return near[:_MOST]


def starting_text(config: SweepConfig, width: int | None) -> list[str]:
    """What `first: auto` means for each arm that has it, a sentence each; `width` is None where it is not known."""
    lines = []
    for arm in config.arms:
        if not arm.first_auto:
            continue
        points = [] if width is None else starting_points(config, arm, width)
        if width is None:
            lines.append(f"{arm.name}: first: auto needs the width of the base, which is not known here.")
        elif points:
            told = "; ".join(", ".join(f"{key} {value}" for key, value in point.items()) for point in points)
            lines.append(f"{arm.name}: first: auto begins with {told} (docs/measurements/learning_rates.md).")
        else:
            lines.append(f"{arm.name}: first: auto has no measured point near this arm, so the sampler begins.")
    return lines


def _sources(points: Sequence[Point]) -> set[str]:
    return {point["source"] for point in points}


def _is_near_source(config: SweepConfig, source: Source, width: int) -> bool:
    name = config.task.name
    return _is_near(width, source["width"]) and (name == own_task() or CATALOG[name].kind.hub_name == source["family"])


def _fitted(arm: ArmConfig, point: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
    """The point in the arm's searched keys; None where the arm's space or its fixed values are not near it."""
    values: dict[str, Scalar] = {}
    defaults = _defaults(arm, point)
    for key in arm.dimensions:
        if (distribution := arm.distribution(key, values)) is not None:
            wanted = point.get(key, defaults.get(key))
            found = _nearest(distribution, wanted, is_text=key == _TEXT)
            if not found:
                return None
            values[key] = found[0]
    try:
        flat = arm.trial(values).by_key()
    except ValidationError:
        return None
    is_near = all(_is_near(flat[key], value, is_text=key == _TEXT) for key, value in point.items())
    in_form = all(flat[key] == default for key, default in defaults.items() if key in _form_keys(arm))
    return values if is_near and in_form else None


def _defaults(arm: ArmConfig, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The defaults of the keys that a point lacks."""
    trial_type, recipe = METHODS[arm.method], TrainConfig
    fields = {**recipe.model_fields, **trial_type.model_fields}
    return {key: field.default for key, field in fields.items() if key not in point and not field.is_required()}


def _form_keys(arm: ArmConfig) -> set[str]:
    """The keys that say in which form a method is."""
    numbers = {"prefix_dropout", "dropout", "alpha"}
    return set(METHODS[arm.method].model_fields) - numbers - {"method"}


def _nearest(distribution: AnyDistribution, wanted: Scalar, *, is_text: bool) -> list[Scalar]:
    """The value of a distribution that is nearest to the wanted one, where one is near: none or one."""
    if not isinstance(distribution, Choice):
        return [wanted] if distribution.contains(wanted) else []
    near = [choice for choice in distribution.choice if _is_near(choice, wanted, is_text=is_text)]
    return sorted(near, key=lambda choice: _distance(choice, wanted))[:1]


def _is_near(value: Scalar, wanted: Scalar, *, is_text: bool = False) -> bool:
    if is_text and isinstance(value, str) and isinstance(wanted, str):
        return True
    if value == wanted or not (is_number(value) and is_number(wanted) and value > 0 and wanted > 0):
        return value == wanted
    return _distance(value, wanted) <= math.log(_FACTOR)


def _distance(value: Scalar, wanted: Scalar) -> float:
    is_positive = is_number(value) and is_number(wanted) and value > 0 and wanted > 0
    return abs(math.log(value / wanted)) if is_positive and is_number(value) and is_number(wanted) else 0.0
