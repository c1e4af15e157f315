"""A YAML file as plain values, in which every key and every list item knows its `file:line`.

The values follow YAML 1.2's core schema: `1e-4` is a number, `yes` and `1:30` are text. Python's `None` would be text,
too, and is refused unless it is in quotes. Anchors, tags and several documents in one file are refused, so that each
part of a sweep file can be read by itself. A `Document` collects all problems, and they are raised together.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard

import yaml

from prefixray.errors import UserError
from prefixray.system.records import Scalar

Value: TypeAlias = "Scalar | list[Value] | dict[str, Value]"
Key = tuple[str | int, ...]
"""The path to a value: ("arms", "prefix", "first", 0, "preseqlen")."""
_LARGEST = 2**63
_DEEPEST = 20  # levels; a sweep file has six
_TAG = "tag:yaml.org,2002:"
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class _Place:
    text: str  # "sweeps/xsum.yaml:12" or "--set train.num_steps=3"
    order: int  # by which problems are sorted
    names: Key | None = None  # the key that the text already names


class Document:
    """The values of a sweep file with their places, overrides applied, and the problems found so far."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._places: dict[Key, _Place] = {(): _Place(f"{file}:1", 1)}
        self._problems: dict[str, int] = {}  # the text of each problem, and where it sorts
        self._put: set[Key] = set()  # keys whose value `put` has replaced
        self._unread: set[Key] = set()  # keys whose value cannot be read; further problems with them are not reported
        self._missing: list[Key] = []
        self._meant: set[Key] = set()  # keys that a misspelt key was probably meant to be
        self._num_overrides = 0
        node = _compose(text, file)
        if node is None:
            raise UserError(f"{file}: is empty")
        values = self._read(node, (), None)
        if not isinstance(values, dict):
            raise UserError(f"{file}:{_line(node)}: must be a mapping of keys, not {_kind(values)}")
        self.values: dict[str, Value] = values

    def override(self, text: str) -> None:
        """Apply one `--set`: `dotted.key=value`, the value read as YAML; the key may be a new one."""
        self._num_overrides += 1
        dotted, equals, written = text.partition("=")
        key: Key = tuple(dotted.strip().split("."))
        place = _Place(f"--set {text}", _LARGEST + self._num_overrides, key)
        if not equals or "" in key:
            self._note(place, f"{place.text}: must be dotted.key=value, as in --set train.num_steps=100")
            return
        try:
            node = _compose(written, place.text)
        except UserError as error:
            self._note(place, str(error))
            return
        parent = self._parent(key, place)
        if parent is not None:
            self._places = {at: where for at, where in self._places.items() if at[: len(key)] != key}
            self._places[key] = place
            parent[str(key[-1])] = None if node is None else self._read(node, key, place)

    def put(self, source: Key, target: Key) -> None:
        """Put the value of `source` at `target`, in place of the value there; its lines stay those of `source`."""
        parent = self._parent(target, self._place(source))
        if parent is None:
            return
        self._put.add(target)
        moved = {
            (*target, *at[len(source) :]): where for at, where in self._places.items() if at[: len(source)] == source
        }
        self._places = {at: where for at, where in self._places.items() if at[: len(target)] != target} | moved
        self._unread |= {(*target, *at[len(source) :]) for at in self._unread if at[: len(source)] == source}
        parent[str(target[-1])] = self.at(source)

    def stand_at(self, place: str) -> None:
        """Name this place in messages about the whole document, instead of the first line of a file."""
        self._places[()] = _Place(place, 0)

    def at(self, key: Key) -> Value:
        """The value of the key."""
        value: Value = self.values
        for part in key:
            if isinstance(value, dict):
                value = value[str(part)]
            else:
                assert isinstance(value, list) and isinstance(part, int), f"{key} leads nowhere"
                value = value[part]
        return value

    def mapping(self, key: Key) -> dict[str, Value] | None:
        """The mapping at the key. Where it is missing or no mapping: None, and a problem is added."""
        parent = self.at(key[:-1])
        if not isinstance(parent, list) and (not isinstance(parent, dict) or key[-1] not in parent):
            self.miss(key)
            return None
        value = self.at(key)
        if isinstance(value, dict):
            return value
        self.refuse(key, "must be a mapping of keys to values")
        return None

    def is_replaced(self, key: Key) -> bool:
        """Whether the value is not the file's own: it comes from `--set`, or was put there."""
        return key in self._put or self._place(key).text.startswith("--set ")

    def complain(self, key: Key, problem: str) -> None:
        """Add a problem with a key."""
        if any(key[:depth] in self._unread for depth in range(len(key) + 1)):
            return
        place = self._place(key)
        named = place.names == key or not key
        self._note(place, f"{place.text}: {problem}" if named else f"{place.text}: {dotted_name(key)}: {problem}")

    def miss(self, key: Key) -> None:
        """Add that a required key is missing, unless a misspelt key beside it was meant."""
        self._missing.append(key)

    def reject(self, key: Key, valid: Iterable[str], problem: str = "no such key") -> None:
        """Add that there is no such key, with the nearest valid key."""
        names, name = list(valid), str(key[-1])
        self._meant |= {(*key[:-1], similar) for similar in difflib.get_close_matches(name, names, n=1)}
        self.complain(key, problem + suggestion(name, names, what="the keys are"))

    def refuse(self, key: Key, requirement: str) -> None:
        """Add a problem with the value of the key."""
        place = self._place(key)
        named = place.names == key
        self.complain(key, requirement if named else f"{shown(self.at(key))}: {requirement}")

    def raise_problems(self) -> None:
        """Raise all problems as one `UserError`, in the order of the file; do nothing where there are none."""
        for key in self._missing:
            if key not in self._meant:
                self.complain(key, "required, but missing")
        if self._problems:
            raise UserError(*sorted(self._problems, key=self._problems.__getitem__))

    def _place(self, key: Key) -> _Place:
        return next(self._places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self._places)

    def _parent(self, key: Key, place: _Place) -> dict[str, Value] | None:
        """The mapping that holds the key, made where it is missing. Where it cannot be made: None, and a problem."""
        parent: dict[str, Value] = self.values
        for depth, part in enumerate(key[:-1], start=1):
            child = parent.setdefault(str(part), {})
            if not isinstance(child, dict):
                problem = f"{dotted_name(key[:depth])} is {shown(child)}, not a mapping: set it as a whole"
                self._note(place, f"{place.text}: {problem}")
                return None
            self._places.setdefault(key[:depth], place)
            parent = child
        return parent

    def _note(self, place: _Place, problem: str) -> None:
        self._problems.setdefault(problem, place.order)

    def _read(self, node: yaml.Node, key: Key, place: _Place | None) -> Value:
        """The value of a node. Every part of it is noted as standing at `place`, or else at its own line."""
        if len(key) > _DEEPEST:
            raise UserError(f"{(place or self._at_line(node)).text}: nested too deeply")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._read_mapping(node, key, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items: list[Value] = []
            for index, item in enumerate(node.value):
                self._places[(*key, index)] = place or self._at_line(item)
                items.append(self._read(item, (*key, index), place))
            return items
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node)
            except ValueError as error:
                self.complain(key, str(error))
        else:
            self.complain(key, f"{node.tag.replace(_TAG, '!!')}: tags are not supported")
        self._unread.add(key)
        return None

    def _read_mapping(self, node: yaml.MappingNode, key: Key, place: _Place | None) -> Value:
        values: dict[str, Value] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(place or self._at_line(key_node), f"{self._at_line(key_node).text}: a key must be text")
                continue
            name, key_place = key_node.value, place or self._at_line(key_node)
            if name in values:
                self._note(key_place, f"{key_place.text}: {dotted_name((*key, name))}: is there twice")
                continue
            self._places[(*key, name)] = key_place
            values[name] = self._read(value_node, (*key, name), place)
        return values

    def _at_line(self, node: yaml.Node) -> _Place:
        return _Place(f"{self._file}:{_line(node)}", _line(node))


