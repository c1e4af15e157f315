"""One list is the reading order and the layering: a folder imports only those that stand before it.

Inside a folder, modules may import one another as long as there is no ring.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "prefixray"

# The two files at the top that are no commands, and the folders: each imports only what stands before it.
ORDER = [
    "errors",
    "system",
    "metrics",
    "data",
    "config",
    "trial",
    "results",
    "search",
    "model",
    "methods",
    "batching",
    "artifacts",
    "reporting",
    "training",
    "planning",
    "decoding",
    "serving",
    "self_study",
    "tracking",
    "cluster",
    "driver",
]
# Parse and wire; nobody imports them, not even one another.
COMMANDS = ["sweep", "plan", "train", "decode", "report", "control", "export", "convert", "cluster_check", "spot"]
COMMANDS += ["examples", "schema", "init", "compare", "serve"]
# A command that runs another one; and the one command over them all, which imports the command that is named.
FRONT = ["demo", "cli", "__main__"]
FILES_AT_THE_TOP = {"__init__", "errors", "trial", *COMMANDS, *FRONT}

# Libraries whose upstream drift shall cost few files: the folders that may import them.
ALLOWED = {
    "torch": {"model", "methods", "batching", "artifacts", "training", "planning", "decoding", "serving", "self_study"},
    "ray": {"cluster", "driver"},
    "transformers": {"model", "methods", "batching", "training", "decoding"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "rich": {"reporting"},
    "jinja2": {"batching", "reporting", "serving"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
    "starlette": {"serving"},
    "huggingface_hub": {"system", "artifacts"},
    "datasets": {"data"},
    "typer": {"system", "demo", "cli", *COMMANDS},
}
WITHOUT_TORCH = [
    "config.load",
    "trial",
    "results.record",
    "search.study",
    "reporting.page",
    "driver.engine.trainable",
    "driver.run",
]
"""Modules that must stay thin: the process of the trials' seats and the driver do without torch."""


@dataclass(frozen=True)
class Import:
    """An import statement as it concerns the layers."""

    module: str  # the file that says it: "methods.prefix"
    target: str  # what it imports: "prefixray.model.base", "torch.nn"
    line: int
    deferred: bool  # inside a function, or for type checkers alone: importing the file does not run it

    def __str__(self) -> str:
        return f"prefixray.{self.module}:{self.line} imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Every module under the package by its dotted name; a package's own name stands for its __init__."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """All import statements, wherever they stand in their files; the package's own names are `tests/test_api.py`'s."""
    known = modules(root)
    found = []
    for module, path in known.items():
        if not module:
            continue
        for node, deferred in _walk(ast.parse(path.read_text(encoding="utf-8")), False):
            found += [Import(module, target, node.lineno, deferred) for target in _targets(node, known)]
    return found


def _walk(node: ast.AST, deferred: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, deferred
        yield from _walk(child, deferred or _defers(child))


def _defers(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _targets(node: ast.Import | ast.ImportFrom, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0 and node.module, "imports name the whole path"
    package = node.module
    inside = package.partition(".")[2]
    names = [f"{inside}.{alias.name}" if inside else alias.name for alias in node.names]
    if package.split(".")[0] != "prefixray":
        return [package]
    return sorted({f"prefixray.{name}" if name in known else package for name in names})


def own(target: str) -> str | None:
    """The module of prefixray that is meant: "methods.prefix"; None: another library's, or the package's own names."""
    head, _, inside = target.partition(".")
    return inside or None if head == "prefixray" else None


def unit(module: str) -> str:
    """What stands in the list: a module, or the package that it is in."""
    return module.split(".")[0]


def upward(root: Path, order: list[str], entries: list[str], front: Sequence[str] = ()) -> list[str]:
    """The imports of prefixray's own modules that break the order."""
    place = {name: i for i, name in enumerate(order)} | dict.fromkeys(entries, len(order))
    place |= {name: len(order) + 1 + i for i, name in enumerate(front)}
    wrong = []
    for one in imports(root):
        target = own(one.target)
        if target is None or unit(target) == unit(one.module):
            continue
        if place[unit(target)] >= place[unit(one.module)]:
            wrong.append(str(one))
    return wrong


def misplaced(root: Path, allowed: dict[str, set[str]]) -> list[str]:
    """The imports of libraries outside the modules that may."""
    return [
        str(one)
        for one in imports(root)
        if unit(one.module) not in allowed.get(one.target.split(".")[0], {unit(one.module)})
    ]


def cycle(root: Path) -> list[str]:
    """A ring of modules that import one another, deferred imports included; empty where there is none."""
    edges: dict[str, list[str]] = {}
    for one in imports(root):
        target = own(one.target)
        if target is not None:
            edges.setdefault(one.module, []).append(target)
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for target in edges.get(module, []):
                if ring := visit(target, [*path, module]):
                    return ring
            finished.add(module)
        return []

    return next((ring for module in edges if (ring := visit(module, []))), [])


def loaded(root: Path, module: str) -> set[str]:
    """The libraries that importing a module brings in by way of prefixray's own modules."""
    said = [one for one in imports(root) if not one.deferred]
    reached, waiting = set(), [module]
    libraries: set[str] = set()
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        for one in said:
            if one.module != current:
                continue
            target = own(one.target)
            if target is None:
                libraries.add(one.target.split(".")[0])
            else:
                waiting += [target, unit(target)]
    return libraries


def test_at_the_top_are_commands_and_two_shared_words() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == FILES_AT_THE_TOP


def test_every_folder_has_its_place_in_the_list() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ORDER) - FILES_AT_THE_TOP
    assert len(ORDER) == len(set(ORDER))


def test_no_folder_is_called_like_a_command() -> None:
    assert set(ORDER) & {*COMMANDS, *FRONT} == set()


def test_a_module_imports_only_what_stands_above_it_and_nobody_imports_an_entry() -> None:
    assert upward(ROOT, ORDER, COMMANDS, FRONT) == []


def test_no_modules_import_one_another_in_a_ring() -> None:
    assert cycle(ROOT) == []


def test_each_library_is_imported_where_it_may_be_and_nowhere_else() -> None:
    assert misplaced(ROOT, ALLOWED) == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_thin_modules_bring_no_torch_along(module: str) -> None:
    assert loaded(ROOT, module) & {"torch", "transformers", "mlflow", "huggingface_hub"} == set()


def test_the_checks_see_what_they_forbid(tmp_path: Path) -> None:
    files = {
        "low.py": "import json\nimport torch\n",
        "high.py": "def later():\n    from prefixray import entry\n",
        "middle/__init__.py": "from prefixray.middle import part\n",
        "middle/part.py": "from prefixray.high import later\nfrom prefixray.low import x\nimport prefixray.middle\n",
        "entry.py": "from prefixray.middle.part import y\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(modules(tmp_path)) == ["entry", "high", "low", "middle", "middle.part"]
    assert upward(tmp_path, ["low", "middle", "high"], ["entry"]) == [
        "prefixray.high:2 imports prefixray.entry",
        "prefixray.middle.part:1 imports prefixray.high",
    ]
    assert misplaced(tmp_path, {"torch": {"high"}}) == ["prefixray.low:2 imports torch"]
    assert cycle(tmp_path)[0] == cycle(tmp_path)[-1]
    assert loaded(tmp_path, "entry") >= {"torch", "json"}


def test_every_file_opens_by_saying_what_it_is() -> None:
    silent = [name for name, path in modules(ROOT).items() if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert silent == []
