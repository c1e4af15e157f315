"""A user's own files: what they become, and what is said about broken ones."""

import csv
import gzip
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from pydantic import ValidationError
from support.data_files import custom, jsonl, pairs, write

from prefixray.data import Example, Sourced, load_task
from prefixray.data.entries import ColumnsConfig
from prefixray.data.own.look import look_at
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError


def problems_with(folder: Path, name: str, content: bytes, columns: ColumnsConfig | None = None) -> list[str]:
    """What is said about this content as a training file; the file's path is shortened to its name."""
    good = write(folder / "good.jsonl", pairs(("a", "b")))
    (folder / name).write_bytes(content)
    if columns is not None:
        good = write(folder / "good.jsonl", jsonl([{columns.source: "a", columns.target: "b"}]))
    config = TaskConfig(
        name="custom", train=str(folder / name), dev=good, test=good, columns=columns or ColumnsConfig()
    )
    with pytest.raises(UserError) as caught:
        load_task(config)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_repeated_sources_are_one_source_with_all_references(tmp_path: Path) -> None:
    rows = [{"source": "a ", "target": "1"}, {"source": "b", "target": ["2", " 3\n"]}, {"source": "a", "target": "4"}]
    task = custom(tmp_path, jsonl(rows))
    assert task.train == task.dev == (Example("a", "1"), Example("b", "2"), Example("b", "3"), Example("a", "4"))
    assert task.test_sources == task.dev_sources == (Sourced("a", ("1", "4")), Sourced("b", ("2", "3")))
    assert (task.name, task.num_test_total, task.metrics) == ("custom", 2, ("bleu", "nist", "rouge_l_coco", "cider"))


def test_csv_and_jsonl_plain_and_gzipped_are_the_same(tmp_path: Path) -> None:
    rows = [("a, b", 'say "hi"'), ("two\nlines", "café\u2028x")]
    plain_jsonl = jsonl([{"in": source, "out": target, "id": 7} for source, target in rows])
    with (tmp_path / "data.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([("id", "out", "in"), *((7, target, source) for source, target in rows)])
    write(tmp_path / "data.jsonl", plain_jsonl + "\n\n")
    for name in ("data.csv", "data.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("data.csv", "data.jsonl", "data.csv.gz", "data.jsonl.gz"):
        file = str(tmp_path / name)
        columns = ColumnsConfig(source="in", target="out")
        task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file, columns=columns))
        assert task.train == (Example("a, b", 'say "hi"'), Example("two\nlines", "café x"))


def test_a_quoted_field_of_a_csv_may_follow_a_blank(tmp_path: Path) -> None:
    file = write(tmp_path / "data.csv", '"source", "target"\n"a, b", " c"\n d,  e f\n')
    task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file))
    assert task.train == (Example("a, b", "c"), Example("d", "e f"))


def test_a_line_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    assert len(custom(tmp_path, pairs(("x" * 10_000_000, "long"))).train[0].source) == 10_000_000


def test_a_row_without_the_target_column_is_refused(tmp_path: Path) -> None:
    content = pairs(("a", "b")) + jsonl([{"source": "a", "text": "b"}, {}])
    assert problems_with(tmp_path, "train.jsonl", content.encode()) == [
        'train.jsonl:2: no "target" column; columns are source, text (set task.columns.target)',
        'train.jsonl:3: no "source" column; columns are none (set task.columns.source)',
        'train.jsonl:3: no "target" column; columns are none (set task.columns.target)',
    ]


def test_a_column_is_not_both_source_and_target_and_chats_stand_alone(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="source and target must be two columns"):
        ColumnsConfig(source="target")
    with pytest.raises(ValidationError, match="messages stands in place of source and target: remove either"):
        ColumnsConfig(messages="chat", target="answer")
    file = write(tmp_path / "data.csv", "Answer,Question\nb,a\n")
    assert look_at(file).columns == {"source": "Question", "target": "Answer"}
    with pytest.raises(UserError, match="--target Answer: is the source's column, too; name another one"):
        look_at(file, "Answer", "Answer")


def test_what_many_rows_have_in_common_is_said_once(tmp_path: Path) -> None:
    assert problems_with(tmp_path, "train.jsonl", jsonl([{"source": "a", "text": "b"}] * 120).encode()) == [
        'train.jsonl: all 120 rows: no "target" column; columns are source, text (set task.columns.target)'
    ]
    rows = [{"source": "a", "target": "b"}, *[{"source": " ", "target": "b"}] * 5, {"source": 1, "target": "b"}]
    assert problems_with(tmp_path, "train.jsonl", jsonl(rows).encode()) == [
        'train.jsonl:2: "source" is empty (the same in 4 more rows: 3, 4 ..)',
        'train.jsonl:7: "source" is a number; it must be text',
    ]


