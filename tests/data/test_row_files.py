"""Data that is damaged, in any of the forms that a task reads: always a message with its place, never a traceback."""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.json_mutation import change, json_values

from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

SPLITS = ("train", "dev", "test")
PAIRS = [("name : The Mill", "The Mill is a pub."), ("name : Café", 'It is "good",\nand cheap.'), ("a", "b")]
_FUZZ = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _jsonl() -> bytes:
    return "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS).encode()


def _csv() -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for pair in PAIRS for text in pair]
    return "\n".join(
        ["source,target", *(f"{s},{t}" for s, t in zip(quoted[::2], quoted[1::2], strict=True)), ""]
    ).encode()


def _lines(index: int) -> bytes:
    return "".join(" ".join(pair[index].split()) + "\n" for pair in PAIRS).encode()


def _dart() -> bytes:
    rows = [
        {"tripleset": [["The Mill", "FOOD", "Thai"]], "annotations": [{"source": "x", "text": t}]} for _, t in PAIRS
    ]
    return json.dumps(rows).encode()


def _webnlg_json() -> bytes:
    entries = [
        {
            str(number): {
                "category": "Food",
                "modifiedtripleset": [{"subject": s, "property": "p", "object": "o"}],
                "lexicalisations": [{"lex": t, "comment": "good"}],
            }
        }
        for number, (s, t) in enumerate(PAIRS, start=1)
    ]
    return json.dumps({"entries": entries}).encode()


def _webnlg_xml() -> bytes:
    entry = (
        '<entry category="Food" eid="Id1"><modifiedtripleset><mtriple>a | b | c</mtriple></modifiedtripleset>'
        '<lex comment="good">A text.</lex></entry>'
    )
    return f"<benchmark><entries>{entry}</entries></benchmark>".encode()


FORMS: Mapping[str, tuple[str, Mapping[str, Callable[[], bytes]]]] = {
    "jsonl": ("custom", {"{}.jsonl": _jsonl}),
    "jsonl.gz": ("summarization", {"{}.jsonl.gz": lambda: gzip.compress(_jsonl())}),
    "csv": ("custom", {"{}.csv": _csv}),
    "lines": ("xsum", {"{}.source": lambda: _lines(0), "{}.target": lambda: _lines(1)}),
    "dart": ("dart", {"{}.json": _dart}),
    "dart.gz": ("dart", {"{}.json.gz": lambda: gzip.compress(_dart())}),
    "webnlg json": ("webnlg", {"{}.json": _webnlg_json}),
    "webnlg xml": ("webnlg", {"{}/a.xml": _webnlg_xml}),
}
"""A task by the form of its files: what each split's are called, and what is in them."""


def _write(folder: Path, form: str) -> TaskConfig:
    name, files = FORMS[form]
    for split in SPLITS:
        for pattern, content in files.items():
            path = folder / pattern.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())
    return TaskConfig.model_validate({"name": name, "path": str(folder)})


def _read(config: TaskConfig, folder: Path) -> None:
    """The task is read, or refused with the place of each problem."""
    try:
        task = load_task(config)
    except UserError as error:
        places = (f"{folder}", f"task.path: {folder}", "task: ", "and ")
        assert error.problems and all(problem.startswith(places) for problem in error.problems), error.problems
        return
    texts = [text for one in (*task.train, *task.dev) for text in (one.source, one.target)]
    assert texts and all(isinstance(text, str) and "\0" not in text for text in texts)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_when_it_is_whole(tmp_path: Path, form: str) -> None:
    task = load_task(_write(tmp_path, form))
    assert len(task.train) == len(task.dev) == (1 if form == "webnlg xml" else 3)


_INSERTED = st.sampled_from(
    [b"\0", b"\xe9", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b",", b"{", b"]", b"<", b"&", b""]
)


