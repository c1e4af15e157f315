"""A task, made of entries: references are grouped by source, and subsets are chosen by a hash.

A hash of the text, not a random draw, decides which examples belong to a subset. So a subset is the same for every arm,
seed and machine, a larger one contains the smaller, and the order of the file does not matter.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeVar

from prefixray.data.documents.read import Document
from prefixray.data.entries import Entry, Splits
from prefixray.data.task_config import TaskConfig
from prefixray.data.texts import one_line
from prefixray.errors import UserError
from prefixray.system.records import Count

if TYPE_CHECKING:  # imports numpy
    from prefixray.data.teacher import Teacher

logger = logging.getLogger(__name__)

T = TypeVar("T")
Key = TypeVar("Key", str, tuple[int, str])


_Source = tuple[str | None, str]  # the name of its document and the source


@dataclass(frozen=True)
class Example:
    """One pair to train on, or to compute a loss on."""

    source: str
    target: str
    teacher: "Teacher | None" = field(default=None, compare=False, repr=False)  # expects more than the target's tokens


@dataclass(frozen=True)
class Sourced:
    """One source with all its references: the unit that is decoded and scored."""

    source: str
    references: tuple[str, ...]
    group: str | None = None  # the part of the split: WebNLG's "seen" and "unseen" categories
    rows: tuple[int, ...] = field(default=(), compare=False, repr=False)  # references of each row of the file in turn
    teacher: "Teacher | None" = field(default=None, compare=False, repr=False)  # of the first reference
    document: str | None = field(default=None, repr=False)  # the name of the document that it is about

    @property
    def by_row(self) -> list[tuple[str, ...]]:
        """The references of each row of the file; of one row where the rows are not known."""
        ends = list(accumulate(self.rows)) or [len(self.references)]
        return [self.references[start:end] for start, end in pairwise([0, *ends]) if end > start]


@dataclass(frozen=True)
class Subset:
    """The examples that one run trains on, and those that its dev loss is computed on."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    document: Document | None = None  # that they are about, where the task has documents


@dataclass(frozen=True)
class Task:
    """A data set, cut to the subsets that the sweep file asks for."""

    name: str
    train: tuple[Example, ...]  # the first subset's
    dev: tuple[Example, ...]  # the first subset's
    dev_sources: tuple[Sourced, ...]  # those of `dev`, or of all documents' dev, each with all its references
    test_sources: tuple[Sourced, ...]
    num_test_total: int  # sources in the whole test split
    metrics: tuple[str, ...]
    others: tuple[Subset, ...] = ()  # the other subsets
    document: Document | None = None  # that the first subset is about, where the task has documents

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """All subsets: several in low data, one for each document, otherwise one."""
        return (Subset(self.train, self.dev, self.document), *self.others)

    @property
    def documents(self) -> tuple[Document, ...]:
        """The documents that the subsets are about, in their order; none where the task has none."""
        return tuple(subset.document for subset in self.subsets if subset.document is not None)

    @property
    def leaks(self) -> tuple[str, ...]:
        """A warning for each two splits that share sources, with their number; each document's are apart."""
        train = {(_name(subset.document), example.source) for subset in self.subsets for example in subset.train}
        dev = {(_name(subset.document), example.source) for subset in self.subsets for example in subset.dev}
        test = {(sourced.document, sourced.source) for sourced in self.test_sources}
        found = (
            _leak(test, train, "test sources are in train as well: scores on them are no test"),
            _leak(dev, train, "dev sources are in train as well: trials are chosen by what they were trained on"),
            _leak(test, dev, "test sources are in dev as well: trials were chosen by them"),
        )
        return tuple(leak for leak in found if leak is not None)

    @property
    def digest(self) -> str:
        """A hash of the data: of every text that trials are trained on, compared by or tested on, in order."""
        examples = [*self.train, *self.dev]
        examples += [each for other in self.others for each in (*other.train, *other.dev)]
        texts = [text for example in examples for text in (example.source, example.target)]
        texts += [text for sourced in self.test_sources for text in (sourced.source, *sourced.references)]
        texts += [document.text for document in self.documents]
        return _hash("\0".join(texts))[:16]


def make_task(
    config: TaskConfig, splits: Splits, metrics: tuple[str, ...], *, documents: Sequence[Document] = ()
) -> Task:
    """Group references by source and choose the subsets. Examples stay in the order of the files.

    `documents` are those that the entries are about, where the task has documents: each is a subset of its own, of
    which the counts hold.

    Raises `UserError` when a split is empty; with several documents test may have nothing about some of them.
    """
    _say_empty(config.name, splits)
    parts = [_part(config, splits, document) for document in documents or (None,)]
    subsets = [subset for part in parts for subset in part.subsets]
    test_sources = tuple(sourced for part in parts for sourced in part.test_sources)
    problems = [problem for part in parts for problem in part.problems]
    has_test = any(entry.references for entry in splits.test)
    problems += [] if has_test else [f"task: {config.name}: the test split has no examples"]
    if problems:
        raise UserError(*problems)
    return Task(
        name=config.name,
        train=subsets[0].train,
        dev=subsets[0].dev,
        dev_sources=tuple(sourced for part in parts for sourced in part.dev_sources),
        test_sources=test_sources,
        num_test_total=sum(part.num_test_total for part in parts),
        metrics=metrics,
        others=tuple(subsets[1:]),
        document=subsets[0].document,
    )


