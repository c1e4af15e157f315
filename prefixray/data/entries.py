"""Where a task's data lies, and how a row becomes an entry: which columns hold what, and what is wrong with it.

A loader takes a `DataConfig` and gives the three splits as `Entry`s; `read_entries` reads them from files and hub sets.
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from prefixray.data.row_files import Row
from prefixray.data.texts import is_empty, text_problem
from prefixray.system.records import Strict, Text

if TYPE_CHECKING:  # imports numpy
    from prefixray.data.teacher import Teacher

TASK_PATHS = ("path", "urls", "train", "dev", "test", "exchanges")
"""The keys of a task that name files, or for `path` a hub data set."""

_MANY_DIGITS = 15  # a number with fewer is taken as it is


class ColumnsConfig(Strict):
    """The names of the columns of a user's own files."""

    source: str = "source"
    """The input text."""
    target: str = "target"
    """The output text; in a JSONL file it may be a list of references."""
    messages: Text | None = None
    """In place of source and target: a column with chats, lists of messages with role and content. The last answer is
    the target, the messages before it are the source. null: none."""
    group: str | None = None
    """A column that says to which group of the test sources a row belongs. Each is scored alone too, if there are at
    most 4. null: none."""

    @model_validator(mode="after")
    def _has_one_use_for_each(self) -> Self:
        if self.source == self.target:
            raise ValueError("source and target must be two columns")
        if self.messages is not None and (self.source, self.target) != ("source", "target"):
            raise ValueError("messages stands in place of source and target: remove either")
        return self


class SplitConfig(Strict):
    """How dev and test are taken out of train, where a user's data does not have them."""

    dev: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The share of the sources that becomes dev, if there is none."""
    test: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The share of the sources that becomes test, if there is none."""
    seed: int = Field(default=1, ge=0)
    """Chooses the sources; the sweep's own seed has no part in it."""

    @field_validator("test")
    @classmethod
    def _something_is_left(cls, test: float, info: ValidationInfo) -> float:
        if test + info.data.get("dev", 0.0) >= 1.0:
            raise ValueError("must be below 1 together with dev, so that a part is left for train")
        return test


class NumQuestions(Strict):
    """How many questions about a document the base writes for each split."""

    train: PositiveInt = 96
    """Questions that trials are trained on."""
    dev: PositiveInt = 24
    """Questions that trials are compared on."""
    test: PositiveInt = 16
    """Questions that the final stage scores; none are written where `task.test` names a file."""


