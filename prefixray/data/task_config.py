"""The section `task` of a sweep file."""

from typing import Literal

from pydantic import Field, PositiveInt

from prefixray.system.records import Count, Strict, Text

TaskName = Literal[
    "e2e",
    "webnlg",
    "dart",
    "custom",
    "xsum",
    "xsum_news",
    "xsum_sport",
    "cnn_dm",
    "dialogsum",
    "scitldr",
    "summarization",
]


class ColumnsConfig(Strict):
    """The names of the columns of a user's own files."""

    source: str = "source"
    """The input text."""
    target: str = "target"
    """The output text; in a JSONL file it may be a list of references."""
    group: str | None = None
    """A column that says to which group of the test sources a row belongs; each is scored alone too. null: none."""


class LowDataConfig(Strict):
    """Small training sets drawn from a large one, several of them, as in Li & Liang 2021, section 6.3."""

    size: PositiveInt
    """Training examples of a subset."""
    num_subsets: PositiveInt = 5
    """How many subsets there are. Final run k trains on number (k - 1) modulo num_subsets, so that `final.num_seeds` of
    twice as many gives two seeds on each; the search has the first."""
    dev_share: float = Field(default=0.3, gt=0.0)
    """Dev examples of a subset, as a share of `size`."""
    seed: int = Field(default=1, ge=0)
    """Which subsets; the sweep's own seed has no part in it."""

    @property
    def num_dev(self) -> int:
        """Dev examples of a subset."""
        return max(1, round(self.dev_share * self.size))


TASK_PATHS = ("path", "urls", "train", "dev", "test")
"""The keys of a task that name files, or for `path` a hub data set."""


class TaskConfig(Strict):
    """The data set, and how much of it is used."""

    name: TaskName
    """e2e ships with prefixray; webnlg, dart and the summarisation sets are read from `path`; custom (data-to-text) and
    summarization read a user's own data: the files under train, dev and test, or what `path` names."""
    path: Text | None = None
    """A folder, or a hub data set. webnlg: the 2017 challenge's XML or JSON files. dart: its JSON files. Summarisation:
    train, dev and test as JSONL, CSV or the original's .source and .target files; null: the set's own place on the hub.
    """
    urls: Text | None = None
    """xsum_news, xsum_sport: the file of the articles' URLs that tells their topics, where the data does not."""
    train: Text | None = None
    """custom, summarization: a JSONL or CSV file of training examples."""
    dev: Text | None = None
    """custom, summarization: the file that trials are compared on."""
    test: Text | None = None
    """custom, summarization: the file that the final stage scores."""
    columns: ColumnsConfig = ColumnsConfig()
    """custom, summarization: the names of the columns."""
    num_train: Count = "all"
    """How many training examples, chosen by a hash of their source."""
    fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """In place of num_train: the share of the training examples, chosen in the same way."""
    low_data: LowDataConfig | None = None
    """In place of num_train and num_dev: several small subsets of train and dev, one for each final run in turn."""
    num_dev: Count = "all"
    """How many dev examples (source-reference pairs) the dev loss is computed on; different sources come first."""
    num_test: Count = "all"
    """How many test sources are decoded and scored, each against all its references."""
    template: Literal["plain", "chat"] = "plain"
    """How a source becomes a prompt. chat: as a user's message in the base's own chat format (instruction-tuned,
    decoder-only bases), the target as the answer."""
    instruction: Text | None = None
    """Text in front of every source: what a chat model is asked to do, or T5's "summarize:"."""
    separator: Text | None = None
    """plain, decoder-only: text between source and target; null: the base's end token where it also begins a sequence,
    else a line break."""
    max_source_tokens: PositiveInt = 512
    """Longer sources are cut at their end, with a count in the log."""
    max_target_tokens: PositiveInt = 128
    """Longer training targets are cut at their end."""

    @property
    def paths(self) -> dict[str, str]:
        """What it names of `TASK_PATHS`."""
        return {key: value for key in TASK_PATHS if (value := getattr(self, key)) is not None}
