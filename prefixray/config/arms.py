"""The arms of a sweep file: which values are fixed, which are searched, and whether each possible trial is valid.

A constant is fixed; a mapping with `choice`, `uniform`, `log_uniform` or `int` is searched, and so is a list of such
mappings, one for each case of the values above it. What is searched is called a dimension.
Each end of each dimension is tried in a `TrialConfig` while the file is read: a value that would fail hours later is
reported now, with its line.
"""

import itertools
import re
from collections.abc import Mapping
from typing import TypeGuard

from pydantic import BaseModel, ValidationError

from prefixray.config.messages import describe, parse, requirement
from prefixray.config.schema import RECIPE_OF_ALL, ArmConfig
from prefixray.config.space import (
    KINDS,
    AnyDimension,
    AnyDistribution,
    Cases,
    Choice,
    Kind,
    LogUniform,
    Uniform,
    as_listed,
    count_configurations,
    is_among,
    is_number,
    situations,
)
from prefixray.config.trials import METHODS, SITE_JOIN, MethodName, TrainConfig, TrialConfig
from prefixray.system.records import Scalar
from prefixray.system.yaml_document import Document, Key, Value, is_scalar, shown, suggestion

_NOT_OF_TRIALS = ("method", "num_trials", "first")  # keys of an arm that are not values of its trials
RESERVED = ("untuned", "in_context", "final")  # the untrained arms, and the final stage's folder
_MOST_SITUATIONS = 10_000  # that a key's cases are checked in
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
    if name in RESERVED:
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
        if _is_searched(value) and value_key == "num_steps":
            document.complain((*key, value_key), "cannot be searched: trials of an arm are compared on one schedule")
        elif _is_searched(value):
            dimension = _read_dimension(document, (*key, value_key), value)
            if dimension is not None:
                dimensions[value_key] = dimension
        elif is_scalar(value):
            fixed[value_key] = value
        else:
            document.refuse((*key, value_key), "must be a single value; {choice: [...]} searches a list")
    count = _read_num_trials(document, key, body, num_trials)
    arm = ArmConfig(name=name, method=method, fixed=fixed, dimensions=dimensions, num_trials=count, train=train)
    if _check_conditions(document, arm):
        _check_cases(document, arm)
        _check_trials(document, arm)
    count = count_configurations(dimensions, fixed, limit=count) if dimensions else 1
    is_auto = body.get("first") == "auto"
    if is_auto and not dimensions:
        document.refuse((*key, "first"), "nothing is searched in this arm: remove it")
    first = () if is_auto else _read_first(document, arm)
    return arm.model_copy(update={"num_trials": count, "first": first, "first_auto": is_auto})


def _joined(name: str, value: Value) -> Value:
    """A trial holds its sites as one text: a list of sites is joined, and so is every list in a choice of them."""
    if name != "sites":
        return value
    if isinstance(value, dict) and isinstance(choices := value.get("choice"), list):
        return {**value, "choice": [_joined(name, choice) for choice in choices]}
    if _is_searched(value) and isinstance(value, list):
        return [_joined(name, case) for case in value]
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
    searched = any(_is_searched(body[name]) for name in body if name not in _NOT_OF_TRIALS)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        document.refuse((*key, "num_trials"), f"must be {describe(ArmConfig, 'num_trials')}")
    elif value > 1 and "num_trials" in body and not searched:
        document.refuse((*key, "num_trials"), "must be 1, because nothing is searched in this arm (remove num_trials)")
    else:
        return value
    return 1