def read_document(path: Path | str) -> Document:
    """Read a YAML file whose top level is a mapping. Raises `UserError` with the place where it is not one."""
    return Document(str(path), _text(Path(path)))


def inline_document(place: str, overrides: Sequence[str]) -> Document:
    """A document made of overrides alone. A key that none of them sets is reported as missing at `place`."""
    document = Document(place, "{}")
    document.stand_at(place)
    for override in overrides:
        document.override(override)
    return document


def dotted_name(key: Key) -> str:
    """("arms", "prefix", "first", 0) as `arms.prefix.first[0]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_plain(part)}" for part in key]
    return "".join(parts).removeprefix(".")


def shown(value: object) -> str:
    """A value for a message: as in YAML's flow style, cut at 60 characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(name: str, valid: Iterable[str], *, what: str) -> str:
    """` (did you mean 'preseqlen'?)`; without a similar name, ` (WHAT: all valid names)`, or nothing without `what`."""
    names = list(valid)
    similar = difflib.get_close_matches(name, names, n=1)
    if similar:
        return f" (did you mean {similar[0]!r}?)"
    return f" ({what}: {', '.join(names)})" if names and what else ""


def is_scalar(value: Value) -> TypeGuard[Scalar]:
    """Whether it is a single value."""
    return not isinstance(value, list | dict)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema without anchors."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases are not supported", mark)
        return super().compose_node(parent, index)


