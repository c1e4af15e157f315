"""Summarisation: published sets from folders and from the hub, their references, topics, and what is left out.

DialogSum's texts may not be used commercially, so all rows here are made up in the sets' forms.
"""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from prefixray.data import Example, Sourced, Task, load_task
from prefixray.data.catalog import TaskName
from prefixray.data.entries import ColumnsConfig
from prefixray.data.summarization import topic_of_url
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
COLUMNS: dict[TaskName, tuple[str, str]] = {
    "xsum": ("document", "summary"),
    "cnn_dm": ("article", "highlights"),
    "dialogsum": ("dialogue", "summary"),
    "scitldr": ("source", "target"),
}
PAIRS = {
    "train": [("The town has a new bridge.", "Bridge opens."), ("Rain fell all week.", "It rained.")],
    "dev": [("A cat was found in a tree.", "Cat found.")],
    "test": [("The shop \u201cMill\u201d closed.", "Shop closes."), ("Two trains met.", "Trains meet.")],
}
AS_TASK = {
    "train": tuple(Example(*pair) for pair in PAIRS["train"]),
    "dev": tuple(Example(*pair) for pair in PAIRS["dev"]),
    "test": tuple(Sourced(source, (target,)) for source, target in PAIRS["test"]),
}
Rows = Sequence[dict[str, object]]


def write(folder: Path, **files: str | Rows) -> str:
    """Files by their names, `train_jsonl` for train.jsonl; rows as JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return str(folder)


def rows(split: str, source: str = "document", target: str = "summary") -> Rows:
    return [{"id": f"{i}", source: text, target: summary} for i, (text, summary) in enumerate(PAIRS[split])]


def folder_of(path: Path, source: str = "document", target: str = "summary") -> str:
    return write(path, **{f"{split}_jsonl": rows(split, source, target) for split in PAIRS})


def load(name: TaskName, path: str | None = None, **others: object) -> Task:
    return load_task(TaskConfig.model_validate({"name": name, "path": path, **others}))


def problems(name: TaskName, path: Path | str | None = None, **others: object) -> list[str]:
    """What is said; the folder's path is left out."""
    with pytest.raises(UserError) as caught:
        load(name, None if path is None else str(path), **others)
    return [problem.replace(f"{path}/", "").replace(f"{path}", "FOLDER") for problem in caught.value.problems]


def as_parts(task: Task) -> dict[str, object]:
    return {"train": task.train, "dev": task.dev, "test": task.test_sources}


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
        f"{tmp_path}/train.jsonl: 2 of 4 rows have an empty source or target: left out",
        f"{tmp_path}/dev.jsonl: 1 of 2 rows have an empty source or target: left out",
    ]
    write(tmp_path, dev_jsonl=empty)
    assert problems("xsum", tmp_path) == ["dev.jsonl: has no rows but 2 empty ones"]


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


# Topics

NEWS = "http://web.archive.org/web/20160101000000/http://www.bbc.co.uk/news/"
TOPICS = {
    "http://web.archive.org/web/20150605024321/http://www.bbc.co.uk/news/uk-wales-south-east-wales-33002541": "uk",
    "http://web.archive.org/web/20160101000000/http://www.bbc.com:80/sport/football/37543139": "sport",
    "http://www.bbc.co.uk/sport/0/rugby-league/36469756": "sport",
    "http://www.bbc.com/news/world-us-canada-37467287": "world",
    "https://www.bbc.co.uk/news/science-environment-1/": "science",
    "http://www.bbc.co.uk/news/10725415": "news",
    "http://www.bbc.co.uk/newsbeat/article/32345678/a-song": None,
    "http://www.example.org/news/uk-1": None,
}
ARTICLES = {  # an article's id, split, and URL
    "1": ("train", f"{NEWS}uk-england-1"),
    "2": ("train", f"{NEWS}world-africa-2"),
    "3": ("train", "http://www.bbc.com/sport/football/3"),
    "4": ("train", f"{NEWS}technology-4"),
    "5": ("dev", f"{NEWS}business-5"),
    "6": ("dev", f"{NEWS}health-6"),
    "7": ("test", f"{NEWS}uk-7"),
    "8": ("test", "http://www.bbc.co.uk/sport/0/tennis/8"),
    "9": ("test", f"{NEWS}education-9"),
    "10": ("test", f"{NEWS}10"),
    "11": ("test", "http://www.bbc.co.uk/newsround/11"),
}
DIVIDED: dict[TaskName, tuple[str, str, str]] = {
    "xsum_sport": ("1 2 4", "5 6", "3 8"),
    "xsum_news": ("1 2", "5", "4 6 9"),
}


