"""Dev and test out of train: no source is in two parts, and a source keeps its part."""

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from support.data_files import jsonl, pairs, write
from support.sweep_files import VALID, complaint, load

from prefixray.data import Task, load_task
from prefixray.data.entries import ColumnsConfig, Entry, SplitConfig, Splits
from prefixray.data.own.look import look_at
from prefixray.data.own.split import completed
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError


def entries(count: int, repeats: int = 1) -> list[Entry]:
    return [Entry(f"s{n}", (f"t{n} {k}",), (f"t{n} {k}",)) for k in range(repeats) for n in range(count)]


def sources(part: Sequence[Entry]) -> set[str]:
    return {entry.source for entry in part}


def test_no_source_is_in_two_parts_and_shares_are_kept() -> None:
    splits = completed({"train": entries(4000, repeats=2)}, SplitConfig(dev=0.2, test=0.1))
    parts = [splits.train, splits.dev, splits.test]
    assert sum(map(len, parts)) == 8000 and sum(len(sources(part)) for part in parts) == 4000
    assert [round(len(part) / 8000, 1) for part in parts] == [0.7, 0.2, 0.1]


def test_a_source_keeps_its_part_whatever_is_added_and_in_any_order() -> None:
    few, many = (completed({"train": entries(n)}, SplitConfig()) for n in (300, 900))
    backwards = completed({"train": entries(300)[::-1]}, SplitConfig())
    for split in ("train", "dev", "test"):
        assert sources(getattr(few, split)) <= sources(getattr(many, split))
        assert sources(getattr(few, split)) == sources(getattr(backwards, split))
    assert sources(few.test) != sources(completed({"train": entries(300)}, SplitConfig(seed=2)).test)


def test_what_is_there_stays_and_the_rest_is_taken_out_of_train() -> None:
    given = [Entry("own", ("t",), ("t",))]
    splits = completed({"train": entries(300), "test": given}, SplitConfig())
    assert splits.test == given and splits.dev and len(splits.train) + len(splits.dev) == 300
    assert completed({"train": entries(3), "dev": given, "test": given}, SplitConfig()) == Splits(
        entries(3), given, given
    )


@pytest.mark.parametrize("count", range(3, 12))
def test_of_a_few_sources_each_part_has_one(count: int) -> None:
    splits = completed({"train": entries(count)}, SplitConfig(dev=0.01, test=0.01))
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (count - 2, 1, 1)


def test_too_few_sources_are_refused() -> None:
    with pytest.raises(UserError, match="the training rows have 2 different sources, too few to take test and dev"):
        completed({"train": entries(2, repeats=5)}, SplitConfig())


@pytest.mark.parametrize("form", ["parquet", "saved", "saved without splits", "shards"])
def test_parquet_and_folders_of_datasets_are_read_like_jsonl(form: str, tmp_path: Path) -> None:
    import datasets

    rows = [{"source": f"s{n}", "target": [f"t{n}", "other"]} for n in range(40)]
    file = write(tmp_path / "train.jsonl", jsonl(rows))
    expected = load_task(TaskConfig(name="custom", train=file, split=SplitConfig()))
    made, folder = datasets.Dataset.from_list(rows), tmp_path / "folder"
    match form:
        case "parquet":
            made.to_parquet(folder / "train.parquet")
        case "saved":
            datasets.DatasetDict({"train": made}).save_to_disk(folder)
        case "saved without splits":
            made.save_to_disk(folder)
        case _:
            made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    read = load_task(TaskConfig(name="custom", path=str(folder), split=SplitConfig()))
    assert read.digest == expected.digest
    with pytest.raises(UserError, match="dev"):
        load_task(TaskConfig(name="custom", path=str(folder)))


@pytest.mark.parametrize("form", ["saved", "shards"])
def test_a_class_of_a_data_set_is_its_name_and_a_row_without_a_class_is_left_out(form: str, tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "all": datasets.Sequence(label)})
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "all": [[0, 1], [1], []]}
    made, folder = datasets.Dataset.from_dict(columns, features=features), tmp_path / "folder"
    if form == "saved":
        datasets.DatasetDict(dict.fromkeys(("train", "dev", "test"), made)).save_to_disk(folder)
    else:
        for split in ("train", "validation", "test"):
            made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")

    def targets(column: str) -> list[str]:
        config = TaskConfig(name="custom", path=str(folder), columns=ColumnsConfig(source="text", target=column))
        return [example.target for example in load_task(config).train]

    assert targets("label") == ["positive", "negative"]
    assert targets("all") == ["negative", "positive", "positive"]
    look = look_at(str(folder))
    assert look.columns == {"source": "text", "target": "label"}


