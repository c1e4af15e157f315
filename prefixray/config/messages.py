"""pydantic's errors in our own sentences: what is wrong with a key, and what its value must be.

The requirement is read off the field's JSON schema. So a message states all of it ("must be a whole number above 0, or
'all'"), whichever part the value fails.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefixray.system.yaml_document import Document, Key, Value, suggestion

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], values: Mapping[str, Value]) -> Model:
    """The values as a record, as strictly as JSON: true is not 1, and "5" is no number."""
    return model.model_validate_json(json.dumps(values), strict=True)


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> None:
    """Add every error to the document's problems. The model's fields are the document's top-level keys."""
    for detail in error.errors():
        owner, key = _owner(model, detail["loc"])
        if detail["type"] == "missing":
            document.miss(key)
        elif detail["type"] == "extra_forbidden":
            document.reject(key, [field.alias or name for name, field in owner.model_fields.items()])
        else:
            document.refuse(key, requirement(owner, str(key[-1]), detail, document.at(key)))


def requirement(model: type[BaseModel], field: str, detail: ErrorDetails, value: Value) -> str:
    """What the value of a field must be, for a message about the error that the value caused."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    return f"must be {describe(model, field)}{_nearest_choice(model, field, value)}"


def describe(model: type[BaseModel], field: str) -> str:
    """A noun phrase for the values that a field takes: `a whole number above 0, or null`."""
    return _noun(_schema(model, field))


def _owner(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[type[BaseModel], Key]:
    """The model that an error's field belongs to, and the field's key without the parts of unions and lists."""
    for depth, part in enumerate(loc, start=1):
        field = model.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        inner = next((kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)), None)  # or Model | None
        if depth == len(loc) or inner is None:
            return model, loc[:depth]
        model = inner
    raise AssertionError("an error has a place")


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _nearest_choice(model: type[BaseModel], field: str, value: Value) -> str:
    choices = _schema(model, field).get("enum")
    if choices is None or not isinstance(value, str):
        return ""
    return suggestion(value, choices, what="")


@functools.cache
def _schema(model: type[BaseModel], field: str) -> Mapping[str, Any]:
    properties: Mapping[str, Mapping[str, Any]] = model.model_json_schema()["properties"]
    return properties[field]


def _noun(schema: Mapping[str, Any], *, plural: bool = False) -> str:
    if "anyOf" in schema:
        *others, last = (_noun(part) for part in schema["anyOf"])
        return f"{', '.join(others)}, or {last}"
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    match schema.get("type"):
        case "integer":
            return ("whole numbers" if plural else "a whole number") + _bounds(schema)
        case "number":
            return ("numbers" if plural else "a number") + _bounds(schema)
        case "array":
            return f"a list of {_noun(schema['items'], plural=True)}"
        case "string" if "pattern" in schema:
            return f"at most {schema['maxLength']} letters, digits, '.', '_' and '-', the first a letter or digit"
        case "string":
            return "text" if schema.get("minLength", 0) == 0 else "text that is not empty"
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case _:
            return "a mapping of keys to values"


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "of at least",
        "exclusiveMaximum": "below",
        "maximum": "of at most",
    }
    said = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(said)}" if said else ""