def test_numbers_and_truth_values_are_labels_but_no_sources(tmp_path: Path) -> None:
    labels = [1, 0, 2.0, 0.5, True, ["yes", 3]]
    task = custom(tmp_path, jsonl([{"source": f"s{n}", "target": label} for n, label in enumerate(labels)]))
    assert [example.target for example in task.train] == ["1", "0", "2", "0.5", "true", "yes", "3"]


def test_a_number_of_32_bits_is_a_label_without_the_digits_of_64(tmp_path: Path) -> None:
    labels = [3.8, 0.1, 1e-5, 1234.56, 2.0]
    texts = pyarrow.array(list("abcde"))
    for kind in (pyarrow.float32(), pyarrow.float64()):
        columns = {"source": texts, "target": pyarrow.array(labels, kind)}
        parquet.write_table(pyarrow.table(columns), file := str(tmp_path / "labels.parquet"))
        task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file))
        assert [example.target for example in task.train] == ["3.8", "0.1", "1e-05", "1234.56", "2"]
    exact = [0.1 + 0.2, 1 / 3, 1023 / 1024]
    task = custom(tmp_path, jsonl([{"source": f"s{n}", "target": label} for n, label in enumerate(exact)]))
    assert [float(example.target) for example in task.train] == exact


def test_a_folder_with_files_of_its_own_is_read_whatever_lies_below_it(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.jsonl", pairs((split, "b")))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other.parquet").write_bytes(b"PAR1")
    assert load_task(TaskConfig(name="custom", path=str(tmp_path))).train == (Example("train", "b"),)
    assert look_at(str(tmp_path)).columns == {"source": "source", "target": "target"}


def test_a_file_of_train_beside_another_one_is_looked_at_alone(tmp_path: Path) -> None:
    files = {name: write(tmp_path / name, "source,target\na,b\n") for name in ("train.csv", "train.csv.gz", "dev.csv")}
    assert look_at(files["train.csv"]).places == {"train": files["train.csv"]}
    (tmp_path / "train.csv.gz").unlink()
    assert look_at(files["train.csv"]).places == {"train": files["train.csv"], "dev": files["dev.csv"]}


def test_a_file_of_another_form_is_recognised(tmp_path: Path) -> None:
    array = "looks like a JSON array; a JSONL file has an object on each line (jq -c '.[]' makes one)"
    for content in (b'[{"source": "a", "target": "b"}]', b'\n[\n{"source": "a"}\n]'):
        (problem,) = problems_with(tmp_path, "train.jsonl", content)
        assert problem.endswith(f": {array}")
    (problem,) = problems_with(tmp_path, "train.jsonl", b'{\n"source": "a",\n"target": "b"}')
    assert problem.startswith("train.jsonl:1: looks like one JSON object over several lines")
    for sign in (";", "\t"):
        assert problems_with(tmp_path, "train.csv", f"source{sign}target\na{sign}b\n".encode()) == [
            f"train.csv:1: fields are separated by {sign!r}; they must be by ','"
        ]


def test_a_csv_header_without_a_column_or_with_one_twice_is_reported_once(tmp_path: Path) -> None:
    columns = ColumnsConfig(source="input", target="text")
    assert problems_with(tmp_path, "train.csv", b"source,text,text\na,b,c\nd,e,f\n", columns) == [
        'train.csv:1: no "input" column; columns are source, text, text (set task.columns.source)',
        'train.csv:1: 2 columns are named "text"',
    ]


def test_wrong_values_are_reported_with_their_kind(tmp_path: Path) -> None:
    rows = [
        {"source": 17, "target": None},
        {"source": ["a"], "target": ["b", 1.5, " "]},
        {"source": "a", "target": [None, " "]},
        {"source": " ", "target": []},
        {"source": True, "target": {"text": "b"}},
        {"source": "\ud83d", "target": "b"},
        ["a", "b"],
    ]
    assert problems_with(tmp_path, "train.jsonl", jsonl(rows).encode()) == [
        'train.jsonl:1: "source" is a number; it must be text',
        'train.jsonl:1: "target" is null; it must be text',
        'train.jsonl:2: "source" is a list; it must be text',
        'train.jsonl:3: "target" is null; it must be text',
        'train.jsonl:3: "target" is empty',
        'train.jsonl:4: "source" is empty',
        'train.jsonl:4: "target" is an empty list; it must have a reference',
        'train.jsonl:5: "source" is true or false; it must be text',
        'train.jsonl:5: "target" is an object; it must be text',
        'train.jsonl:6: "source" has half a surrogate pair, which is no text',
        "train.jsonl:7: is a list; it must be an object",
    ]


def test_an_empty_reference_in_a_list_is_left_out_beside_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = custom(tmp_path, jsonl([{"source": "a", "target": ["b", "", None]}, {"source": "c", "target": "d"}]))
    assert task.test_sources == (Sourced("a", ("b",)), Sourced("c", ("d",)))
    said = "2 of 4 references are empty: left out"
    assert caplog.messages[:3] == [f"task: custom: {split}: {said}" for split in ("train", "dev", "test")]