class DataConfig(Strict):
    """The part of the section `task` that a loader needs: where the data is."""

    name: str
    """The task's name in the catalog."""
    path: Text | None = None
    """A folder, or a hub data set: owner/name, or owner/name:config. webnlg: the 2017 challenge's XML or JSON files.
    dart: its JSON files. document: a text, Markdown or JSONL file, or a folder of them. Summarisation: train, dev and
    test as JSONL, CSV, Parquet or the original's .source and .target files; null: the set's own place on the hub.
    custom, summarization: also a folder that `datasets` saved."""
    urls: Text | None = None
    """xsum_news, xsum_sport: the file of the articles' URLs that tells their topics, where the data does not."""
    train: Text | None = None
    """custom, summarization: a JSONL, CSV or Parquet file of training examples."""
    dev: Text | None = None
    """custom, summarization: the file that trials are compared on."""
    test: Text | None = None
    """custom, summarization: the file that the final stage scores. document: questions and answers of your own; with
    several documents `columns.group` names the column that says which document a question is about."""
    split: SplitConfig | None = None
    """custom, summarization: take dev and test out of train where they are missing; {} takes a tenth of the sources
    for each. A dev or test without targets, of a hub data set or a folder of `datasets`, counts as missing. A hash of
    the source decides, so no source is in two parts. null: they must be there."""
    columns: ColumnsConfig = ColumnsConfig()
    """custom, summarization, document: the names of the columns."""
    chunk_tokens: PositiveInt = 512
    """document: the base sees parts of this many tokens while it writes questions and answers."""
    num_questions: NumQuestions = NumQuestions()
    """document: how many questions the base writes about each document."""
    prompts: tuple[Text, ...] | None = Field(default=None, min_length=1)
    """document: what the base is told when it shall write a question about the text above, with {passage} for a
    sentence of it; null: prompts of five kinds."""
    exchanges: Text | None = None
    """document: a folder of questions and answers that an earlier sweep has left, runs/OTHER/documents; null: they are
    made before the search, unless a sweep in runs has the same."""
    tokenised: bool = False
    """e2e: targets and references as in the original's files, with blanks around each word and mark: "is n't cheap ."
    """

    @property
    def paths(self) -> dict[str, str]:
        """The values of `TASK_PATHS` that are given."""
        return {key: value for key in TASK_PATHS if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class Entry:
    """A source with its texts, as one row or record of a file; other rows may have the same source."""

    source: str
    targets: tuple[str, ...]  # what a loss is computed on
    references: tuple[str, ...]  # what hypotheses are scored against
    group: str | None = None  # the part of the split: WebNLG's "seen" and "unseen" categories
    num_empty: int = 0  # the source's empty references, which are left out beside good ones
    teacher: "Teacher | None" = field(default=None, compare=False, repr=False)  # of the only target
    document: str | None = None  # the name of the document that it is about, where the task has documents


@dataclass(frozen=True)
class LeftOut:
    """A row of which no entry is made, without being refused."""

    why: str  # as a column and what is wrong with its value


@dataclass(frozen=True)
class Splits:
    """The three splits, whole and in the order of their files."""

    train: Sequence[Entry]
    dev: Sequence[Entry]
    test: Sequence[Entry]


@dataclass(frozen=True)
class Form:
    """Which columns hold the source and the target, and how their values become an entry."""

    sources: tuple[str, ...]  # possible names of the source's column; the first that exists is read
    targets: tuple[str, ...]  # the same for the target's column
    hint: str = ""  # the end of a message about a missing column; {} is source or target
    published: bool = False  # a published set: summary1, summary2 .. are references, a list of sentences is a source
    takes_numbers: bool = False  # a number or a truth value is a target too: a label
    leaves_out_empty: bool = False  # rows without a source or a target are counted and left out, not refused
    clean_source: Callable[[str], str] = str.strip
    clean_target: Callable[[str], str] = str.strip
    group: Callable[[Row], str | None] | None = None  # a row's group of sources

    def problems(self, columns: Sequence[str]) -> list[str]:
        """Why rows with these columns cannot be read."""
        existing = ", ".join(columns) or "none"
        problems = []
        if self._source_column(columns) is None:
            problems.append(f"no {_either(self.sources)} column; columns are {existing}{self.hint.format('source')}")
        if not self._target_columns(columns):
            problems.append(f"no {_either(self.targets)} column; columns are {existing}{self.hint.format('target')}")
        for name in (*self.sources, *self.targets):
            if columns.count(name) > 1:
                problems.append(f'{columns.count(name)} columns are named "{name}"')
        return problems

    def entry(self, row: Row) -> Entry | LeftOut | list[str]:
        """The row as an entry, or its problems, or why it is left out. `problems` has passed its columns."""
        columns = list(row)
        column = self._source_column(columns)
        assert column is not None, f"no source among {columns}"
        source, all_targets = self._joined(row[column]), self._targets(row)
        good = [(name, text) for name, text in all_targets if not is_empty(text)]
        if self.leaves_out_empty and (is_empty(source) or not good):
            return LeftOut(f'"{column if is_empty(source) else self._target_columns(columns)[0]}" is empty')
        targets = good or all_targets
        checked = [(column, source), *targets]
        problems = [f'"{name}" {problem}' for name, text in checked if (problem := text_problem(text)) is not None]
        if not targets:
            problems.append(f'"{self._target_columns(columns)[0]}" is an empty list; it must have a reference')
        if problems:
            return problems
        references = tuple(self.clean_target(str(text)) for _, text in targets)
        group = None if self.group is None else self.group(row)
        num_empty = len(all_targets) - len(targets)
        return Entry(self.clean_source(str(source)), references, references, group, num_empty)

    def _targets(self, row: Row) -> list[tuple[str, object]]:
        """All references, each with the name of its column."""
        targets: list[tuple[str, object]] = []
        for name in self._target_columns(list(row)):
            value = row[name]
            texts = value if isinstance(value, list) else [value]
            targets += [(name, _label(text) if self.takes_numbers else text) for text in texts]
        return targets

    def _joined(self, source: object) -> object:
        """A published set's list of sentences as one text; any other value as it is."""
        if self.published and isinstance(source, list) and all(isinstance(sentence, str) for sentence in source):
            return " ".join(source)
        return source

    def _source_column(self, columns: Sequence[str]) -> str | None:
        return next((name for name in self.sources if name in columns), None)

    def _target_columns(self, columns: Sequence[str]) -> list[str]:
        for name in self.targets:
            if name in columns:
                return [name]
            numbered = [column for column in columns if self.published and re.fullmatch(rf"{name}\d+", column)]
            if numbered:
                return numbered
        return []


def _label(value: object) -> object:
    """A label as text, where it is a number or a truth value; a whole number that has become a float as itself."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else _as_written(value)
    return str(value).lower() if isinstance(value, bool | int | float) and value == value else value


def _as_written(value: float) -> float:
    """A number that was kept in 32 bits without the digits that 64 bits show: 3.8 for 3.799999952316284."""
    if len(str(value)) < _MANY_DIGITS:
        return value
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((short for short in shorter if ctypes.c_float(short).value == value), value)


def _either(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)
