"""The arms of a sweep file: which values are fixed, which are searched, and whether each possible trial is valid.

A constant is fixed; a mapping with `choice`, `uniform`, `log_uniform` or `int` is searched, and is called a dimension.
Each end of each dimension is tried in a `TrialConfig` while the file is read: a value that would fail hours later is
reported now, with its line.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from pydantic import BaseModel, ValidationError

from prefixray.config.messages import describe, parse, requirement
from prefixray.config.schema import RECIPE_OF_ALL, ArmConfig
from prefixray.config.space import KINDS, AnyDimension, Choice, Kind, count_configurations, is_among
from prefixray.config.trials import METHODS, SITE_JOIN, MethodName, TrainConfig, TrialConfig
from prefixray.system.records import Scalar
from prefixray.system.yaml_document import Document, Key, Value, is_scalar, shown, suggestion

_NOT_OF_TRIALS = ("method", "num_trials", "first")  # keys of an arm that are not values of its trials
_RESERVED = ("untuned", "final")  # the untuned base's row in tables, and the final stage's folder
_RANGES: Mapping[Kind, str] = {
    "choice": "must be a list of single values, at least one",
    "uniform": "must be two numbers, [low, high]",
    "log_uniform": "must be two numbers, [low, high]",
    "int": "must be two whole numbers, [low, high]",
}


def read_arms(document: Document, train: TrainConfig, num_trials: int) -> tuple[ArmConfig, ...]:
    """The arms that can be read. The problems of all arms are added to the document's."""
    bodies = document.mapping(("arms",))
    if bodies is not None and not bodies:
        document.complain(("arms",), "must have at least one arm")
    arms = [_read_arm(document, name, train, num_trials) for name in bodies or {}]
    return tuple(arm for arm in arms if arm is not None)


def read_configuration(document: Document, arm: ArmConfig) -> Mapping[str, Scalar]:
    """A configuration of an arm, from a document that holds a value for every searched key and nothing else.

    Raises `UserError` with every problem of the document.
    """
    values = _read_entry(document, arm, (), document.values)
    document.raise_problems()
    return values


def _read_arm(document: Document, name: str, train: TrainConfig, num_trials: int) -> ArmConfig | None:
    key = ("arms", name)
    if name in _RESERVED:
        document.complain(key, "is a reserved name: call the arm otherwise")
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        document.complain(key, "an arm's name must be letters, digits, '_' and '-', the first a letter or digit")
    body = document.mapping(key)
    method = None if body is None else _read_method(document, key, body)
    if body is None or method is None:
        return None
    dimensions: dict[str, AnyDimension] = {}
    fixed: dict[str, Scalar] = {}
    for value_key in _known_keys(document, key, body, method):
        value = _joined(value_key, body[value_key])
        if isinstance(value, dict) and value_key == "num_steps":
            document.complain((*key, value_key), "cannot be searched: trials of an arm are compared on one schedule")
        elif isinstance(value, dict):
            dimension = _read_dimension(document, (*key, value_key), value)
            if dimension is not None:
                dimensions[value_key] = dimension
        elif is_scalar(value):
            fixed[value_key] = value
        else:
            document.refuse((*key, value_key), "must be a single value; {choice: [...]} searches a list")
    count = _read_num_trials(document, key, body, num_trials)
    count = count_configurations(dimensions, fixed, limit=count) if dimensions else 1
    arm = ArmConfig(name=name, method=method, fixed=fixed, dimensions=dimensions, num_trials=count, train=train)
    _check_conditions(document, arm)
    _check_trials(document, arm)
    return arm.model_copy(update={"first": _read_first(document, arm)})


def _joined(name: str, value: Value) -> Value:
    """A trial holds its sites as one text: a list of sites is joined, and so is every list in a choice of them."""
    if name != "sites":
        return value
    if isinstance(value, dict) and isinstance(choices := value.get("choice"), list):
        return {**value, "choice": [_joined(name, choice) for choice in choices]}
    if isinstance(value, list) and value and all(isinstance(site, str) for site in value):
        return SITE_JOIN.join(map(str, value))
    return value


def _read_method(document: Document, key: Key, body: Mapping[str, Value]) -> MethodName | None:
    name = body.get("method", str(key[-1]))
    if _is_method(name):
        return name
    if "method" in body:
        hint = suggestion(name, METHODS, what="") if isinstance(name, str) else ""
        document.refuse((*key, "method"), f"must be one of {', '.join(map(repr, METHODS))}{hint}")
    else:
        hint = suggestion(str(name), METHODS, what="the methods are")
        document.complain((*key, "method"), f"required, because {name!r} is no method{hint}")
    return None