def test_lines_of_a_csv_are_right_after_fields_of_several_lines(tmp_path: Path) -> None:
    content = b'source,target\r\n"a\r\nb",c\r\n\r\n"d\r\ne",\r\nf,g,h\r\ni\r\n'
    assert problems_with(tmp_path, "train.csv", content) == [
        'train.csv:5: "target" is empty',
        "train.csv:7: has 3 values for 2 columns",
        "train.csv:8: has 1 values for 2 columns",
    ]


def test_an_open_quote_in_a_csv_is_refused(tmp_path: Path) -> None:
    assert problems_with(tmp_path, "train.csv", b'source,target\na,b\n"c,d\ne,f\n') == [
        "train.csv:3: is not CSV: unexpected end of data"
    ]


def test_a_field_of_ten_megabytes_in_a_csv_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "data.csv", f"source,target\n{'x' * 10_000_000},long\n")
    task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file))
    assert len(task.train[0].source) == 10_000_000


def test_invalid_json_is_reported_with_its_column(tmp_path: Path) -> None:
    content = pairs(("a", "b")) + '\n{"source": "a" "target": "b"}\n' + "[" * 100_000 + "\n" + "9" * 5000 + "\n"
    problems = problems_with(tmp_path, "train.jsonl", content.encode())
    assert problems[0] == "train.jsonl:3: is not JSON: Expecting ',' delimiter at column 16"
    assert [problem[:26] for problem in problems[1:]] == [f"train.jsonl:{line}: is not JSON" for line in (4, 5)]


def test_a_file_that_is_not_utf8_is_refused_at_its_line(tmp_path: Path) -> None:
    content = pairs(("a", "b")).encode() + '{"source": "café", "target": "b"}\n'.encode("latin-1")
    assert problems_with(tmp_path, "train.jsonl", content) == [
        "train.jsonl:2: is not UTF-8 (byte 0xe9); save it as UTF-8"
    ]
    assert problems_with(tmp_path, "train.csv", "source,target\na,b\n".encode("utf-16")) == [
        "train.csv:1: is not UTF-8 (byte 0xff); save it as UTF-8"
    ]


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert problems_with(tmp_path, name, b"\n \n" if name == "train.jsonl" else b"\n") == [f"{name}: has no rows"]
    assert problems_with(tmp_path, name, b"") == [f"{name}: has no rows"]
    assert problems_with(tmp_path, "train.csv", b"source,target\n") == ["train.csv: has no rows"]


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(pairs(("a", "b")).encode())
    assert problems_with(tmp_path, "train.jsonl.gz", whole[:-9]) == [
        "task.train: train.jsonl.gz: is not a whole gzip file: "
        "Compressed file ended before the end-of-stream marker was reached"
    ]
    assert problems_with(tmp_path, "train.csv.gz", b"source,target\na,b\n") == [
        "task.train: train.csv.gz: is not a whole gzip file: Not a gzipped file (b'so')"
    ]


def test_all_three_files_are_reported_at_once(tmp_path: Path) -> None:
    text = write(tmp_path / "dev.txt", "a b")
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="custom", dev=text, test=f"{tmp_path}/test.csv"))
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "task.train: custom needs a JSONL, CSV or Parquet file here\n"
        "task.dev: dev.txt: must be a .jsonl, .csv, .jsonl.gz, .csv.gz or .parquet file\n"
        "task.test: test.csv: cannot be read: No such file or directory"
    )


def test_of_many_problems_the_first_twenty_are_shown(tmp_path: Path) -> None:
    rows = [",".join("a" * count) for count in range(3, 140)]
    problems = problems_with(tmp_path, "train.csv", "\n".join(["source,target", *rows]).encode())
    shown = [f"train.csv:{line}: has {line + 1} values for 2 columns" for line in range(2, 22)]
    assert problems == [*shown, "and 117 more"]


def test_own_data_may_name_the_group_of_a_source(tmp_path: Path) -> None:
    topics = ("old", None, " ", float("nan"))
    rows = [{"source": f"s{n}", "target": "b", "topic": topic} for n, topic in enumerate(topics)]
    file = write(tmp_path / "data.jsonl", jsonl([*rows, {"source": "e", "target": "f"}]))
    files = {"name": "custom", "train": file, "dev": file, "test": file}
    grouped = load_task(TaskConfig.model_validate({**files, "columns": {"group": "topic"}}))
    assert [sourced.group for sourced in grouped.test_sources] == ["old", None, None, None, None]
    assert {sourced.group for sourced in load_task(TaskConfig.model_validate(files)).test_sources} == {None}
    with pytest.raises(UserError, match=r'group: no row has a "topik" column; columns are source, target, topic$'):
        load_task(TaskConfig.model_validate({**files, "columns": {"group": "topik"}}))
