"""`prefixray init`: from a user's data to a sweep file that is valid, planned and shown as the model sees it."""

import re
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
from support.data_files import jsonl, write

from prefixray.cli import main
from prefixray.config.files.json_schema import sweep_schema
from prefixray.config.load import load_sweep
from prefixray.data.own.look import look_at
from prefixray.system.yaml_document import read_document

PAIRS = [
    {"id": n, "question": f"How many is {n} and {n}?", "answer": f"It makes {2 * n} in all, I think."}
    for n in range(60)
]
ONE_SOURCE = [{"l": "links", "r": f"rechts {n}"} for n in range(9)]
LABELS = [{"text": f"sentence {n}", "label": ["good", "bad"][n % 2]} for n in range(60)]
NUMBERS = [{"id": n, "text": f"sentence {n}", "label": n % 2} for n in range(60)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in range(60)
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def csv_of(rows: list[dict[str, object]]) -> str:
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("file", "content", "columns", "metric"),
    [
        ("sums.csv", csv_of(PAIRS), {"source": "question", "target": "answer"}, "test/bleu"),
        ("labels.jsonl", jsonl(LABELS), {"source": "text", "target": "label"}, "test/accuracy"),
        ("numbers.jsonl", jsonl(NUMBERS), {"source": "text", "target": "label"}, "test/accuracy"),
        ("chats.jsonl", jsonl(CHATS), {"messages": "messages"}, "test/token_f1"),
        (
            "unnamed.jsonl",
            jsonl(ONE_SOURCE),
            {"source": "l", "target": "r"},
            "",
        ),
    ],
)
def test_a_file_becomes_a_sweep_file_that_is_valid_and_planned(
    file: str,
    content: str,
    columns: Mapping[str, str],
    metric: str,
    base_folders: Mapping[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(Path(file), content)
    if file == "unnamed.jsonl":  # one source: nothing can be split
        assert main(["init", file, "--base", str(base_folders["llama"])]) == 2
        assert "task.split: the training rows have 1 different source, too few" in capsys.readouterr().err
        return
    assert main(["init", file, "--base", str(base_folders["llama"])]) == 0
    shown = capsys.readouterr().out
    made = Path(file).with_suffix(".yaml")
    config = load_sweep(made)
    small = load_sweep(made, scales=["small"])
    assert (small.name, small.train.num_steps, small.search.num_trials) == (f"{made.stem}-small", 20, 2)
    assert {key: value for key, value in config.task.columns.model_dump().items() if key in columns} == dict(columns)
    assert config.final.metric == metric and config.task.split is not None
    assert "\narms:   # learning rates measured on a base 576 wide; for another one, widen them\n" in made.read_text()
    assert jsonschema.Draft202012Validator(sweep_schema()).is_valid(read_document(made).values)
    assert made.read_text().startswith("# yaml-language-server: $schema=sweep.schema.json\n")
    assert "splits: a tenth of the sources each for dev and test, by a hash: " in shown
    assert "warning: " not in shown and "sources of test tell large differences alone" in shown
    assert Path("sweep.schema.json").is_file() and f"Plan of {made.stem}: {made}" in shown
    assert main(["plan", str(made), "--scale", "small"]) == 0
    assert capsys.readouterr().out.startswith(f"Plan of {small.name}: {made} -> runs/{small.name}\n")
    assert shown.count(" -> ") >= 4 and "The first 3 rows as the model sees them" in shown


def test_a_file_that_is_there_stays_and_columns_can_be_named(
    base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("data/train.jsonl"), jsonl([{"x": f"a {n}", "y": f"b {n}", "z": f"c {n}"} for n in range(30)]))
    write(Path("data/dev.jsonl"), jsonl([{"x": "d", "y": "e", "z": "f"}]))
    given = ["init", "data/train.jsonl", "--base", str(base_folders["gpt2"])]
    assert main(given) == 2
    assert "cannot tell which column is which; those of text are x, y, z (of x, y, z); say --source and --target" in (
        capsys.readouterr().err
    )
    assert main([*given, "--source", "x", "--target", "q"]) == 2
    assert "--target q: data/train.jsonl has no such column; columns are x, y, z" in capsys.readouterr().err
    assert main([*given, "--source", "x", "--target", "z"]) == 0
    task = load_sweep("data.yaml").task
    assert (task.train, task.dev, task.test) == ("data/train.jsonl", "data/dev.jsonl", None)
    assert "splits: a tenth of the sources for test, by a hash: " in capsys.readouterr().out
    assert main([*given, "--source", "x", "--target", "z"]) == 2
    assert capsys.readouterr().err == "data.yaml: exists; --force overwrites it, --name takes another name\n"


@pytest.mark.parametrize("data", ["data", "data/train.csv"])
def test_a_test_file_without_targets_is_not_used(
    data: str, base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("data/train.csv"), csv_of(PAIRS))
    write(Path("data/test.csv"), csv_of([{key: row[key] for key in ("id", "question")} for row in PAIRS[:5]]))
    assert main(["init", data, "--base", str(base_folders["gpt2"])]) == 0
    task = load_sweep("data.yaml").task
    assert (task.path, task.train, task.dev, task.test) == (None, "data/train.csv", None, None)
    assert "\nnote: test.csv has no targets, and is not used\n" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("source", 7), ("target", [])])
