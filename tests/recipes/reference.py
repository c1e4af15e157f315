"""Write the tables of docs/reference/ from the code: keys of a sweep file, commands, Python names, artifacts.

    python tests/recipes/reference.py

A page is written by hand, except for what stands between `<!-- from the code: NAME -->` and `<!-- end -->`. This script
writes those parts again. `tests/test_reference.py` fails where a page differs from what the script would write.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

import prefixray
from prefixray import cli
from prefixray.artifacts.record import ArtifactRecord, BaseRecord
from prefixray.config.files.json_schema import field_sentences
from prefixray.config.messages import describe
from prefixray.config.schema import FinalConfig, SearchConfig, SweepConfig, TrackingConfig
from prefixray.config.space import KINDS
from prefixray.config.trials import METHODS, TrainConfig, TrialConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.entries import ColumnsConfig, SplitConfig
from prefixray.data.task_config import LowDataConfig, TaskConfig
from prefixray.metrics import METRICS, higher_is_better
from prefixray.system.command_line import EXIT_CODES

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
_SECTIONS_OF_A_FILE = ("task", "train", "arms", "search", "final", "tracking")
_INNER: Mapping[str, type[BaseModel]] = {"columns": ColumnsConfig, "split": SplitConfig, "low_data": LowDataConfig}
_PART = re.compile(r"(<!-- from the code: ([\w ]+) -->)\n.*?<!-- end -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with its generated parts written anew. Raises `KeyError` for a part that this script does not know."""
    return _PART.sub(lambda part: f"{part[1]}\n\n{PARTS[part[2]]().strip()}\n\n<!-- end -->", page)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _keys(model: type[BaseModel], leave_out: Iterable[str] = ()) -> str:
    """A table of the keys of one section."""
    texts = field_sentences(model)
    return _table(
        ("key", "value", "default", "meaning"),
        (
            (f"`{key}`", _value(model, key), _default(model, key), texts[key])
            for key in model.model_fields
            if key not in leave_out
        ),
    )


def _value(model: type[BaseModel], key: str) -> str:
    """What values a key takes."""
    if key in _INNER:
        return f"the keys of `{key}`{'' if key == 'columns' else ', or null'}"
    if model is TaskConfig and key == "name":
        return "a task of the table below"
    if model is METHODS["prefix"] and key == "sites":
        return "a list of encoder, decoder, cross, or null"
    return describe(model, key).replace("'", "`").replace("`.`, `_` and `-`", "'.', '_' and '-'")


def _default(model: type[BaseModel], key: str) -> str:
    field = model.model_fields[key]
    if field.is_required():
        return "required"
    match field.get_default(call_default_factory=True):
        case None:
            return "null"
        case bool() as value:
            return str(value).lower()
        case BaseModel() | () as value:
            return "none" if value == () else "those of its keys"
        case value:
            return str(value)


def _forms() -> str:
    return "\n".join(f"- {_paragraph(kind)}" for kind in KINDS.values())


def _paragraph(what: object) -> str:
    return " ".join((inspect.getdoc(what) or "").split())


def _tasks() -> str:
    def place(name: str) -> str:
        facts = CATALOG[name]
        if not facts.keys:
            return "inside the package"
        if facts.keys and "train" in facts.keys:
            return "your own: `train`, `dev` and `test`, or `path`"
        return "`path`, required" if facts.needs_path else f"`path`, or `{facts.hub}` on the hub"

    rows = (
        (f"`{name}`", facts.title, place(name), ", ".join(facts.kind.metrics), ", ".join(facts.kind.more_metrics))
        for name, facts in CATALOG.items()
    )
    return _table(("task", "in tables", "where its data is", "metrics", "more metrics"), rows)


def _metrics() -> str:
    better = {True: "higher", False: "lower"}
    rows = ((f"`test/{name}`", metric.label, better[higher_is_better(name)]) for name, metric in METRICS.items())
    return _table(("metric", "in tables", "better"), rows)


def _commands() -> str:
    return "\n\n".join(_command(name, line) for name, line in cli.COMMANDS.items())


def _command(name: str, line: str) -> str:
    entry = importlib.import_module(f"prefixray.{name.replace(' ', '_')}").main
    command: Any = typer.main.get_command(entry.app())
    first, *others = inspect.cleandoc(entry.doc or "").split("\n\n")
    examples = "\n\n".join(f"```\n{text}\n```" if text.startswith("prefixray ") else text for text in others)
    rows = [_parameter(parameter) for parameter in command.params]
    table = _table(("argument", "default", "meaning"), rows) if rows else ""
    return f"## {name}\n\n{' '.join(first.split())}\n\n{examples}\n\n{table}".strip()


def _parameter(parameter: Any) -> tuple[str, str, str]:  # noqa: ANN401  # Typer's own types are private
    is_option = parameter.opts[0].startswith("--")
    is_flag = getattr(parameter, "is_flag", False)
    metavar = parameter.metavar or _metavar(parameter.type_descriptor.annotation)
    shown = " ".join((*parameter.opts[:1], *([] if is_flag else [metavar]))) if is_option else metavar
    default = "required" if parameter.required else ""
    if not is_flag and isinstance(parameter.default, str | int | float):
        default = str(parameter.default)
    return f"`{shown}`", default, f"{parameter.help}{'; may be repeated' if parameter.multiple else ''}"


def _metavar(annotation: Any) -> str:  # noqa: ANN401  # any annotation
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return {"int": "NUMBER", "float": "NUMBER", "Path": "PATH"}.get(annotation.__name__, "NAME")