def test_a_test_split_without_labels_is_taken_out_of_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import datasets

    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    parts = {"train": [0, 1] * 15, "validation": [1] * 4, "test": [-1] * 10}
    datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"text": [f"{name} {n}" for n, _ in enumerate(labels)], "label": labels}, features=features
            )
            for name, labels in parts.items()
        }
    ).save_to_disk(tmp_path)
    assert look_at(str(tmp_path)).missing == ("test",)
    columns = ColumnsConfig(source="text", target="label")
    task = load_task(TaskConfig(name="custom", path=str(tmp_path), columns=columns, split=SplitConfig()))
    assert len(task.dev) == 4 and len(task.train) + len(task.test_sources) == 30
    said = f'task.path: {tmp_path}: test: 10 of 10 rows are left out: "label" is empty (10)'
    assert caplog.messages == [f"{said}; the split is taken out of train"]
    with pytest.raises(UserError, match=r'all 10 rows are left out: "label" is empty \(10\) .* task\.split takes dev'):
        load_task(TaskConfig(name="custom", path=str(tmp_path), columns=columns))
    saved = datasets.load_from_disk(tmp_path)
    saved["test"] = saved["test"].remove_columns("label")
    saved.save_to_disk(tmp_path / "bare")
    assert look_at(str(tmp_path / "bare")).missing == ("test",)
    bare = load_task(TaskConfig(name="custom", path=str(tmp_path / "bare"), columns=columns, split=SplitConfig()))
    assert bare.digest == task.digest and 'no "label" column' in caplog.messages[-1]


def test_a_saved_split_without_rows_is_refused(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"source": ["a", "b", "c"], "target": ["x", "y", "z"]})
    datasets.DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(tmp_path)
    with pytest.raises(UserError, match="a split has no rows, which `datasets` cannot load; leave it out"):
        load_task(TaskConfig(name="custom", path=str(tmp_path), split=SplitConfig()))


def test_parquet_that_is_none_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"source": "a", "text": "b"}]).to_parquet(tmp_path / "a.parquet")
    broken = write(tmp_path / "b.parquet", "no")
    config = TaskConfig(name="custom", train=str(tmp_path / "a.parquet"), dev=broken, split=SplitConfig())
    with pytest.raises(UserError) as caught:
        load_task(config)
    first, second = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert first == 'a.parquet:1: no "target" column; columns are source, text (set task.columns.target)'
    assert second.startswith("task.dev: b.parquet: is not Parquet that can be read: ")


def test_values_of_parquet_that_python_cannot_hold_matter_only_where_they_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def read(**columns: object) -> Task:
        table = pyarrow.table({"source": ["a", "b", "c"], "target": ["x", "y", "z"]} | columns)
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        return load_task(TaskConfig(name="custom", train=str(tmp_path / "a.parquet"), split=SplitConfig()))

    late = pyarrow.array([0, 2**50, 0], pyarrow.timestamp("ms"))
    parts = (b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0", b"a\xffb")
    latin = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, *map(pyarrow.py_buffer, parts)])
    assert len(read(when=late, where=latin).train) == 1
    unread = {"nothing that can be read (date value": late, "nothing that can be read ('utf-8'": latin}
    decimals = {"of type Decimal; it must be text": pyarrow.array([Decimal("1.5")] * 3)}
    for said, column in {**unread, **decimals, "NaN; it must be text": pyarrow.array([1.0, math.nan, 2.0])}.items():
        with pytest.raises(UserError) as caught:
            read(target=column)
        assert f'a.parquet:2: "target" is {said}' in str(caught.value)


def test_a_sweep_file_says_what_is_split_and_is_told_where_that_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", pairs(("a", "b")))
    text = VALID.replace("{name: e2e, num_dev: 64}", "{name: custom, train: d.jsonl, split: {dev: 0.2}}")
    assert load(text).task.split == SplitConfig(dev=0.2)
    both = text.replace("split:", "dev: d.jsonl, test: d.jsonl, split:")
    assert complaint(both) == "x.yaml:3: task.split: is not used beside task.dev and task.test: remove it"
    large = complaint(text.replace("{dev: 0.2}", "{dev: 0.5, test: 0.5}"))
    assert large.startswith("x.yaml:3: task.split.test: 0.5: must be below 1 together with dev")
    assert "task.split.tst: no such key (did you mean 'test'?)" in complaint(text.replace("dev: 0.2", "tst: 0.2"))
    assert "task.split: is not used by task e2e" in complaint(VALID.replace("num_dev: 64", "split: {}"))
