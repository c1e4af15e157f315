"""The section `task` of a sweep file: the data set, how much of it is used, and how its texts become prompts."""

from typing import Literal

from pydantic import Field, PositiveInt

from prefixray.data.catalog import TaskName
from prefixray.data.entries import DataConfig
from prefixray.system.records import Count, Strict, Text


class LowDataConfig(Strict):
    """Small training sets drawn from a large one, several of them, as in Li & Liang 2021, section 6.3."""

    size: PositiveInt
    """Training examples of a subset."""
    num_subsets: PositiveInt = 5
    """How many subsets there are. The search trains on the first; the final runs take them in turn. So with
    `num_subsets: 5` and `final.num_seeds: 10`, each subset gets two seeds."""
    dev_share: float = Field(default=0.3, gt=0.0)
    """Dev examples of a subset, as a share of `size`."""
    seed: int = Field(default=1, ge=0)
    """Chooses the subsets; the sweep's own seed has no part in it."""

    @property
    def num_dev(self) -> int:
        """Dev examples of a subset."""
        return max(1, round(self.dev_share * self.size))


class TaskConfig(DataConfig):
    """The data set, and how much of it is used."""

    name: TaskName
    """e2e ships with prefixray; webnlg, dart and the summarisation sets are read from `path`; custom (data-to-text) and
    summarization read a user's own data: the files under train, dev and test, or what `path` names."""
    num_train: Count = "all"
    """How many training examples, chosen by a hash of their source and target."""
    fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """In place of num_train: the share of the training examples, chosen in the same way."""
    low_data: LowDataConfig | None = None
    """In place of num_train and num_dev: several small subsets of train and dev, one for each final run in turn."""
    num_dev: Count = "all"
    """How many dev examples (source-reference pairs) the dev loss is computed on; different sources come first."""
    num_test: Count = "all"
    """How many test sources are decoded and scored, each against all its references. Of several documents num_train,
    num_dev and num_test hold for each."""
    template: Literal["plain", "chat"] = "plain"
    """How a source becomes a prompt. chat: as a user's message in the base's own chat format (instruction-tuned,
    decoder-only bases), the target as the answer; a format that writes the day writes 26 July 2024."""
    instruction: Text | None = None
    """Text in front of every source: what a chat model is asked to do, or T5's "summarize:"."""
    separator: Text | None = None
    """plain, decoder-only: text between source and target; null: the base's end token where it also begins a sequence,
    else a line break."""
    max_source_tokens: PositiveInt = 512
    """Longer sources are cut at their end, with a count in the log."""
    max_target_tokens: PositiveInt = 128
    """Longer training targets are cut at their end."""
