"""XSum divided by topics: from a column, from URLs, and what is said where there are none."""

import json
from pathlib import Path

import pytest
from support.summaries import ROUGE, load, problems, write

from prefixray.data import Task
from prefixray.data.catalog import TaskName
from prefixray.data.summarization import topic_of_url

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


def test_a_folder_that_datasets_has_saved_is_divided_by_urls(tmp_path: Path) -> None:
    import datasets

    folder = Path(articles(tmp_path / "xsum", column=None))
    splits = {
        split: datasets.Dataset.from_list([json.loads(line) for line in (folder / f"{split}.jsonl").open()])
        for split in ("train", "validation", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    (tmp_path / "urls.txt").write_text("".join(f"{url}\n" for _, url in ARTICLES.values()), encoding="utf-8")
    task = load("xsum_sport", str(tmp_path / "saved"), urls=str(tmp_path / "urls.txt"))
    assert numbers(task) == DIVIDED["xsum_sport"]


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