_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile("(~|null|Null|NULL|)$"), [*"~nN", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(other.name for other in path.parent.glob("*.y*ml"))
        hint = suggestion(path.name, siblings, what=f"in {path.parent} there are")
        raise UserError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: is not UTF-8 text") from None


def _compose(text: str, place: str) -> yaml.Node | None:
    """The node graph of a text. In a message about a file, its line is added to `place`."""
    is_file = not place.startswith("--set ")
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = f"{place}:{error.problem_mark.line + 1}" if is_file and error.problem_mark else place
        during = f" ({error.context})" if error.context else ""
        raise UserError(f"{where}: cannot be read as YAML: {error.problem}{during}") from None
    except yaml.reader.ReaderError as error:
        where = f"{place}:{text[: error.position].count(chr(10)) + 1}" if is_file else place
        raise UserError(f"{where}: a character that is not allowed in YAML: {chr(error.character)!r}") from None
    except (ValueError, OverflowError):  # what chr() raises, which PyYAML does not catch, for "\UFFFFFFFF"
        raise UserError(f"{place}: cannot be read as YAML: an escape names no character") from None
    except RecursionError:
        raise UserError(f"{place}: cannot be read as YAML: nested too deeply") from None


def _scalar(node: yaml.ScalarNode) -> Scalar:
    """The value of a scalar node. Raises ValueError with the problem."""
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("an escape names no character")
            if text == "None" and node.style is None:
                raise ValueError("None: write null where nothing is meant, and 'None' in quotes for the word")
            return text
        case "null" | "bool" if text in _WORDS:
            return _WORDS[text]
        case "int" if _INT.match(text):
            number = int(text) if len(text) < 30 else _LARGEST
            if abs(number) < _LARGEST:
                return number
            raise ValueError(f"{text[:30]}: is too large a number")
        case "float" if _FLOAT.match(text):
            if math.isfinite(float(text)):
                return float(text)
            raise ValueError(f"{text[:30]}: is too large a number")
        case _:
            raise ValueError(f"{node.tag.replace(_TAG, '!!')}: tags are not supported")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(value: Value) -> str:
    return "a list" if isinstance(value, list) else shown(value)


def _plain(part: str) -> str:
    return part if re.fullmatch(r"[\w-]+", part) else shown(part)
