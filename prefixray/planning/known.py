"""What a plan can find out about the base and the data without downloading either.

Only the base's configuration and tokenizer and a part of the data are loaded. A plan lists what it could not find out,
and goes on without.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefixray.batching.batches import encode
from prefixray.batching.lengths import Lengths, row_lengths
from prefixray.batching.shared_prompts import lengths_run
from prefixray.batching.template import make_template
from prefixray.config.schema import SweepConfig
from prefixray.data import Example, Task, load_task
from prefixray.data.catalog import CATALOG
from prefixray.data.documents import Document, read_documents
from prefixray.data.documents.made import MOST_QUESTION_TOKENS, num_studied
from prefixray.data.documents.task import own_questions
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import Base, outline_base
from prefixray.model.shape import Shape
from prefixray.results.hypotheses import try_own_metrics
from prefixray.system.path_or_hub import local_path

NUM_TOKENISED = 2000  # training examples whose tokens are counted
MOST_DATA_BYTES = 64 << 20  # larger data are not read for a plan
TOKENS_PER_WORD = 1.5  # assumed where the tokenizer is missing
_MOST_FIRST_TOKENS = 10  # of a question about a document: those that its seed prompt gives


@dataclass(frozen=True)
class Known:
    """The base and the data as far as this machine has them, and the lengths of texts."""

    config: SweepConfig
    base: Base | None  # without its weights
    task: Task | None
    train: Lengths
    dev: Lengths
    lengths_from: str  # how the lengths were found, in words
    missing: tuple[str, ...]  # a sentence for each thing that could not be found out
    num_documents: int = 0  # of the task; 0 where it has none

    @property
    def shape(self) -> Shape:
        """The sizes of the base."""
        assert self.base is not None, "memory and time are computed only where the base is known"
        return self.base.shape

    @property
    def num_dev(self) -> int:
        """Dev examples that the loss is computed on; 0 where their number is not known."""
        if self.task is not None:
            return len(self.task.dev)
        task = self.config.task
        if CATALOG[task.name].is_studied:
            return min(num_studied(task)["dev"], _number(task.num_dev) or sys.maxsize)
        low = task.low_data
        return low.num_dev if low is not None else _number(task.num_dev) or 0

    @property
    def num_test(self) -> int | None:
        """Test sources that are decoded; None where their number is not known."""
        if self.task is not None:
            return len(self.task.test_sources)
        task = self.config.task
        if CATALOG[task.name].is_studied:
            most = _number(task.num_test) or sys.maxsize
            if task.test is None:
                return self.num_documents * min(num_studied(task)["test"], most)
            counts = Counter(entry.document for entry in own_questions(task, _documents(task)))
            return sum(min(count, most) for count in counts.values())
        return _number(task.num_test) or CATALOG[task.name].num_test


def find_known(config: SweepConfig) -> Known:
    """Look for the base and the data, and count tokens. Raises `UserError` where one of them cannot be used."""
    missing: list[str] = []
    base, num_documents = _find_base(config, missing), len(_documents(config.task))
    task = _find_task(config.task, missing)
    if task is None:
        longest = _longest(base, config.task)
        source = "questions' lengths" if CATALOG[config.task.name].is_studied else "max_source_tokens"
        origin = f"an upper bound: {source}, max_target_tokens"
        return Known(config, base, None, longest, longest, origin, tuple(missing), num_documents)
    try_own_metrics(config.final.named_metrics, task)
    sample = task.train[:: math.ceil(len(task.train) / NUM_TOKENISED)]
    if base is None:
        train, dev = (_from_words(examples, config.task) for examples in (sample, task.dev))
        origin = f"estimated: {TOKENS_PER_WORD} tokens per word"
        return Known(config, None, task, train, dev, origin, tuple(missing), num_documents)
    template = make_template(base, config.task)
    train, dev = row_lengths(encode(sample, template)), lengths_run(encode(task.dev, template))
    origin = f"measured on {len(sample):,} training examples" if len(sample) < len(task.train) else "measured"
    return Known(config, base, task, train, dev, origin, tuple(missing), num_documents)


def _find_base(config: SweepConfig, missing: list[str]) -> Base | None:
    try:
        return outline_base(config.base, trust_remote_code=config.trust_remote_code)
    except UserError as error:
        if "cannot be reached" not in str(error):
            raise
        missing.append(f"{error.problems[0]}; without it neither memory nor time can be told")
        return None


def _find_task(config: TaskConfig, missing: list[str]) -> Task | None:
    """The data, where they lie on this machine and are small enough to be read for a plan.

    Questions about documents are made when the sweep runs.
    """
    if CATALOG[config.name].is_studied and config.exchanges is None:
        return None
    names = [config.path] if config.path is not None else [config.train, config.dev, config.test]
    given = [local_path(name) for name in names if name is not None]
    there = [path for path in given if path is not None]
    if CATALOG[config.name].keys and not (there and len(there) == len(given)):
        missing.append(f"task: {config.name} is not on this machine; a local copy as task.path would be counted")
        return None
    size = sum(file.stat().st_size for path in there for file in ([path] if path.is_file() else path.rglob("*")))
    if size > MOST_DATA_BYTES:
        missing.append(f"task: {size / 2**20:,.0f} MiB of data, more than is read for a plan")
        return None
    return load_task(config)


def _documents(config: TaskConfig) -> tuple[Document, ...]:
    """The task's documents; none where it has none. Raises `UserError` with what is wrong with them."""
    return read_documents(config.path) if CATALOG[config.name].is_studied and config.path is not None else ()


def _longest(base: Base | None, task: TaskConfig) -> Lengths:
    """The lengths of the longest example that a task lets in, without the template's tokens around its texts."""
    source, target = task.max_source_tokens, task.max_target_tokens + 1
    if CATALOG[task.name].is_studied:
        source = min(source, _MOST_FIRST_TOKENS + MOST_QUESTION_TOKENS)
    if base is not None and base.shape.is_encoder_decoder:
        return Lengths(source, target, target)
    return Lengths(0, source + target, target)


def _from_words(examples: Sequence[Example], task: TaskConfig) -> Lengths:
    """Mean lengths, estimated from the numbers of words."""
    source, target = (
        sum(min(most, TOKENS_PER_WORD * len(text.split())) for text in texts) / max(1, len(examples))
        for most, texts in (
            (task.max_source_tokens, [example.source for example in examples]),
            (task.max_target_tokens, [example.target for example in examples]),
        )
    )
    return Lengths(0, source + target, target)


def _number(count: int | str) -> int | None:
    """None for "all"."""
    return count if isinstance(count, int) else None
