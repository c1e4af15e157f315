"""Summarisation: published sets from folders and from the hub, their references, and what is left out.

DialogSum's texts may not be used commercially, so all rows here are made up in the sets' forms.
"""

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from support.summaries import AS_TASK, COLUMNS, PAIRS, ROUGE, Rows, as_parts, folder_of, load, problems, rows, write

from prefixray.data import Example, Sourced
from prefixray.data.catalog import TaskName
from prefixray.data.entries import ColumnsConfig
from prefixray.errors import UserError

# From folders


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("columns", [None, ("source", "target")])
def test_a_set_loads_from_jsonl_with_its_own_or_with_generic_columns(
    name: TaskName, columns: tuple[str, str] | None, tmp_path: Path
) -> None:
    task = load(name, folder_of(tmp_path, *(columns or COLUMNS[name])))
    assert as_parts(task) == AS_TASK
    assert (task.name, task.metrics, task.num_test_total) == (name, ROUGE, 2)


@pytest.mark.parametrize("form", ["jsonl.gz", "csv", "csv.gz", "source"])
@pytest.mark.parametrize("dev", ["dev", "validation", "val", "valid"])
def test_all_forms_of_files_give_the_same_task(form: str, dev: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "made")
    for split in PAIRS:
        name = dev if split == "dev" else split
        if form == "source":
            for column, suffix in enumerate(("source", "target")):
                text = "".join(f"{pair[column]} \n" for pair in PAIRS[split])
                (tmp_path / f"{name}.{suffix}").write_text(text, encoding="utf-8")
            continue
        content = (tmp_path / "made" / f"{split}.jsonl").read_bytes()
        if "csv" in form:
            with (tmp_path / "made.csv").open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([("summary", "document"), *(pair[::-1] for pair in PAIRS[split])])
            content = (tmp_path / "made.csv").read_bytes()
        (tmp_path / f"{name}.{form}").write_bytes(gzip.compress(content) if form.endswith(".gz") else content)
    (tmp_path / "made.csv").unlink(missing_ok=True)
    assert as_parts(load("xsum", str(tmp_path))) == AS_TASK


def test_dialogsums_numbered_summaries_are_references_and_its_turns_stay_lines(tmp_path: Path) -> None:
    talk = "#Person1#: Is the bus late?\n#Person2#: It is."
    one = [{"fname": "a", "dialogue": talk, "summary": "The bus is late.", "topic": "bus"}]
    three = [{"dialogue": talk} | {f"summary{i}": f"Late bus {i}." for i in (1, 2, 3)} | {"topic1": "bus"}]
    task = load("dialogsum", write(tmp_path, train_jsonl=one, dev_jsonl=one, test_jsonl=three))
    assert task.train == task.dev == (Example(talk, "The bus is late."),)
    assert task.test_sources == (Sourced(talk, ("Late bus 1.", "Late bus 2.", "Late bus 3.")),)


def test_scitldrs_sentences_are_joined_and_its_targets_are_references(tmp_path: Path) -> None:
    row = {"source": ["We do x.", "It works. "], "source_labels": [0, 1], "target": ["X works.", "We show x."]}
    task = load("scitldr", write(tmp_path, train_jsonl=[row], dev_jsonl=[row], test_jsonl=[row]))
    assert task.train == (Example("We do x. It works.", "X works."), Example("We do x. It works.", "We show x."))
    assert task.dev_sources == task.test_sources == (Sourced("We do x. It works.", ("X works.", "We show x.")),)


def test_line_breaks_of_articles_and_highlights_become_spaces(tmp_path: Path) -> None:
    row = [{"article": "One.\nTwo.\n\n Three.", "highlights": "First .\nSecond ."}]
    task = load("cnn_dm", write(tmp_path, train_jsonl=row, dev_jsonl=row, test_jsonl=row))
    assert task.train == (Example("One. Two. Three.", "First . Second ."),)


def test_rows_without_a_document_or_a_summary_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder_of(tmp_path)
    empty: Rows = [{"document": " ", "summary": "a"}, {"document": "a", "summary": None}]
    write(tmp_path, train_jsonl=[*empty, *rows("train")])
    write(tmp_path, dev_jsonl=[{"document": None, "summary": "a"}, *rows("dev")])
    assert as_parts(load("xsum", path)) == AS_TASK
    assert caplog.messages == [
        f'{tmp_path}/train.jsonl: 2 of 4 rows are left out: "document" is empty (1), "summary" is empty (1)',
        f'{tmp_path}/dev.jsonl: 1 of 2 rows are left out: "document" is empty (1)',
    ]
    write(tmp_path, dev_jsonl=empty)
    assert problems("xsum", tmp_path) == [
        'dev.jsonl: all 2 rows are left out: "document" is empty (1), "summary" is empty (1)'
    ]


def test_a_folder_without_a_split_and_one_with_two_files_for_it_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    write(tmp_path, val_source="a\n", val_target="b\n")
    assert problems("xsum", tmp_path) == [
        "task.path: FOLDER: has several files for dev: dev.jsonl, val.source; keep one",
        "task.path: FOLDER: has neither test.jsonl, test.csv (or either with .gz), test.parquet nor test.source",
    ]


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert problems("xsum", tmp_path / "no" / "where") == ["task.path: FOLDER: no such folder"]
    write(tmp_path, a_jsonl="")
    assert problems("xsum", tmp_path / "a.jsonl") == [
        "task.path: FOLDER: is a file; it must be a folder, or a hub data set (task.train names a file)"
    ]