def test_a_row_that_cannot_be_read_is_named_where_the_columns_have_usual_names(
    key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"source": f"s {n}", "target": f"t {n}"} for n in range(30)]
    rows[3][key] = value
    write(Path("data.jsonl"), jsonl(rows))
    assert main(["init", "data.jsonl"]) == 2
    assert capsys.readouterr().err.startswith(f'data.jsonl:4: "{key}" is ')


def test_texts_that_are_cut_are_told(base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"source": f"s {n}", "target": "a long answer " * (200 if n < 10 else 1)} for n in range(60)]
    write(Path("long.jsonl"), jsonl(rows))
    assert main(["init", "long.jsonl", "--base", str(base_folders["gpt2"])]) == 0
    told = capsys.readouterr().out.partition("warning: ")[2].splitlines()[0]
    assert re.fullmatch(r"\d of \d\d targets fill task.max_target_tokens, and are cut there if they are longer", told)


def test_names_that_yaml_reads_otherwise_and_the_file_that_was_named_beside_others(
    base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("train.jsonl"), jsonl([{"source": "a", "target": "b"}]))
    columns = {"source": "que\x85st: {ion", "target": 'a "b" #\u2028'}
    rows = [{columns["source"]: row["question"], columns["target"]: row["answer"]} for row in PAIRS]
    write(Path("train.v2.jsonl"), jsonl(rows))
    given = ["init", "train.v2.jsonl", "--base", str(base_folders["gpt2"]), "--name"]
    for name in ("my sweep", "no/where", "", "l" * 101):
        assert main([*given, name]) == 2
        assert capsys.readouterr().err == (
            f"--name {name}: must be at most 100 letters, digits, '.', '_' and '-', the first a letter or digit\n"
        )
    assert main([*given, "2024"]) == 0
    made = load_sweep("2024.yaml")
    assert (made.name, made.task.train) == ("2024", "train.v2.jsonl")
    assert {key: value for key, value in made.task.columns.model_dump().items() if key in columns} == columns
    Path("sweep.schema.json").unlink()
    Path("sweep.schema.json").mkdir()
    assert main([*given, "1e5"]) == 2
    assert capsys.readouterr().err.startswith("1e5.yaml: cannot be written: ")
    assert len(look_at(write(Path(f"{'l' * 120}.jsonl"), jsonl(PAIRS))).name) <= 100


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: no such file or folder; a data set of the hub is owner/name"),
        ("empty.jsonl", "empty.jsonl: has no rows"),
        ("broken.jsonl", "broken.jsonl:1: looks like one JSON object over several lines"),
        ("notes.txt", "notes.txt: must be a .jsonl, .csv"),
        ("semicolons.csv", "semicolons.csv:1: fields are separated by ';'; they must be by ','"),
        ("one.csv", "one.csv:1: has one column, question; it must have one for the source and one for the target"),
        ("unanswered.jsonl", 'unanswered.jsonl:2: "answer" is empty'),
        ("gap.jsonl", "gap.jsonl:2: \"messages\" must end with a message of role 'assistant'"),
        ("turns.jsonl", '"turns" message 1 is an object with from, value; it must be an object with role and content'),
    ],
)
def test_data_that_cannot_be_read_is_refused(
    data: str, problem: str, base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"empty.jsonl": "", "broken.jsonl": "{", "notes.txt": "hello", "one.csv": "question\na\nb"}
    texts["semicolons.csv"] = "question;answer\na, b;c"
    texts["gap.jsonl"] = jsonl([CHATS[0], {"messages": CHATS[1]["messages"][:1]}, *CHATS[2:]])
    texts["unanswered.jsonl"] = jsonl([{**row, "id": "a", "answer": row["answer"] * (row["id"] != 1)} for row in PAIRS])
    texts["turns.jsonl"] = jsonl([{"turns": [{"from": "human", "value": f"Say {n}"}]} for n in range(9)])
    for name, text in texts.items():
        write(Path(name), text + "\n" * bool(text))
    assert main(["init", data, "--base", str(base_folders["gpt2"])]) == 2
    assert problem in capsys.readouterr().err and not list(Path().glob("*.yaml"))
