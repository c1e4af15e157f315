"""The record of a sweep, `results.json`: its types, and reading it back.

The search writes its trials into it, the final stage the rest; every table and figure is made from it alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, TypeGuard

from prefixray.errors import UserError
from prefixray.system.records import Scalar


@dataclass(frozen=True)
class Provenance:
    """Which weights, which data and which device the numbers of a sweep come from."""

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


class SeedResult(TypedDict):
    """One run of an arm's winner."""

    seed: int
    scores: dict[str, float]
    dev_loss: float | None  # None: not measured
    folder: str


class GroupResult(TypedDict):
    """An arm's scores on a group of the test sources: WebNLG's categories that are seen in training, or not."""

    num_sources: int
    scores: dict[str, Interval]
    difference: Interval | None  # to the reference's on these sources, by the primary metric


class ArmResult(TypedDict):
    """An arm of the final stage; the untuned base is one without method."""

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


class SearchTrial(TypedDict):
    """A trial of the search as it ended."""

    arm: str
    number: int
    config: dict[str, Scalar]
    step: int
    num_steps: int
    dev_loss: float | None
    state: str
    rung: int | None
    curve: NotRequired[list[tuple[int, float]]]  # (step, dev loss) of every report


class Importance(TypedDict):
    """How much each searched value of an arm decides about the dev loss."""

    arm: str
    step: int  # at which the dev losses were measured
    num_trials: int
    shares: dict[str, float]  # add up to 1


class ExampleOutputs(TypedDict):
    """A source with what every arm made of it."""

    source: str
    references: list[str]
    outputs: dict[str, str]
    scores: NotRequired[dict[str, float]]  # of these outputs, by the primary metric on this source alone
    arm: NotRequired[str]  # the arm that is so far from the reference here that the source was chosen for it


class Stored(TypedDict):
    """`results.json` while the final stage is still to come. What is not required, older records do not have."""

    search: list[SearchTrial]
    rungs: NotRequired[list[int]]
    importance: NotRequired[list[Importance]]


class Results(Stored):
    """`results.json` of a finished sweep."""

    sweep: str
    base: str
    base_digest: str
    task: str
    data_digest: NotRequired[str]
    split: str
    num_sources: int
    num_sources_total: int
    metric: str
    reference: str
    metrics: list[str]
    signatures: dict[str, str]
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

    Raises `UserError` where there is none, or where it cannot be what a sweep has written.
    """
    path = folder / "results.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "they come when the search has ended (python -m prefixray.sweep)"
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


def _problems(stored: object) -> list[str]:
    """What is missing for this to be the record of a sweep."""
    if not isinstance(stored, dict) or not isinstance(stored.get("search"), list):
        return ['has no list called "search"; is it a sweep\'s results.json?']
    parts: list[tuple[str, object, frozenset[str]]] = []
    parts += [(f"search[{i}]", trial, SearchTrial.__required_keys__) for i, trial in enumerate(stored["search"])]
    if "arms" in stored:
        parts.append(("", stored, Results.__required_keys__))
        parts += [(f"arms[{i}]", arm, ArmResult.__required_keys__) for i, arm in enumerate(stored["arms"])]
    found = [(where, sorted(keys - part.keys() if isinstance(part, dict) else keys)) for where, part, keys in parts]
    remedy = "it was written by another version; run the sweep again to write it anew"
    return [f"{where + ': ' if where else ''}lacks {', '.join(keys)}; {remedy}" for where, keys in found if keys]