def test_problems_of_all_files_come_at_once_with_their_lines(tmp_path: Path) -> None:
    write(tmp_path, train_jsonl=[{"document": 7, "summary": ["a", 8]}, {"text": "a", "summary": "b"}])
    write(tmp_path, dev_csv="document,text\na,b\n")
    write(tmp_path, test_source="a\nb\nc\n", test_target="a\nb\n")
    assert problems("xsum", tmp_path) == [
        'train.jsonl:1: "document" is a number; it must be text',
        'train.jsonl:1: "summary" is a number; it must be text',
        'train.jsonl:2: no "document" or "source" column; columns are text, summary',
        'dev.csv:1: no "summary" or "target" column; columns are document, text',
        "test.source:3: test.target has fewer lines than this file",
    ]


def test_line_files_without_their_other_half_are_refused(tmp_path: Path) -> None:
    write(tmp_path, **{f"{split}_source": "a\n" for split in ("train", "val", "test")})
    write(tmp_path, train_target="a\nb\n", val_target="a\n")
    assert problems("cnn_dm", tmp_path) == [
        "train.source:2: train.target has more lines than this file",
        "task.path: test.target: cannot be read: No such file or directory",
    ]


# Own data


@pytest.mark.parametrize("name", ["summarization", "custom"])
def test_own_data_loads_from_three_files_or_a_folder_with_columns(name: TaskName, tmp_path: Path) -> None:
    path = folder_of(tmp_path, "text", "gist")
    columns = ColumnsConfig(source="text", target="gist")
    files = {split: f"{path}/{split}.jsonl" for split in PAIRS}
    by_path, by_files = load(name, path, columns=columns), load(name, columns=columns, **files)
    assert by_path == by_files and as_parts(by_path) == AS_TASK
    assert by_path.metrics == (ROUGE if name == "summarization" else ("bleu", "nist", "rouge_l_coco", "cider"))


def test_own_data_is_refused_where_a_published_set_is_not(tmp_path: Path) -> None:
    folder_of(tmp_path, "source", "target")
    write(tmp_path, train_jsonl=[{"source": ["a", "b"], "target": ""}])
    write(tmp_path, dev_jsonl=[{"text": "a", "target1": "b"}])
    wrong = [
        'train.jsonl:1: "source" is a list; it must be text',
        'train.jsonl:1: "target" is empty',
        'dev.jsonl:1: no "source" column; columns are text, target1 (set task.columns.source)',
        'dev.jsonl:1: no "target" column; columns are text, target1 (set task.columns.target)',
    ]
    assert problems("summarization", tmp_path) == wrong
    files = {split: f"{tmp_path}/{split}.jsonl" for split in ("train", "dev")}
    with pytest.raises(UserError) as caught:
        load("summarization", **files)
    needed = "task.test: summarization needs a JSONL, CSV or Parquet file here"
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [*wrong, needed]


# The hub


def test_sets_of_the_hub_load_from_their_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_copy(name: str, config: str | None) -> object:
        """The hub's answer, made here; DialogSum's test repeats a dialogue for each of its summaries."""
        asked.append((name, config))
        source, target = COLUMNS[next(each for each in COLUMNS if each.split("_")[0] in name)]
        splits = {split: [*rows(split, source, target)] for split in PAIRS}
        splits["test"] += [
            {"id": "9", source: PAIRS["test"][0][0], target: "Closed."},
            {"id": "", source: "", target: ""},
        ]
        named = {"validation" if split == "dev" else split: given for split, given in splits.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(given) for split, given in named.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_copy)
    monkeypatch.chdir(tmp_path)
    for name in COLUMNS:
        task = load(name)
        assert (task.train, task.dev) == (AS_TASK["train"], AS_TASK["dev"])
        assert task.test_sources[0].references == ("Shop closes.", "Closed.")
        assert task.num_test_total == 2
    own = load("summarization", "somebody/xsum", columns=ColumnsConfig(source="document", target="summary"))
    assert own.train == AS_TASK["train"] and own.num_test_total == 2
    assert asked == [
        ("EdinburghNLP/xsum", None),
        ("abisee/cnn_dailymail", "3.0.0"),
        ("knkarthick/dialogsum", None),
        ("allenai/scitldr", "Abstract"),
        ("somebody/xsum", None),
    ]
    assert problems("summarization", "somebody/xsum")[:2] == [
        f'task.path: FOLDER: train: no "{column}" column; columns are id, document, summary (set task.columns.{column})'
        for column in ("source", "target")
    ]


def test_an_unreachable_hub_is_reported_within_seconds_with_the_way_to_local_copies(tmp_path: Path) -> None:
    code = (
        "import time; from prefixray.data.task_config import TaskConfig; from prefixray.errors import UserError\n"
        "from prefixray.data import load_task\n"
        "import datasets; started = time.monotonic()\n"
        "for task in (dict(name='xsum'), dict(name='scitldr'), dict(name='summarization', path='nobody/nothing')):\n"
        "    try: load_task(TaskConfig.model_validate(task))\n"
        "    except UserError as error: print(error)\n"
        "print(time.monotonic() - started < 10)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == [
        "task.path: EdinburghNLP/xsum: no such folder, nor can a hub data set be loaded: Couldn't reach "
        "'EdinburghNLP/xsum' on the Hub (OfflineModeIsEnabled); set task.path to a folder with train.jsonl, dev.jsonl "
        "and test.jsonl, whose columns are document and summary",
        "task.path: allenai/scitldr: no such folder, nor can a hub data set be loaded: Couldn't reach "
        "'allenai/scitldr' on the Hub (OfflineModeIsEnabled); set task.path to a folder with train.jsonl, dev.jsonl "
        "and test.jsonl, whose columns are source and target",
        "task.path: nobody/nothing: no such folder, nor can a hub data set be loaded: Couldn't reach "
        "'nobody/nothing' on the Hub (OfflineModeIsEnabled); set task.path to a folder with train.jsonl, dev.jsonl "
        "and test.jsonl, whose columns are source and target",
        "True",
    ]
