"""The JSON schema of sweep files, for editors: each key with its sentence, each value with its type and search forms.

It is read off the classes that a sweep file becomes, so it knows what they know. It cannot say what only the whole file
tells, like a reference that must be an arm: `prefixray plan` checks that.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from prefixray.config.arms import RESERVED
from prefixray.config.schema import RECIPE_OF_ALL, SweepConfig
from prefixray.config.trials import METHODS, SITES, TrainConfig, TrialConfig

Schema = dict[str, Any]
_OBJECT = {"type": "object", "additionalProperties": False}
_SCALAR: Schema = {"type": ["boolean", "number", "string", "null"]}
_WHEN: Schema = {
    "description": "Keys above this one in the arm, and the values of each beside which this form holds.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": _SCALAR, "minItems": 1},
}
_COUNT: Schema = {
    "type": "integer",
    "minimum": 1,
    "description": "Trials of this arm; search.num_trials where it is not given.",
}
_RANGES = {
    "uniform": "Searched: a number between the two.",
    "log_uniform": "Searched: a positive number whose logarithm is uniform between the two.",
    "int": "Searched: a whole number between the two, both included.",
}


def sweep_schema() -> Schema:
    """The schema, in the draft 2020-12. It takes every file that `load_sweep` takes, and refuses most others."""
    root = _described(SweepConfig)
    sections: dict[str, Schema] = {**root["properties"], "arms": _arms()}
    sections |= {name: {**sections[name], **_inner(name)} for name in ("task", "train", "search", "final", "tracking")}
    needed = [name for name, field in SweepConfig.model_fields.items() if field.is_required()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A sweep file of prefixray",
        **_OBJECT,
        "properties": {**sections, "scale": _scales(sections)},
        "required": needed,
        "$defs": {f"arm_{name}": _arm(name) for name in METHODS} | {"arm": _any_arm()},
    }


def _inner(section: str) -> Schema:
    """A section, as an object of its own."""
    model = SweepConfig.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, BaseModel), f"{section} is a section"
    described = _described(model)
    text = " ".join((inspect.getdoc(model) or "").split())
    return {"description": text, **_OBJECT, **{key: described[key] for key in ("properties", "required")}}


def _scales(sections: Mapping[str, Schema]) -> Schema:
    """Values by dotted keys: train.num_steps, arms.prefix.preseqlen."""
    properties = {key: value for key, value in sections.items() if key != "name"}
    for section, schema in sections.items():
        properties |= {
            f"{section}.{key}": value for key, value in schema.get("properties", {}).items() if key != "arms"
        }
    scale = {"type": "object", "properties": properties, "additionalProperties": False}
    deeper: Schema = {r"^arms\.[^.]+(\.[^.]+)*$": {}, r"^[a-z]+\.[a-z_]+(\.[a-z_]+)+$": {}}
    return {
        "type": "object",
        "description": "Named sets of values that --scale NAME puts in place of the file's own.",
        "patternProperties": {"^[A-Za-z0-9][A-Za-z0-9_]*$": {**scale, "patternProperties": deeper}},
        "additionalProperties": False,
    }


def _arms() -> Schema:
    """The arms by their names: one that is called like a method need not say which it is."""
    own = {
        name: {"if": {"required": ["method"]}, "then": {"$ref": "#/$defs/arm"}, "else": {"$ref": f"#/$defs/arm_{name}"}}
        for name in METHODS
    }
    return {
        "type": "object",
        "description": "What is compared: each arm is a method with the values that are fixed or searched.",
        "minProperties": 1,
        "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$", "not": {"enum": list(RESERVED)}},
        "properties": own,
        "additionalProperties": {"allOf": [{"required": ["method"]}, {"$ref": "#/$defs/arm"}]},
    }


def _any_arm() -> Schema:
    """An arm that names its method."""
    cases = [
        {
            "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
            "then": {"$ref": f"#/$defs/arm_{name}"},
        }
        for name in METHODS
    ]
    return {"type": "object", "properties": {"method": _method()}, "allOf": cases}


def _arm(method: str) -> Schema:
    """An arm of this method."""
    fields = _values(method)
    searched = {name: schema if name == "num_steps" else _searchable(schema) for name, schema in fields.items()}
    entries = {"type": "array", "items": {**_OBJECT, "properties": fields}}
    first = {
        "description": "Configurations that are tried first, each with all searched keys; auto: measured ones.",
        "anyOf": [{"const": "auto"}, entries],
    }
    models: Sequence[type[BaseModel]] = (METHODS[method], TrialConfig)  # type: ignore[index]
    needed = [name for model in models for name, field in model.model_fields.items() if field.is_required()]
    spared_by = METHODS[method].spared_by  # type: ignore[index]
    spared = [_either(name, other, fields[other]["default"]) for name, other in spared_by.items()]
    return {
        "description": " ".join((inspect.getdoc(models[0]) or "").split()),
        **_OBJECT,
        "properties": {"method": _method(), **searched, "num_trials": _COUNT, "first": first},
        "required": [name for name in needed if name in fields and name not in ("num_steps", *spared_by)],
        **({"allOf": spared} if spared else {}),
    }


def _either(name: str, other: str, default: str) -> Schema:
    """A key must be there, or another one with a value that is not its default."""
    given = {"required": [other], "properties": {other: {"not": {"const": default}}}}
    return {"anyOf": [{"required": [name]}, given]}


def _method() -> Schema:
    return {"enum": list(METHODS), "description": "The method; not needed where the arm has the method's name."}


def _values(method: str) -> dict[str, Schema]:
    """The values of an arm's trials, by their keys."""
    of_method = _described(METHODS[method])["properties"]  # type: ignore[index]
    recipe = _described(TrialConfig)["properties"]
    names = ["learning_rate", *(name for name in TrainConfig.model_fields if name not in RECIPE_OF_ALL)]
    values = {name: schema for name, schema in of_method.items() if name != "method"}
    if "sites" in values:
        sites = {"type": "array", "items": {"enum": list(SITES)}, "minItems": 1, "uniqueItems": True}
        values["sites"] = {**values["sites"], "anyOf": [sites, {"type": "string"}, {"type": "null"}]}
    return values | {name: recipe[name] for name in names}