@pytest.mark.parametrize("form", FORMS)
@_FUZZ
@given(data=st.data())
def test_changed_bytes_cause_nothing_but_a_message(
    form: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bytes"
    config = _write(folder / form.replace(" ", "-"), form)
    folder = folder / form.replace(" ", "-")
    pattern = data.draw(st.sampled_from(sorted(FORMS[form][1])))
    path = folder / pattern.format(data.draw(st.sampled_from(SPLITS)))
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = min(len(content), start + data.draw(st.integers(0, 8)))
        content = content[:start] + data.draw(_INSERTED) + content[end:]
    path.write_bytes(data.draw(st.sampled_from([content, content[: len(content) // 2], b""])))
    _read(config, folder)


_VALUES = json_values(st.integers(-3, 3), max_size=3, max_leaves=3)


@pytest.mark.parametrize("form", ["jsonl", "dart", "webnlg json"])
@_FUZZ
@given(data=st.data())
def test_any_value_anywhere_causes_nothing_but_a_message(
    form: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "values" / form.replace(" ", "-")
    config = _write(folder, form)
    pattern = next(iter(FORMS[form][1]))
    path = folder / pattern.format(data.draw(st.sampled_from(SPLITS)))
    lines = path.read_text().splitlines() if form == "jsonl" else [path.read_text()]
    number = data.draw(st.integers(0, len(lines) - 1))
    body: Any = json.loads(lines[number])
    change(body, data, _VALUES)
    lines[number] = json.dumps(body)
    path.write_text("\n".join(lines))
    _read(config, folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "content",
    [
        "name,Café\n".encode("latin-1"),
        '{"source": "a", "target": "b"}\n'.encode("utf-16"),
        '{"source": "a", "target": "b"}\n'.encode("utf-16-le"),
        b"\0" * 1000,
        b"[" * 100_000,
        b"<a>" * 100_000,
        b'{"source": "' + b"x" * 10_000_000,
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><a>&d;</a>',
        b"\n\n\n",
        b"",
    ],
    ids=[
        "latin-1",
        "utf-16",
        "utf-16-le",
        "nul",
        "deep json",
        "deep xml",
        "10 MB",
        "encoding",
        "entity",
        "blank",
        "empty",
    ],
)
def test_what_is_no_such_file_is_refused_with_its_place(form: str, tmp_path: Path, content: bytes) -> None:
    config = _write(tmp_path, form)
    for pattern in FORMS[form][1]:
        (tmp_path / pattern.format("dev")).write_bytes(gzip.compress(content) if "gz" in form else content)
    if form == "lines" and content.startswith((b"[", b"<", b'{"source": "x')):
        return  # lines of text are any text
    with pytest.raises(UserError) as refused:
        load_task(config)
    name = next(iter(FORMS[form][1])).format("dev")
    assert all(name in problem or "dev" in problem for problem in refused.value.problems)


def test_a_nul_byte_is_refused_at_its_line(tmp_path: Path) -> None:
    config = _write(tmp_path, "lines")
    (tmp_path / "dev.source").write_bytes(b"one\nt\0wo\nthree\n")
    with pytest.raises(UserError, match=r"dev\.source:2: holds a NUL byte; is it UTF-16\? save it as UTF-8"):
        load_task(config)
    config = _write(tmp_path / "other", "jsonl")
    (tmp_path / "other" / "dev.jsonl").write_text('{"source": "a\\u0000b", "target": "c"}\n')
    with pytest.raises(UserError, match=r'dev\.jsonl:1: "source" holds a NUL character'):
        load_task(config)


def test_a_sweep_on_damaged_data_ends_before_ray_starts(tmp_path: Path, base_folders: Mapping[str, Path]) -> None:
    _write(tmp_path / "data", "jsonl")
    (tmp_path / "data" / "dev.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    (tmp_path / "sweep.yaml").write_text(
        f"name: x\nbase: {base_folders['gpt2']}\ntask: {{name: custom, path: {tmp_path / 'data'}}}\n"
        "train: {batch_size: 1, num_steps: 2}\narms: {lora: {rank: 1, learning_rate: 1e-3}}\n"
        "search: {num_trials: 2}\ntracking: {mlflow: null}\n"
    )
    code = (
        "import sys\nfrom prefixray.sweep import main\ncode = main(['sweep.yaml'])\n"
        "import ray\nprint('started' if ray.is_initialized() else 'not started')\nsys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2 and "not started" in ran.stdout and "Traceback" not in ran.stderr
    assert re.search(
        r'data/dev\.jsonl:2: no "target" column; columns are source \(set task\.columns\.target\)', ran.stderr
    )