@dataclass(frozen=True)
class _Part:
    """What a task has about one document, or a whole task without documents."""

    subsets: list[Subset]
    dev_sources: list[Sourced]
    test_sources: list[Sourced]
    num_test_total: int
    problems: list[str]


def _part(config: TaskConfig, splits: Splits, document: Document | None) -> _Part:
    def about(entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if document is None or entry.document == document.name]

    train, dev, test = _examples(about(splits.train)), _examples(about(splits.dev)), _grouped(about(splits.test))
    of_document = "" if document is None else f" about {document.name}"
    problems = [
        f"task: {config.name}: the {split} split has no examples{of_document}"
        for split, examples in {"train": train, "dev": dev}.items()
        if not examples
    ]
    subsets = [replace(subset, document=document) for subset in _subsets(config, train, dev)]
    dev_texts = {example.source for example in subsets[0].dev}
    dev_sources = [sourced for sourced in _grouped(about(splits.dev)) if sourced.source in dev_texts]
    chosen = _smallest(test, (_hash(sourced.source) for sourced in test), config.num_test, "num_test")
    return _Part(subsets, dev_sources, chosen, len(test), problems)


def _name(document: Document | None) -> str | None:
    return None if document is None else document.name


def _subsets(config: TaskConfig, train: Sequence[Example], dev: Sequence[Example]) -> list[Subset]:
    """The subsets of low data, where a larger `size` contains a smaller one; else the one that the counts ask for."""
    low = config.low_data
    if low is not None:
        salts = [f"{low.seed}/{index}/" for index in range(low.num_subsets)]
        counts = (low.size, "low_data.size"), (low.num_dev, "low_data.dev_share")
        return [Subset(_train_part(train, *counts[0], salt), _dev_part(dev, *counts[1], salt)) for salt in salts]
    count = config.num_train if config.fraction is None else max(1, round(config.fraction * len(train)))
    return [Subset(_train_part(train, count, "num_train"), _dev_part(dev, config.num_dev, "num_dev"))]


def _leak(sources: Set[_Source], others: Set[_Source], what: str) -> str | None:
    num_shared = len(sources & others)
    return f"{num_shared} of {len(sources)} {what}" if num_shared else None


def _say_empty(task: str, splits: Splits) -> None:
    for split, entries in {"train": splits.train, "dev": splits.dev, "test": splits.test}.items():
        num_empty = sum(entry.num_empty for entry in entries)
        if num_empty:
            total = num_empty + sum(len(entry.references) for entry in entries)
            logger.warning("task: %s: %s: %d of %d references are empty: left out", task, split, num_empty, total)


def _train_part(train: Sequence[Example], count: Count, name: str, salt: str = "") -> tuple[Example, ...]:
    hashes = (_hash(salt + example.source + example.target) for example in train)
    return tuple(_smallest(train, hashes, count, name))


def _dev_part(dev: Sequence[Example], count: Count, name: str, salt: str = "") -> tuple[Example, ...]:
    """Each source's first reference comes before any second one, so that the part has as many sources as possible."""
    hashes = ((rank, _hash(salt + example.source)) for rank, example in zip(_ranks(dev), dev, strict=True))
    return tuple(_smallest(dev, hashes, count, name))


# Targets and references are one line each: a hypothesis ends at its first line break, in every arm.
def _examples(entries: Sequence[Entry]) -> list[Example]:
    return [Example(entry.source, one_line(target), entry.teacher) for entry in entries for target in entry.targets]


def _grouped(entries: Sequence[Entry]) -> list[Sourced]:
    """One `Sourced` per source, in the order in which the sources first occur."""
    references: dict[str, list[str]] = {}
    rows: dict[str, list[int]] = {}
    first: dict[str, Entry] = {}
    for entry in entries:
        references.setdefault(entry.source, []).extend(map(one_line, entry.references))
        rows.setdefault(entry.source, []).append(len(entry.references))
        first.setdefault(entry.source, entry)
    return [
        Sourced(source, tuple(references[source]), entry.group, tuple(rows[source]), entry.teacher, entry.document)
        for source, entry in first.items()
        if references[source]
    ]


def _ranks(examples: Sequence[Example]) -> list[int]:
    """For each example, the number of earlier examples of the same source."""
    num_seen: Counter[str] = Counter()
    ranks = []
    for example in examples:
        ranks.append(num_seen[example.source])
        num_seen[example.source] += 1
    return ranks


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _smallest(items: Sequence[T], keys: Iterable[Key], count: Count, name: str) -> list[T]:
    """The `count` items with the smallest keys, in their order. Where all are taken, no key is read."""
    if count == "all":
        return list(items)
    if count > len(items):
        logger.warning("task.%s: %d asked for, but the split has only %d: all are used", name, count, len(items))
    by_key = sorted(range(len(items)), key=list(keys).__getitem__)
    return [items[index] for index in sorted(by_key[:count])]
