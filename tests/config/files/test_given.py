"""A sweep from Python: files, configurations and mappings, with rows of lists, DataFrames and data sets."""

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from prefixray.config.files.given import Given, given_sweep
from prefixray.config.files.shipped import shipped_sweeps
from prefixray.config.files.written import as_yaml
from prefixray.config.identity import dump, restore
from prefixray.config.load import load_sweep
from prefixray.data import Example, load_task
from prefixray.errors import UserError

PAIRS = [("a", "1"), ("b", "2"), ("c", "3")]
COLUMNS = {"source": ["a", "b", "c"], "target": ["1", "2", "3"]}
SWEEP: dict[str, Any] = {
    "name": "small",
    "base": "a-hub-id",
    "task": {"name": "custom"},
    "train": {"num_steps": 4},
    "arms": {"prefix": {"preseqlen": {"choice": [1, 5]}, "mid_dim": None, "init_token": None, "learning_rate": 1e-5}},
    "search": {"num_trials": 2},
    "final": {"metric": "test/bleu"},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(**more: object) -> dict[str, object]:
    return {"train": PAIRS, "dev": PAIRS[:2], "test": PAIRS[2:], **more}


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_configuration_written_as_a_file_is_read_as_the_same(name: str) -> None:
    Path("data").mkdir()
    for file in ("train.jsonl", "dev.jsonl", "test.jsonl", "XSum-WebArxiveUrls.txt"):
        (Path("data") / file).touch()
    Path("sweeps").symlink_to(shipped_sweeps()["quickstart"].parent)  # one of them has its document beside it
    config = load_sweep(shipped_sweeps()[name])
    for again in (config, restore(dump(config))):
        Path("written.yaml").write_text(as_yaml(again), encoding="utf-8")
        assert dump(load_sweep("written.yaml")) == dump(config)


class FrameOfPolars:
    """The part of polars' DataFrame that tells it from pandas'."""

    columns = tuple(COLUMNS)

    def to_dict(self, *, as_series: bool = True) -> dict[str, list[str]]:
        return COLUMNS

    def to_dicts(self) -> list[dict[str, str]]:
        return [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]


@pytest.mark.parametrize(
    "train",
    [
        PAIRS,
        [{"source": source, "target": target, "id": 7} for source, target in PAIRS],
        pandas.DataFrame(COLUMNS),
        FrameOfPolars(),
        datasets.Dataset.from_dict(COLUMNS),
        iter(PAIRS),
    ],
    ids=["pairs", "mappings", "DataFrame", "polars", "Dataset", "iterator"],
)
def test_rows_become_the_tasks_data(train: object) -> None:
    config = given_sweep(SWEEP, rows(train=train))
    task = load_task(config.task)
    assert task.train == tuple(Example(source, target) for source, target in PAIRS)
    assert (len(task.dev), len(task.test_sources)) == (2, 1)
    assert Path(str(config.task.train)).parent == Path("runs/small/data")


def test_a_class_of_datasets_is_its_name() -> None:
    kinds = datasets.Features({"source": datasets.Value("string"), "target": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_dict({"source": ["a", "b"], "target": [1, 0]}, features=kinds)
    assert [example.target for example in load_task(given_sweep(SWEEP, rows(train=train)).task).train] == ["yes", "no"]


def test_a_sweep_may_be_a_file_a_name_a_mapping_or_a_configuration() -> None:
    Path("sweeps").mkdir()
    given = given_sweep(SWEEP, rows())
    Path("sweeps/mine.yaml").write_text(as_yaml(given))
    forms: list[Given] = [Path("sweeps/mine.yaml"), "sweeps/mine.yaml", "mine", given, SWEEP]
    for form in forms:
        config = given_sweep(form, rows(train=PAIRS[:2]), ["search.num_trials=1", "name=other"])
        assert (config.name, config.search.num_trials, len(load_task(config.task).train)) == ("other", 1, 2)
    assert dump(given_sweep("mine", {})) == dump(given)
    assert given_sweep("mine", {"train": given.task.dev}).task.train == given.task.dev, "a path is a file's"


def test_missing_values_and_numpys_are_written_as_json_has_them() -> None:
    frame = pandas.DataFrame({"source": ["a", "b"], "target": ["1", "2"], "score": [1.5, None]})
    config = given_sweep(SWEEP, rows(train=frame))
    assert Path(str(config.task.train)).read_text().splitlines()[1] == '{"source": "b", "target": "2", "score": null}'


def test_missing_values_of_pandas_own_types_are_null() -> None:
    values = {
        "text": pandas.array(["a", None], dtype="string"),
        "count": pandas.array([1, None], dtype="Int64"),
        "rate": pandas.array([1.5, None], dtype="Float64"),
        "is_good": pandas.array([True, None], dtype="boolean"),
        "day": pandas.to_datetime(["2026-01-31", None]),
        "all": [["b", 2], [pandas.NA, pandas.NaT]],
    }
    frame = pandas.DataFrame({"source": ["a", "b"], "target": ["1", "2"], **values})
    config = given_sweep(SWEEP, rows(train=frame))
    first, second = map(json.loads, Path(str(config.task.train)).read_text().splitlines())
    assert [first[name] for name in values] == ["a", 1, 1.5, True, "2026-01-31 00:00:00", ["b", 2]]
    assert [second[name] for name in values] == [None, None, None, None, None, [None, None]]


def test_other_rows_have_another_name_and_the_same_rows_the_same() -> None:
    first, again = given_sweep(SWEEP, rows()), given_sweep(SWEEP, rows())
    assert first == again and given_sweep(SWEEP, rows(train=PAIRS[:2])).task.train != first.task.train


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ([], r"^train: has no rows$"),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict(COLUMNS)}),
            r"^train: is DatasetDict with train; .*",
        ),
        (7, r"^train: is int; it must be rows, a DataFrame or a data set$"),
        ([("a", "b"), "c"], r"^train\[1\]: is text; it must be a mapping of columns to values, or a pair"),
    ],
)
def test_what_are_no_rows_is_refused(train: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        given_sweep(SWEEP, rows(train=train))


def test_the_files_of_a_folder_stay_where_no_rows_are_given() -> None:
    Path("data").mkdir()
    for split, targets in {"train": "123", "validation": "12", "test": "3"}.items():
        lines = [json.dumps({"source": f"{split} {target}", "target": target}) for target in targets]
        Path("data", f"{split}.jsonl").write_text("\n".join(lines))
    sweep = {**SWEEP, "task": {"name": "custom", "path": "data"}}
    task = given_sweep(sweep, {"train": None, "dev": None, "test": PAIRS}).task
    assert (task.path, task.train, task.dev) == (None, "data/train.jsonl", "data/validation.jsonl")
    assert [sourced.source for sourced in load_task(task).test_sources] == ["a", "b", "c"]


def test_problems_of_a_mapping_and_of_a_task_with_its_own_data_are_told() -> None:
    wrong = copy.deepcopy(SWEEP)
    wrong["arms"]["prefix"]["presqlen"] = 5
    with pytest.raises(UserError, match=r"^the sweep:1: arms.prefix.presqlen: no such key .*'preseqlen'"):
        given_sweep(wrong, rows())
    with pytest.raises(UserError, match=r"^train: task e2e brings its own data; of rows are the tasks custom, summ"):
        given_sweep({**SWEEP, "task": {"name": "e2e"}}, {"train": PAIRS})
    with pytest.raises(UserError, match=r"^the sweep:1: name: .*must be"):
        given_sweep({**SWEEP, "name": "no name"}, rows())