def _known_keys(document: Document, key: Key, body: Mapping[str, Value], method: MethodName) -> list[str]:
    """The keys of the arm that are values of its trials. A key that such an arm does not have is a problem."""
    of_method = [name for name in METHODS[method].model_fields if name != "method"]
    valid = [*of_method, "learning_rate", *(name for name in TrainConfig.model_fields if name not in RECIPE_OF_ALL)]
    for name in body:
        if name in RECIPE_OF_ALL:
            document.complain((*key, name), "stands under train only, because it is the same for all arms")
        elif name not in valid and name not in _NOT_OF_TRIALS:
            document.reject((*key, name), [*valid, *_NOT_OF_TRIALS], f"no such key for {METHODS[method].noun}")
    return [name for name in body if name in valid]


def _read_num_trials(document: Document, key: Key, body: Mapping[str, Value], num_trials: int) -> int:
    value = body.get("num_trials", num_trials)
    searched = any(isinstance(body[name], dict) for name in body if name not in _NOT_OF_TRIALS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        document.refuse((*key, "num_trials"), f"must be {describe(ArmConfig, 'num_trials')}")
    elif value > 1 and "num_trials" in body and not searched:
        document.refuse((*key, "num_trials"), "must be 1, because nothing is searched in this arm (remove num_trials)")
    else:
        return value
    return 1


def _read_dimension(document: Document, key: Key, body: Mapping[str, Value]) -> AnyDimension | None:
    kinds = [name for name in body if _is_kind(name)]
    for name in body:
        if name not in kinds and name != "when":
            document.reject((*key, name), [*KINDS, "when"], "no such key for a searched value")
    if len(kinds) != 1:
        if len(kinds) > 1 or set(body) <= {"when"}:
            document.complain(key, f"a searched value must have one of {', '.join(KINDS)}, not {len(kinds)} of them")
        return None
    kind = kinds[0]
    try:
        return parse(KINDS[kind], {name: body[name] for name in body if name in (kind, "when")})
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] == "value_error":
                document.refuse((*key, kind), str(detail["ctx"]["error"]))
            elif detail["loc"][0] == "when":
                document.refuse((*key, "when"), "must be a mapping of keys of this arm to lists of their values")
            else:
                document.refuse((*key, kind), _RANGES[kind])
        return None


def _check_conditions(document: Document, arm: ArmConfig) -> None:
    """Each condition must refer to a key above it and be possible, and its key must have a default."""
    key = ("arms", arm.name)
    body = document.mapping(key) or {}
    fields = {**TrialConfig.model_fields, **METHODS[arm.method].model_fields}
    for name, dimension in arm.dimensions.items():
        above = list(body)[: list(body).index(name)]
        if dimension.when and fields[name].is_required():
            document.complain(
                (*key, name, "when"), f"{name} has no default to fall back to: write a second arm instead"
            )
        for other, allowed in dimension.when.items():
            condition = (*key, name, "when", other)
            if other not in arm.dimensions and other not in arm.fixed:
                document.complain(condition, f"no such key in this arm{suggestion(other, above, what='above stand')}")
            elif other not in above:
                document.complain(condition, f"{other} must stand above {name}")
            elif not allowed or not all(_is_possible(arm, other, value) for value in allowed):
                document.refuse(condition, f"must be values that {other} can have")


def _is_possible(arm: ArmConfig, key: str, value: Scalar) -> bool:
    return arm.dimensions[key].contains(value) if key in arm.dimensions else is_among(value, (arm.fixed[key],))


def _check_trials(document: Document, arm: ArmConfig) -> None:
    """Try each end of each dimension together with each end of each other dimension."""
    body = document.mapping(("arms", arm.name)) or {}
    for values in corner_values(arm):
        try:
            arm.trial(values)
        except ValidationError as error:
            for detail in error.errors():
                loc = detail["loc"]
                name = str(loc[2] if loc[0] == "method" else loc[0])  # ("method", "prefix", "preseqlen")
                owner: type[BaseModel] = METHODS[arm.method] if loc[0] == "method" else TrialConfig
                if detail["type"] == "missing":
                    if name not in body:
                        document.miss(("arms", arm.name, name))
                    continue
                key = _key_of_value(arm, name, values)
                if name in body:
                    document.refuse(key, requirement(owner, name, detail, document.at(key)))
                else:  # the key's default does not go with the other values
                    document.complain(key, requirement(owner, name, detail, None))


