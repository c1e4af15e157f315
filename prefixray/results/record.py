"""The record of a sweep, `results.json`: its types, and how it is read.

The search writes its trials into the record, the final stage everything else. Every table and figure is made from the
record alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeGuard

from prefixray.errors import UserError
from prefixray.system.records import Scalar

UNTUNED = "untuned"
IN_CONTEXT = "in_context"
UNTRAINED = (UNTUNED, IN_CONTEXT)
"""The arms without a method: the base as it is, and, where the task has a document, the base behind the document."""


@dataclass(frozen=True)
class Provenance:
    """The weights, the data and the device that a sweep's numbers come from."""

    base_digest: str
    num_parameters: int  # of the base
    precision: str
    data_digest: str
    num_test_total: int  # sources in the whole test split
    metrics: tuple[str, ...]  # the task's own
    device: str  # a GPU's name, or "cpu"
    num_threads: int


class Interval(TypedDict):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class DocumentResult(TypedDict):
    """The final run about one document."""

    folder: str
    scores: dict[str, float]  # on the questions about it; empty where test has none
    dev_loss: float


class SeedResult(TypedDict):
    """One final run of an arm's winning configuration; of several documents all their runs, one in the table."""

    seed: int
    scores: dict[str, float]
    dev_loss: float | None  # the mean over documents; None: not measured
    folder: str  # of the first document
    curve: NotRequired[list[tuple[int, float]]]  # (step, dev loss) of every report; means over documents
    documents: NotRequired[dict[str, DocumentResult]]  # by name, where the task has documents


class GroupResult(TypedDict):
    """An arm's scores on a group of the test sources, such as WebNLG's categories that are seen in training."""

    num_sources: int
    scores: dict[str, Interval]
    difference: Interval | None  # to the reference on these sources, by the primary metric


class ArmResult(TypedDict):
    """An arm of the final stage; untrained arms are arms without method."""

    arm: str
    method: str | None
    config: dict[str, object]
    seeds: list[SeedResult]
    scores: dict[str, Interval]
    sd: dict[str, float | None]
    difference: Interval | None
    p: float | None
    p_holm: float | None
    trained_parameters: int
    stored_parameters: int
    num_trials: int
    minutes: float
    searched: bool
    groups: NotRequired[dict[str, GroupResult]]
    kv_bytes: NotRequired[int]  # of the keys and values in front of each row, in the base's precision
    to_context: NotRequired[Interval]  # the distance to the base that sees the document, by the primary metric


class Pause(TypedDict):
    """A pause of a trial at a rung."""

    step: int
    resumed: Literal["by policy", "by hand"] | None  # None: it did not go on


class SearchTrial(TypedDict):
    """A trial of the search, as it ended."""

    arm: str
    number: int
    config: dict[str, Scalar]
    step: int
    num_steps: int
    dev_loss: float | None
    state: str
    rung: int | None
    curve: NotRequired[list[tuple[int, float]]]  # (step, dev loss) of every report
    pauses: NotRequired[list[Pause]]  # only where there were any
    is_sampled: NotRequired[bool]  # whether dev_loss is over a sample of dev; true or not there
    is_divergence: NotRequired[bool]  # whether its dev losses are divergences from a teacher; true or not there


class Importance(TypedDict):
    """The importance of each searched value of an arm for the dev loss."""

    arm: str
    step: int  # at which the dev losses were measured
    num_trials: int
    shares: dict[str, float]  # add up to 1


class ExampleOutputs(TypedDict):
    """A source with every arm's output."""

    source: str
    references: list[str]
    outputs: dict[str, str]
    scores: NotRequired[dict[str, float]]  # of the outputs, by the primary metric on this source alone
    arm: NotRequired[str]  # the arm for whose distance to the reference this source was chosen


class CommandRun(TypedDict):
    """A run of the command that trained something; a killed one leaves no record."""

    command: list[str]  # its words; none where a sweep was run from Python
    scales: list[str]
    overrides: list[str]
    commit: str | None  # of prefixray's code; None: not known
    versions: dict[str, str]
    began: str  # in UTC
    minutes: float


class Stored(TypedDict):
    """`results.json` before the final stage. Older records lack the keys that are not required."""

    search: list[SearchTrial]
    runs: NotRequired[list[CommandRun]]
    policy: NotRequired[str]  # never auto
    rungs: NotRequired[list[int]]
    keep: NotRequired[float]
    dev_sample: NotRequired[float]  # the share of dev on which trials were compared at all rungs but the last
    importance: NotRequired[list[Importance]]


