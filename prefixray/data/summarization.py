"""Summarisation: XSum, CNN/DailyMail, DialogSum and SciTLDR, and the extrapolation splits of XSum.

A set is read from its own place on the hub, from another hub data set, or from a folder with train, dev and test as
JSONL, CSV or the original's pairs of line files. Everywhere its columns may have their names on the hub, or be called
`source` and `target`. Rows without a document or a summary, of which XSum and CNN/DailyMail have a few, are left out.
Line breaks become spaces, as in the original's files, so that a prefix trained on one form serves the other; only the
turns of DialogSum's dialogues stay lines.

The extrapolation splits (Li & Liang 2021, section 6.4) need the articles' topics. EdinburghNLP/xsum has none: its rows
are id, document and summary. XSum's authors publish a list of the articles' URLs, which end in those ids (`task.urls`).
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefixray.data.entries import DataConfig, Entry, Form, Splits
from prefixray.data.hub import is_saved
from prefixray.data.read_entries import read_path
from prefixray.data.row_files import Row, find_splits, is_folder, is_line_file, read_lines
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded

logger = logging.getLogger(__name__)

_TRAINED_ON = frozenset({"uk", "world", "business"})  # the topics that xsum_news trains on
_SPORT = "sport"
_UNKNOWN_NEWS = "news"  # the topic of an address like /news/12345678


@dataclass(frozen=True)
class PublishedSummaries:
    """A published set: where it is on the hub, and what its rows look like."""

    hub: str
    form: Form
    hub_config: str | None = None

    def load(self, config: DataConfig) -> Splits:
        """The set from the hub, or from where `task.path` says. Raises `UserError` where it cannot be read."""
        return self.read(config.path, self.form)

    def read(self, path: str | None, form: Form) -> Splits:
        """The splits from the hub or from `path`, with rows in the given form."""
        where = path or self.hub
        return read_path(where, form, hub_config=self.hub_config if where == self.hub else None)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _form(source: str, target: str) -> Form:
    sources, targets = tuple(dict.fromkeys((source, "source"))), tuple(dict.fromkeys((target, "target")))
    return Form(sources, targets, published=True, leaves_out_empty=True, clean_source=_one_line, clean_target=_one_line)


XSUM = PublishedSummaries("EdinburghNLP/xsum", _form("document", "summary"))
CNN_DM = PublishedSummaries("abisee/cnn_dailymail", _form("article", "highlights"), hub_config="3.0.0")
DIALOGSUM = PublishedSummaries("knkarthick/dialogsum", replace(_form("dialogue", "summary"), clean_source=str.strip))
SCITLDR = PublishedSummaries("allenai/scitldr", _form("source", "target"), hub_config="Abstract")


def load_xsum_news(config: DataConfig) -> Splits:
    """XSum within news: train and dev on the UK, the world and business, test the other news of all three splits."""
    return _load_by_topic(config, _is_tested_in_news)


def load_xsum_sport(config: DataConfig) -> Splits:
    """XSum from news to sport: train and dev are XSum's news articles, test the sports articles of all three splits."""
    return _load_by_topic(config, _is_tested_in_sport)


def _load_by_topic(config: DataConfig, is_tested: Callable[[str], bool | None]) -> Splits:
    """XSum divided by topic.

    A row's topic is in its `topic` or `url`, else the file of `task.urls` has it under the row's `id`. Line files hold
    no topics: a folder of line files is taken as divided already. Raises `UserError` where no topic can be found.
    """
    if config.path is None and config.urls is None:
        raise _no_topics(config.name, XSUM.hub)
    if config.path is not None and _has_line_files(config.path):
        return _load_divided(config, config.path)
    topics = {} if config.urls is None else _read_urls(config.urls)
    splits = XSUM.read(config.path, replace(XSUM.form, group=lambda row: _topic_of_row(row, topics)))
    if all(entry.group is None for entry in (*splits.train, *splits.dev, *splits.test)):
        where = config.path or XSUM.hub
        if config.urls is None:
            raise _no_topics(config.name, where)
        raise UserError(
            f"task.urls: {config.urls}: has no article of {where}; a row's id must be the number at the end of a URL"
        )
    return _divided(config.name, splits, is_tested)