def corner_values(arm: ArmConfig) -> Iterator[dict[str, Scalar]]:
    """Values of the searched keys in which each end of each dimension meets each end of each other dimension."""
    dimensions = arm.dimensions
    first = {name: dimension.ends()[0] for name, dimension in dimensions.items()}
    corners = [first]
    for left, right in itertools.combinations_with_replacement(dimensions, 2):
        conditions = {**_values_that_activate(arm, right), **_values_that_activate(arm, left)}
        ends = itertools.product(dimensions[left].ends(), dimensions[right].ends())
        corners += [{**first, **conditions, left: left_end, right: right_end} for left_end, right_end in ends]
    for corner in corners:
        yield searched_values(arm, corner)


def searched_values(arm: ArmConfig, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The values without those of keys whose condition the other values do not meet."""
    searched: dict[str, Scalar] = {}
    for name in arm.dimensions:
        if arm.is_searched(name, searched):
            searched[name] = values[name]
    return searched


def _values_that_activate(arm: ArmConfig, name: str) -> dict[str, Scalar]:
    """Values of the keys above `name` under which `name` is searched."""
    values: dict[str, Scalar] = {}
    above = list(itertools.takewhile(lambda key: key != name, arm.dimensions))
    for other, allowed in arm.dimensions[name].when.items():
        possible = [value for value in allowed if other in above and arm.dimensions[other].contains(value)]
        if possible:
            values |= {**_values_that_activate(arm, other), other: possible[0]}
    return values


def _key_of_value(arm: ArmConfig, name: str, values: Mapping[str, Scalar]) -> Key:
    """The document's key for the value of an arm's key; for a searched key, that of the item in its list."""
    if name not in arm.dimensions:
        return ("arms", arm.name, name)
    dimension, value = arm.dimensions[name], values[name]
    kind = next(kind for kind, model in KINDS.items() if isinstance(dimension, model))
    index = next(i for i, end in enumerate(dimension.ends()) if is_among(value, (end,)))
    return ("arms", arm.name, name, kind, index)


def _read_first(document: Document, arm: ArmConfig) -> tuple[Mapping[str, Scalar], ...]:
    """The configurations that are tried first. Each gives every searched key a value of its dimension."""
    key: Key = ("arms", arm.name, "first")
    entries = (document.mapping(key[:-1]) or {}).get("first", [])
    if not isinstance(entries, list):
        document.refuse(key, "must be a list of mappings, each with a value for every searched key")
        return ()
    keys: list[Key] = [(*key, index) for index in range(len(entries))]
    bodies = ((entry_key, document.mapping(entry_key)) for entry_key in keys)
    return tuple(_read_entry(document, arm, entry_key, body) for entry_key, body in bodies if body is not None)


def _read_entry(document: Document, arm: ArmConfig, key: Key, entry: Mapping[str, Value]) -> Mapping[str, Scalar]:
    for name in entry:
        if name not in arm.dimensions and not document.is_overridden(("arms", arm.name, name)):
            document.reject((*key, name), arm.dimensions, "is not searched in this arm")
    given: dict[str, Scalar] = {}
    for name, dimension in arm.dimensions.items():
        value = _joined(name, entry.get(name))
        active = arm.is_searched(name, given)
        if name not in entry:
            if active:
                document.complain((*key, name), "required, but missing: an entry gives every searched key")
        elif not active:
            document.complain((*key, name), f"its condition is not met here ({shown(dict(dimension.when))})")
        elif not is_scalar(value) or not dimension.contains(value):
            ends = ", ".join(shown(end) for end in dimension.ends())
            among = f"one of {ends}" if "choice" in type(dimension).model_fields else f"within [{ends}]"
            document.refuse((*key, name), f"must be {among}")
        else:  # a listed 16 is meant by 16.0 as well
            listed = dimension.choice if isinstance(dimension, Choice) else ()
            given[name] = next((choice for choice in listed if is_among(value, (choice,))), value)
    return given


def _is_method(name: object) -> TypeGuard[MethodName]:
    return isinstance(name, str) and name in METHODS


def _is_kind(name: str) -> TypeGuard[Kind]:
    return name in KINDS