class Results(Stored):
    """`results.json` of a finished sweep."""

    sweep: str
    base: str
    base_digest: str
    task: str
    data_digest: NotRequired[str]
    split: str
    num_train: NotRequired[int]  # examples that a run trains on
    num_sources: int
    num_sources_total: int
    metric: str
    reference: str
    metrics: list[str]
    signatures: dict[str, str]
    evaluation: NotRequired[str]  # "own" or "paper"; older records, which lack it, are "own"
    decoding: dict[str, Scalar]
    precision: str
    num_parameters: int
    versions: dict[str, str]
    machine: dict[str, object]
    seed: int
    arms: list[ArmResult]
    resolution: float
    examples: list[ExampleOutputs]
    notes: NotRequired[list[str]]
    budget: NotRequired[dict[str, object]]


def load_results(folder: Path) -> Stored:
    """Read a sweep's `results.json`; `is_finished` says whether the final stage is in it.

    Raises `UserError` where there is no such file, or where no sweep can have written it.
    """
    path = folder / "results.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "they come when the search has ended (`prefixray sweep`)"
        raise UserError(f"{folder} has no results yet: {hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not JSON ({error}); run the sweep again to write it anew") from None
    if problems := _problems(stored):
        raise UserError(*(f"{path}: {problem}" for problem in problems))
    checked: Stored = stored
    return checked


def is_finished(stored: Stored) -> TypeGuard[Results]:
    """Whether the final stage has been reached."""
    return "arms" in stored


def tuned_arms(results: Results) -> list[ArmResult]:
    """The arms without the untrained ones."""
    return [arm for arm in results["arms"] if arm["method"] is not None]


def of_one_loss(search: Sequence[SearchTrial]) -> list[list[SearchTrial]]:
    """The trials in groups whose dev losses can be compared: a divergence from a teacher is no other loss."""
    groups = [[trial for trial in search if trial.get("is_divergence", False) is kind] for kind in (False, True)]
    return [group for group in groups if group]


def documents_of(results: Results) -> list[str]:
    """The names of the documents that final runs are about; none where the task has none, or no run ended well."""
    return list(_documents(results))


def document_to_name(results: Results) -> str | None:
    """Of several documents the first that test asks about, as its first source does; None where none need be named."""
    documents = _documents(results)
    asked = (name for name, one in documents.items() if one["scores"])
    return next(asked, None) if len(documents) > 1 else None


def naming(document: str | None) -> tuple[str, str]:
    """What names a document: an option of a command, and an argument in Python; both empty where none need be named."""
    return ("", "") if document is None else (f" --document {document!r}", f", document={document!r}")


def _documents(results: Results) -> Mapping[str, DocumentResult]:
    return next((seed.get("documents", {}) for arm in tuned_arms(results) for seed in arm["seeds"]), {})


def runs_of(seed: SeedResult) -> list[SeedResult]:
    """The runs of a seed: one for each document."""
    number = seed["seed"]
    if len(documents := seed.get("documents", {})) < 2:
        return [seed]
    return [
        SeedResult(seed=number, scores=each["scores"], dev_loss=each["dev_loss"], folder=each["folder"])
        for each in documents.values()
    ]


def _problems(stored: object) -> list[str]:
    """The keys that a sweep's record would have and this one lacks, a sentence each."""
    if not isinstance(stored, dict) or not isinstance(stored.get("search"), list):
        return ['has no list called "search"; is it a sweep\'s results.json?']
    parts: list[tuple[str, object, frozenset[str]]] = []
    parts += [(f"search[{i}]", trial, SearchTrial.__required_keys__) for i, trial in enumerate(stored["search"])]
    if "arms" in stored:
        parts.append(("", stored, Results.__required_keys__))
        parts += [(f"arms[{i}]", arm, ArmResult.__required_keys__) for i, arm in enumerate(stored["arms"])]
    missing = [(where, sorted(keys - part.keys() if isinstance(part, dict) else keys)) for where, part, keys in parts]
    remedy = "it was written by another version; run the sweep again to write it anew"
    return [f"{where + ': ' if where else ''}lacks {', '.join(keys)}; {remedy}" for where, keys in missing if keys]