def topic_of_url(url: str) -> str | None:
    """`http://www.bbc.co.uk/news/uk-england-12345678` -> `uk`; `sport` for any sport; None outside news and sport."""
    match = re.search(r"\bbbc\.(?:co\.uk|com)(?::\d+)?/((?:news|sport)/.*)", url)
    return None if match is None else _topic(match[1])


def _has_line_files(path: str) -> bool:
    return is_folder(path) and not is_saved(path) and all(is_line_file(file) for file in find_splits(path).values())


def _load_divided(config: DataConfig, path: str) -> Splits:
    if config.urls is not None:
        problem = "is of no use to .source and .target files, which hold no ids"
        raise UserError(f"task.urls: {config.urls}: {problem}; remove it, and the folder is taken as divided already")
    logger.warning("task.path: %s: line files hold no topics; taken as divided for %s already", path, config.name)
    return XSUM.read(path, XSUM.form)


def _divided(name: str, splits: Splits, is_tested: Callable[[str], bool | None]) -> Splits:
    """Train and dev keep the topics that are trained on, test takes all splits' articles on those tested on."""

    def among(entries: Iterable[Entry], *, tested: bool) -> list[Entry]:
        return [entry for entry in entries if entry.group is not None and is_tested(entry.group) is tested]

    everything = (*splits.train, *splits.dev, *splits.test)
    train, dev = among(splits.train, tested=False), among(splits.dev, tested=False)
    test = among(everything, tested=True)
    sizes = ", ".join(f"{split} {_counts(part)}" for split, part in {"train": train, "dev": dev, "test": test}.items())
    num_others = len(everything) - len(train) - len(dev) - len(test)
    reason = "of XSum's test on the topics of train, or on none of the topics"
    logger.warning("%s: %s; left out: %d %s", name, sizes, num_others, reason)
    return Splits(train, dev, test)


def _is_tested_in_news(topic: str) -> bool | None:
    """Whether `xsum_news` tests on a topic; False: it trains on the topic, None: it does neither."""
    return None if topic in (_SPORT, _UNKNOWN_NEWS) else topic not in _TRAINED_ON


def _is_tested_in_sport(topic: str) -> bool | None:
    """The same for `xsum_sport`."""
    return topic == _SPORT


def _counts(entries: Sequence[Entry]) -> str:
    """`1250 (uk 800, world 300, business 150)`: the number of articles, and the most frequent topics."""
    topics = Counter(entry.group for entry in entries).most_common(4)
    return f"{len(entries)} ({', '.join(f'{topic} {count}' for topic, count in topics)})"


def _topic_of_row(row: Row, topics: Mapping[str, str]) -> str | None:
    topic, url = row.get("topic"), row.get("url")
    by_topic = _topic(topic) if isinstance(topic, str) else None
    by_url = topic_of_url(url) if isinstance(url, str) else None
    return by_topic or by_url or topics.get(str(row.get("id")))


def _topic(text: str) -> str | None:
    """The first word of a topic or of a URL's path, or the second after "news": `uk` for `News/UK-England`."""
    words: list[str] = re.findall(r"[a-z]+", text.lower())
    if words[:1] in (["sport"], ["sports"]):
        return _SPORT
    if words[:1] == ["news"] and len(words) > 1:
        return words[1]
    return words[0] if words else None


def _read_urls(name: str) -> dict[str, str]:
    """The topic of each article, by the number at the end of its URL, which is the article's id."""
    topics = {}
    for line in read_lines("task.urls", expanded(name)):
        number, topic = re.search(r"(\d+)/?\s*$", line), topic_of_url(line)
        if number is not None and topic is not None:
            topics[number[1]] = topic
    if not topics:
        raise UserError(f"task.urls: {name}: has no URL like http://www.bbc.co.uk/news/uk-england-12345678")
    return topics


def _no_topics(name: str, where: str) -> UserError:
    return UserError(
        f"task: {name}: needs the articles' topics, which {where} does not carry: give its rows a topic or url column, "
        "or set task.urls to the file of the articles' URLs (XSum-WebArxiveUrls.txt, by XSum's authors), or set "
        "task.path to a folder of .source and .target files that is divided already"
    )