def _searchable(schema: Schema) -> Schema:
    """The value itself, one form of search, or a list of forms, each for its case."""
    plain = {key: value for key, value in schema.items() if key not in ("description", "default")}
    kinds = {_type for part in plain.get("anyOf", [plain]) if isinstance(_type := part.get("type"), str)}
    choice = {
        "type": "array",
        "items": plain,
        "minItems": 1,
        "uniqueItems": True,
        "description": "Searched: one of these.",
    }
    forms = [_form("choice", choice)]
    ranges = ["int"] if "integer" in kinds else ["uniform", "log_uniform", "int"] if "number" in kinds else []
    for name in ranges:
        item = {"type": "integer" if name == "int" else "number"}
        pair = {"type": "array", "items": item, "minItems": 2, "maxItems": 2, "description": _RANGES[name]}
        forms.append(_form(name, pair))
    searched = {"anyOf": forms}
    cases = {"type": "array", "items": searched, "minItems": 1, "description": "Searched: a form for each case."}
    kept: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    return {**kept, "anyOf": [plain, *forms, cases]}


def _form(name: str, values: Schema) -> Schema:
    return {**_OBJECT, "properties": {name: values, "when": _WHEN}, "required": [name]}


def _described(model: type[BaseModel]) -> Schema:
    """The model's own schema, each property with the sentence beneath its field, and without pydantic's titles."""
    raw = model.model_json_schema(by_alias=True)
    definitions = {inner.__name__: _with_sentences(inner, raw["$defs"][inner.__name__]) for inner in _nested(model)}
    resolved = _resolved({key: value for key, value in raw.items() if key != "$defs"}, definitions)
    return {"properties": _with_sentences(model, resolved)["properties"], "required": resolved.get("required", [])}


def _with_sentences(model: type[BaseModel], schema: Schema) -> Schema:
    texts = field_sentences(model)
    properties = {
        name: {**value, "description": texts[name]} if name in texts else value
        for name, value in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def _nested(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  # any type
    """The models that a type, or the fields of a model, are made of."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    parts = [field.annotation for field in annotation.model_fields.values()] if is_model else get_args(annotation)
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
        yield from _nested(part)


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401  # JSON
    """The schema with each reference replaced by what it means, and without titles."""
    if isinstance(schema, list):
        return [_resolved(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **{k: v for k, v in schema.items() if k != "$ref"}}
    return {
        key: {name: _resolved(part, definitions) for name, part in value.items()}
        if key == "properties"
        else _resolved(value, definitions)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def field_sentences(model: type) -> dict[str, str]:
    """The sentence beneath each field of one of our classes, and of those that it inherits from."""
    texts: dict[str, str] = {}
    for owner in reversed([base for base in model.__mro__ if base.__module__.startswith("prefixray.")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef), "a class has a body"
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