def articles(path: Path, *, column: str | None) -> str:
    """XSum as a folder, each document its id; with or without a column that tells the topic."""
    told = {number: topic_of_url(url) if column == "topic" else url for number, (_, url) in ARTICLES.items()}
    splits: dict[str, list[dict[str, object]]] = {"train_jsonl": [], "validation_jsonl": [], "test_jsonl": []}
    for number, (split, _) in ARTICLES.items():
        row = {"id": number, "document": number, "summary": "It is.", **({column: told[number]} if column else {})}
        splits["validation_jsonl" if split == "dev" else f"{split}_jsonl"].append(row)
    return write(path, **splits)


def numbers(task: Task) -> tuple[str, str, str]:
    parts = [example.source for example in task.train], [example.source for example in task.dev]
    train, dev = map(" ".join, parts)
    return train, dev, " ".join(sourced.source for sourced in task.test_sources)


@pytest.mark.parametrize("url", TOPICS)
def test_a_topic_is_the_first_word_of_an_address(url: str) -> None:
    assert topic_of_url(url) == TOPICS[url]


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("column", ["topic", "url", None])
def test_xsum_is_divided_by_topics_from_a_column_or_from_urls(
    name: TaskName, column: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = tmp_path / "XSum-WebArxiveUrls.txt"
    urls.write_text("".join(f"{url}\n" for _, url in ARTICLES.values()), encoding="utf-8")
    task = load(name, articles(tmp_path / "xsum", column=column), urls=None if column else str(urls))
    assert numbers(task) == DIVIDED[name]
    assert (task.name, task.metrics) == (name, ROUGE)
    if name == "xsum_sport":
        assert [sourced.group for sourced in task.test_sources] == ["sport", "sport"]
        assert caplog.messages == [
            "xsum_sport: train 3 (uk 1, world 1, technology 1), dev 2 (business 1, health 1), test 2 (sport 2); "
            "left out: 4 of XSum's test on the topics of train, or on none of the topics"
        ]


def test_line_files_are_taken_as_divided_already(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path, **{f"{s}_{side}": f"{s}\n" for s in ("train", "val", "test") for side in ("source", "target")}
    )
    assert numbers(load("xsum_news", path)) == ("train", "val", "test")
    assert caplog.messages == [f"task.path: {path}: line files hold no topics; taken as divided for xsum_news already"]
    assert problems("xsum_news", tmp_path, urls="urls.txt") == [
        "task.urls: urls.txt: is of no use to .source and .target files, which hold no ids; remove it, and the folder "
        "is taken as divided already"
    ]


def test_articles_without_topics_are_refused_with_the_three_ways(tmp_path: Path) -> None:
    ways = (
        "give its rows a topic or url column, or set task.urls to the file of the articles' URLs "
        "(XSum-WebArxiveUrls.txt, by XSum's authors), or set task.path to a folder of .source and .target files "
        "that is divided already"
    )
    articles(tmp_path, column=None)
    for path, where in ((tmp_path, "FOLDER"), (None, "EdinburghNLP/xsum")):
        said = f"task: xsum_sport: needs the articles' topics, which {where} does not carry: {ways}"
        assert problems("xsum_sport", path) == [said]


def test_urls_that_fit_no_article_are_refused(tmp_path: Path) -> None:
    articles(tmp_path / "xsum", column=None)
    urls = tmp_path / "urls.txt"
    urls.write_text(f"{NEWS}uk-england-99\n", encoding="utf-8")
    (said,) = problems("xsum_news", tmp_path / "xsum", urls=str(urls))
    assert said == (f"task.urls: {urls}: has no article of FOLDER; a row's id must be the number at the end of a URL")
    urls.write_text("uk\nsport\n", encoding="utf-8")
    (said,) = problems("xsum_news", tmp_path / "xsum", urls=str(urls))
    assert said == f"task.urls: {urls}: has no URL like http://www.bbc.co.uk/news/uk-england-12345678"


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