def _is_searched(value: Value) -> bool:
    """Whether the value is a distribution, or a list that has one: several cases."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(case, dict) for case in value))


def _read_dimension(document: Document, key: Key, value: Value) -> AnyDimension | None:
    if isinstance(value, dict):
        return _read_distribution(document, key, value)
    assert isinstance(value, list), "a single value is not searched"
    cases = [_read_case(document, (*key, index), case) for index, case in enumerate(value)]
    distributions = tuple(case for case in cases if case is not None)
    if len(distributions) < len(cases):
        return None
    has_range = not all(isinstance(case, Choice) for case in distributions)
    if has_range and not all(is_number(end) for case in distributions for end in case.ends()):
        document.complain(key, "has a range in one case and a choice that is no number in another: write a second arm")
    return Cases(cases=distributions)


def _read_case(document: Document, key: Key, case: Value) -> AnyDistribution | None:
    if isinstance(case, dict):
        return _read_distribution(document, key, case)
    document.refuse(key, "must be a mapping like the other cases; {choice: [...]} holds a single value")
    return None


def _read_distribution(document: Document, key: Key, body: Mapping[str, Value]) -> AnyDistribution | None:
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


def _check_conditions(document: Document, arm: ArmConfig) -> bool:
    """Each condition must refer to a key above it and be possible, and its key must have a default or other cases.

    Returns whether every condition refers to a key above it.
    """
    key, above, refer_backwards = ("arms", arm.name), list[str](), True
    fields = {**TrialConfig.model_fields, **METHODS[arm.method].model_fields}
    for name in document.mapping(key) or {}:
        dimension = arm.dimensions.get(name)
        for index, case in enumerate(() if dimension is None else dimension.cases):
            place: Key = (*key, name, index) if isinstance(dimension, Cases) else (*key, name)
            spared = METHODS[arm.method].spared_by.get(name)  # the key beside which this one need not be given
            is_spared = spared is not None and {*case.when} == {spared} and fields[spared].default in case.when[spared]
            if case.when and dimension is case and fields[name].is_required() and not is_spared:
                problem = "has no default to fall back to: give it a list, with a case for every other value"
                document.complain((*place, "when"), f"{name} {problem}")
            for other, allowed in case.when.items():
                condition = (*place, "when", other)
                refer_backwards &= other in above
                if other not in arm.dimensions and other not in arm.fixed:
                    hint = suggestion(other, above, what="above stand")
                    document.complain(condition, f"no such key in this arm{hint}")
                elif other not in above:
                    document.complain(condition, f"{other} must stand above {name}")
                elif document.is_replaced((*key, other)) and other in arm.fixed:
                    continue  # --set or a scale leaves one of the cases that the file had
                elif not allowed or not all(_is_possible(arm, other, value) for value in allowed):
                    document.refuse(condition, f"must be values that {other} can have")
        above.append(name)
    return refer_backwards


def _check_cases(document: Document, arm: ArmConfig) -> None:
    """Beside any values of the other keys, exactly one case of a key must hold."""
    for name, dimension in arm.dimensions.items():
        if not isinstance(dimension, Cases):
            continue
        has_gap = has_overlap = False  # the first of each is enough
        for values in itertools.islice(situations(name, arm.dimensions, arm.fixed), _MOST_SITUATIONS):
            holding = [index for index, case in enumerate(dimension.cases) if case.at(values) is not None]
            where = " and ".join(f"{key} is {shown(value)}" for key, value in values.items())
            if not holding and not has_gap:
                has_gap = True
                document.complain(("arms", arm.name, name), f"no case holds where {where}: add one")
            elif len(holding) > 1 and not has_overlap:
                has_overlap = True
                also = ", ".join(f"{name}[{index}]" for index in holding[:-1])
                problem = f"holds beside {also}" + (f" where {where}" if where else "")
                document.complain(("arms", arm.name, name, holding[-1]), f"{problem}: exactly one case may (see when)")


def _is_possible(arm: ArmConfig, key: str, value: Scalar) -> bool:
    return arm.dimensions[key].contains(value) if key in arm.dimensions else is_among(value, (arm.fixed[key],))


def _check_trials(document: Document, arm: ArmConfig) -> None:
    """Try each end of each dimension together with each end of each other dimension."""
    body = document.mapping(("arms", arm.name)) or {}
    for values in arm.corners():
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
                is_whole = detail["type"].startswith("int_") and name in arm.dimensions
                if is_whole and isinstance(arm.distribution(name, values), Uniform | LogUniform):
                    document.refuse(key[:-1], f"draws fractions, and {name} takes whole numbers: write {{int: [...]}}")
                elif name in body:
                    document.refuse(key, requirement(owner, name, detail, document.at(key)))
                else:  # the key's default does not go with the other values
                    document.complain(key, requirement(owner, name, detail, None))


def _key_of_value(arm: ArmConfig, name: str, values: Mapping[str, Scalar]) -> Key:
    """The document's key for the value of an arm's key; for a searched key, that of the item in its list."""
    key: Key = ("arms", arm.name, name)
    if name not in arm.dimensions:
        return key
    dimension, distribution = arm.dimensions[name], arm.distribution(name, values)
    assert distribution is not None, "a searched value has a distribution"
    kind = next(kind for kind, model in KINDS.items() if isinstance(distribution, model))
    index = next(i for i, end in enumerate(distribution.ends()) if is_among(values[name], (end,)))
    case = (dimension.cases.index(distribution),) if isinstance(dimension, Cases) else ()
    return (*key, *case, kind, index)


def _read_first(document: Document, arm: ArmConfig) -> tuple[Mapping[str, Scalar], ...]:
    """The configurations that are tried first. Each gives every searched key a value of its dimension."""
    key: Key = ("arms", arm.name, "first")
    entries = (document.mapping(key[:-1]) or {}).get("first", [])
    if not isinstance(entries, list):
        document.refuse(key, "must be auto, or a list of mappings, each with a value for every searched key")
        return ()
    bodies = [(at, document.mapping(at)) for at in ((*key, index) for index in range(len(entries)))]
    left = [(at, body) for at, body in bodies if body is not None and not _contradicts(document, arm, body)]
    return tuple(_read_entry(document, arm, at, body) for at, body in left)


def _contradicts(document: Document, arm: ArmConfig, entry: Mapping[str, Value]) -> bool:
    """Whether an entry has another value of a key that `--set` or a scale has fixed, and on which ranges depend."""
    depended = {name for dimension in arm.dimensions.values() for case in dimension.cases for name in case.when}
    replaced = [name for name in depended & arm.fixed.keys() if document.is_replaced(("arms", arm.name, name))]
    return any(name in entry and arm.fixed[name] != _joined(name, entry[name]) for name in replaced)


def _read_entry(document: Document, arm: ArmConfig, key: Key, entry: Mapping[str, Value]) -> Mapping[str, Scalar]:
    for name in entry:
        if name not in arm.dimensions and not document.is_replaced(("arms", arm.name, name)):
            document.reject((*key, name), arm.dimensions, "is not searched in this arm")
    given: dict[str, Scalar] = {}
    for name in arm.dimensions:
        value = _joined(name, entry.get(name))
        distribution = arm.distribution(name, given)
        if name not in entry:
            if distribution is not None:
                document.complain((*key, name), "required, but missing: an entry gives every searched key")
        elif distribution is None:
            conditions = " or ".join(shown(dict(case.when)) for case in arm.dimensions[name].cases)
            document.complain((*key, name), f"its condition is not met here ({conditions})")
        elif not is_scalar(value) or not distribution.contains(value):
            document.refuse((*key, name), f"must be {_allowed(arm, name, distribution)}")
        else:
            given[name] = as_listed(distribution, value)
    return given


def _allowed(arm: ArmConfig, name: str, distribution: AnyDistribution) -> str:
    """`within [0.001, 0.04]`, or `one of 5, 10`; in one of several cases, also in which."""
    ends = ", ".join(shown(end) for end in distribution.ends())
    among = f"one of {ends}" if isinstance(distribution, Choice) else f"within [{ends}]"
    conditions = " and ".join(f"{key} is {' or '.join(map(shown, some))}" for key, some in distribution.when.items())
    return f"{among} where {conditions}" if isinstance(arm.dimensions[name], Cases) and conditions else among


def _is_method(name: object) -> TypeGuard[MethodName]:
    return isinstance(name, str) and name in METHODS


def _is_kind(name: str) -> TypeGuard[Kind]:
    return name in KINDS