def _exit_codes() -> str:
    lines = EXIT_CODES.splitlines()[1:]
    return _table(("code", "meaning"), (tuple(line.split(maxsplit=1)) for line in lines))


def _python() -> str:
    names = [name for name in prefixray.__all__ if not name.startswith("_")]
    objects = [getattr(prefixray, name) for name in names]
    returned = [
        importlib.import_module(f"prefixray.{module}").__dict__[name]
        for module, name in (
            ("decoding.tuned_model", "OpenBase"),
            ("reporting.notebook", "Sweep"),
            ("driver.run", "Outcome"),
            ("planning.estimate", "Plan"),
        )
    ]
    return "\n\n".join(_python_entry(each) for each in (*objects, *returned))


def _python_entry(each: Any) -> str:  # noqa: ANN401  # a class or a function
    if inspect.isfunction(each):
        return f"## {each.__name__}\n\n```text\n{_signature(each)}\n```\n\n{_doc(each)}"
    parts = [f"## {each.__name__}\n\n{_doc(each)}"]
    texts = field_sentences(each)
    if is_dataclass(each):
        types = {field.name: _type(field.type) for field in fields(each)}
        parts.append("\n".join(f"- `{name}`: {texts.get(name, f'`{types[name]}`')}" for name in types))
    for name, member in vars(each).items():
        if name.startswith("_") or name in texts:
            continue
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
        if inspect.isfunction(function) and function.__doc__:
            is_value = function is not member and not isinstance(member, classmethod | staticmethod)
            title = f"{each.__name__}.{name}"
            body = "" if is_value else f"```text\n{_signature(function, title)}\n```\n\n"
            parts.append(f"### {title}\n\n{body}{_doc(function)}")
    return "\n\n".join(parts)


def _type(annotation: Any) -> str:  # noqa: ANN401  # any annotation
    """The annotation of a field without the modules of its names."""
    is_plain = isinstance(annotation, type) and not get_args(annotation)
    return annotation.__name__ if is_plain else re.sub(r"\w+\.", "", str(annotation))


def _signature(function: Callable[..., object], title: str | None = None) -> str:
    """As a caller writes it, a parameter a line where it is long."""
    source = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(source, ast.FunctionDef)
    source.args.args = [each for each in source.args.args if each.arg not in ("self", "cls")]
    returns = f" -> {ast.unparse(source.returns)}" if source.returns else ""
    arguments = ast.unparse(source.args)
    lines = f"{title or source.name}({arguments}){returns}"
    if len(lines) > 100:
        split = re.sub(r", (?=\*?\w+:|\*,)", ",\n    ", arguments)
        lines = f"{title or source.name}(\n    {split},\n){returns}"
    without_quotes = re.sub(r"(: |-> )'([^']+)'", r"\1\2", lines)  # around a type that is not imported yet
    return re.sub(r"(?<=\S)=(?=\S)", " = ", without_quotes).replace("'", '"')


def _doc(what: object) -> str:
    """A docstring's paragraphs as Markdown."""
    paragraphs = (inspect.getdoc(what) or "").split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs)


def _artifact() -> str:
    texts = field_sentences(ArtifactRecord)
    said = {
        "method": "The method: prefix, adapter, lora or finetune.",
        "config": "The trial's configuration: the keys of `train`, the arm, the learning rate, the method's values.",
        "base": "The base that the artifact belongs to, as below.",
        "task": "The section `task` of the sweep file.",
    }
    rows = [("`format`", "The version of this format.")]
    rows += [(f"`{key}`", texts.get(key) or said[key]) for key in ArtifactRecord.model_fields]
    rows += [("`sha256`", "The checksum over the rest of the JSON, its keys sorted, and the tensor file.")]
    return _table(("key", "meaning"), rows)


def _artifact_base() -> str:
    texts = field_sentences(BaseRecord)
    return _table(("key", "meaning"), ((f"`base.{key}`", texts[key]) for key in BaseRecord.model_fields))


def _artifact_files() -> str:
    rows = ((method, f"`{method}_config.json`", f"`{method}.safetensors`") for method in METHODS)
    return _table(("method", "record", "tensors"), rows)


def _arm() -> str:
    texts = field_sentences(TrialConfig)
    return _table(
        ("key", "value", "default", "meaning"),
        [
            ("`method`", f"one of {', '.join(f'`{name}`' for name in METHODS)}", "the arm's name", "The method."),
            ("`learning_rate`", describe(TrialConfig, "learning_rate"), "required", texts["learning_rate"]),
            ("`num_trials`", "a whole number above 0", "`search.num_trials`", "The arm's own number of trials."),
            (
                "`first`",
                "a list of configurations, or `auto`",
                "none",
                "Configurations that the search tries first; auto: measured ones.",
            ),
        ],
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "sweep": lambda: _keys(SweepConfig, _SECTIONS_OF_A_FILE),
    "task": lambda: _keys(TaskConfig),
    **{name: lambda model=model: _keys(model) for name, model in _INNER.items()},  # type: ignore[misc]
    "tasks": _tasks,
    "train": lambda: _keys(TrainConfig),
    "arm": _arm,
    **{name: lambda model=model: _keys(model, ["method"]) for name, model in METHODS.items()},  # type: ignore[misc]
    "search": lambda: _keys(SearchConfig),
    "final": lambda: _keys(FinalConfig),
    "tracking": lambda: _keys(TrackingConfig),
    "forms": _forms,
    "metrics": _metrics,
    "commands": _commands,
    "exit codes": _exit_codes,
    "python": _python,
    "artifact": _artifact,
    "artifact base": _artifact_base,
    "artifact files": _artifact_files,
}
"""The generated parts by their names."""

if __name__ == "__main__":
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
