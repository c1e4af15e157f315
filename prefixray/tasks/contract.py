"""What a task is, and how every family's entries become one: references grouped by source, subsets chosen by a hash.

A hash of the text, not a random draw, decides what belongs to a subset: it is the same for every arm, seed and machine,
a larger subset contains the smaller, and the order of the file does not matter.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefixray.config import Count, TaskConfig, UserError

logger = logging.getLogger(__name__)

DATA_TO_TEXT_METRICS = ("bleu", "nist", "rouge_l_coco", "cider")
SUMMARIZATION_METRICS = ("rouge_1", "rouge_2", "rouge_l")


@dataclass(frozen=True)
class Example:
    """One pair to train on, or to compute a loss on."""

    source: str
    target: str


@dataclass(frozen=True)
class Sourced:
    """One source with all its references: the unit that is decoded and scored."""

    source: str
    references: tuple[str, ...]
    group: str | None = None  # the part of the split: WebNLG's "seen" and "unseen" categories


@dataclass(frozen=True)
class Task:
    """A data set, cut to the subsets that the sweep file asks for."""

    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    dev_sources: tuple[Sourced, ...]  # the sources of `dev`, each with all its references
    test_sources: tuple[Sourced, ...]
    num_test_total: int  # sources in the whole test split
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A source as a file gives it; the same source may come again."""

    source: str
    targets: tuple[str, ...]  # what a loss is computed on
    references: tuple[str, ...]  # what hypotheses are scored against
    group: str | None = None


@dataclass(frozen=True)
class Splits:
    """The three splits whole, in the order of their files."""

    train: Sequence[Entry]
    dev: Sequence[Entry]
    test: Sequence[Entry]


def make_task(config: TaskConfig, splits: Splits, metrics: tuple[str, ...]) -> Task:
    """Group references by source and choose the subsets; what is kept stands in the order of the files.

    Dev pairs are taken by the rank of the reference within its source, then by the source's hash, so that a small
    `num_dev` has as many different sources as it can. Raises `UserError` when a split has nothing in it.
    """
    train, dev, test = _examples(splits.train), _examples(splits.dev), _grouped(splits.test)
    sizes = {"train": len(train), "dev": len(dev), "test": len(test)}
    empty = [f"task: {config.name}: the {split} split has no examples" for split, size in sizes.items() if not size]
    if empty:
        raise UserError(*empty)
    train_hashes = [_hash(example.source + example.target) for example in train]
    dev_hashes = [(rank, _hash(pair.source)) for rank, pair in zip(_ranks(dev), dev, strict=True)]
    test_hashes = [_hash(sourced.source) for sourced in test]
    chosen_dev = tuple(dev[i] for i in _smallest(dev_hashes, config.num_dev, "num_dev"))
    dev_texts = {example.source for example in chosen_dev}
    return Task(
        name=config.name,
        train=tuple(train[i] for i in _smallest(train_hashes, config.num_train, "num_train")),
        dev=chosen_dev,
        dev_sources=tuple(sourced for sourced in _grouped(splits.dev) if sourced.source in dev_texts),
        test_sources=tuple(test[i] for i in _smallest(test_hashes, config.num_test, "num_test")),
        num_test_total=len(test),
        metrics=metrics,
    )


def _examples(entries: Sequence[Entry]) -> list[Example]:
    return [Example(entry.source, _one_line(target)) for entry in entries for target in entry.targets]


def _grouped(entries: Sequence[Entry]) -> list[Sourced]:
    """One `Sourced` per different source, in the order in which the sources first come."""
    references: dict[str, list[str]] = {}
    groups: dict[str, str | None] = {}
    for entry in entries:
        references.setdefault(entry.source, []).extend(map(_one_line, entry.references))
        groups.setdefault(entry.source, entry.group)
    return [Sourced(source, tuple(texts), groups[source]) for source, texts in references.items() if texts]


def _one_line(text: str) -> str:
    """Line breaks as spaces: a hypothesis ends at its first line break, in every arm."""
    return " ".join(text.splitlines()) if "\n" in text else text


def _ranks(examples: Sequence[Example]) -> list[int]:
    """For each example, how many of the same source stand before it."""
    seen: Counter[str] = Counter()
    ranks = []
    for example in examples:
        ranks.append(seen[example.source])
        seen[example.source] += 1
    return ranks


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _smallest(keys: Sequence[str] | Sequence[tuple[int, str]], count: Count, name: str) -> list[int]:
    """The places of the `count` smallest keys, in ascending order of place."""
    if count == "all":
        return list(range(len(keys)))
    if count > len(keys):
        logger.warning("task.%s: %d asked for, but the split has only %d: all are used", name, count, len(keys))
    by_key = sorted(range(len(keys)), key=lambda place: keys[place])
    return sorted(by_key[:count])
