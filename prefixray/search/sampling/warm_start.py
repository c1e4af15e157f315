"""What another sweep knows about this one's spaces: `search.warm_start: runs/OTHER`.

A trial of the other sweep fits an arm if the arm could have had the very same trial: the same method with the same
values and the same recipe, whichever of them are searched here or there. So a space may be narrower, wider or cut into
other arms than it was. Sweeps fit if their bases and tasks are the same, else their dev losses cannot be compared.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from prefixray.config.identity import differences, stored_config
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.config.space import as_listed
from prefixray.config.trials import TrialConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.documents import read_documents
from prefixray.data.documents.made import FOLDER, SEARCHED, is_of_another_text
from prefixray.errors import UserError
from prefixray.results.record import Provenance, SearchTrial, Stored, load_results
from prefixray.search.policies.choice import evaluated, rules_of
from prefixray.system.path_or_hub import is_commit, local_path
from prefixray.system.records import Scalar
from prefixray.system.yaml_document import shown

_MOST_FIRST = 3  # of the other sweep's best configurations that are tried first
_NOT_OF_LOSS = frozenset({"arm", "eval_every", "gradient_checkpointing"})  # keys that leave how a trial trains as it is


class KnownTrial(TypedDict):
    """A trial of another sweep, in the values of this one's arm."""

    values: dict[str, Scalar]
    state: str  # done, stopped or failed
    step: int  # of its last report
    loss: float | None  # its last, of a done trial its best; None: it failed


def read_warm_start(config: SweepConfig, facts: Provenance | None = None) -> dict[str, list[KnownTrial]]:
    """The trials of the sweep that `search.warm_start` names, by arm of this one; none where it is null.

    `facts` are this sweep's, where they are known already. Raises `UserError` where the other sweep cannot be read,
    where it has another base or task, and where an arm's space fits no trial of its method.
    """
    searched = [arm for arm in config.arms if arm.dimensions]
    if config.search.warm_start is None:
        return {arm.name: [] for arm in searched}
    folder = Path(config.search.warm_start)
    place = f"search.warm_start: {folder}"
    if not (folder / "sweep.json").is_file():
        raise UserError(f"{place}: is no sweep's folder; give one such as runs/NAME, from the working directory")
    other, stored = stored_config(folder), load_results(folder)
    problems = [f"{place}: {line}; take a sweep of the same {what}" for what, line in _unlike(config, other, folder)]
    if facts is not None:
        same = ("base",) if _asks(config) else ("base", "data")
        problems += [f"{place}: {line}" for line in _other_digests(folder, stored, facts, same)]
    if not problems and _asks(config):
        problems += [f"{place}: {line}" for line in _other_texts(config, folder)]
    known: dict[str, list[KnownTrial]] = {}
    for arm in searched if not problems else ():
        trials, misfits, num_ended = _fitting(config, arm, other, stored)
        known[arm.name] = trials
        if num_ended and not trials:
            reason = misfits.most_common(1)[0][0]
            problems.append(f"{place}: none of its {num_ended} trials of {arm.method} fits arms.{arm.name}: {reason}")
    if problems:
        raise UserError(*problems)
    return known


def best_first(known: list[KnownTrial], num_trials: int) -> list[dict[str, Scalar]]:
    """The best known configurations: a quarter of an arm's trials, one at least and three at most."""
    done = sorted((trial["loss"], index) for index, trial in enumerate(known) if trial["loss"] is not None)
    ranked = [known[index]["values"] for _, index in done if known[index]["state"] == "done"]
    return ranked[: min(_MOST_FIRST, max(1, num_trials // 4))]


def warm_start_text(known: Mapping[str, list[KnownTrial]], config: SweepConfig) -> list[str]:
    """What each arm takes over, a sentence each."""
    folder = config.search.warm_start
    lines = []
    for name, trials in known.items() if folder is not None else ():
        num_first = len(best_first(trials, config.arm(name).num_trials))
        lines.append(
            f"{name}: {len(trials)} trials of {folder} are its sampler's evidence, and {num_first} of their "
            "configurations come first."
            if trials
            else f"{name}: {folder} has no trial of its method, so it starts without evidence."
        )
    if folder is not None and _asks(config):
        there = stored_config(Path(folder)).search.seed
        asked = f"{folder} asked other questions about the document (search.seed {there}, here {config.search.seed})"
        lines += [f"{asked}: its losses are a hint."] if there != config.search.seed else []
    return lines


def _unlike(config: SweepConfig, other: SweepConfig, folder: Path) -> list[tuple[str, str]]:
    """How the other sweep's base and task differ: which of the two, and the difference."""
    lines = [("base", f"base: {other.base} there, {config.base} here")]
    ours, theirs = ((local_path(base) or Path(base)).absolute() for base in (config.base, other.base))
    tasks = (sweep.task.model_dump(mode="json") for sweep in (other, config))
    unlike = (lines if ours != theirs else []) + [("task", f"task.{line}") for line in differences(*tasks)]
    return unlike + [("documents", line) for line in _other_documents(config, folder)]


def _other_documents(config: SweepConfig, folder: Path) -> list[str]:
    """Which documents the other search has trained on, where they are not this one's. Raises `UserError`."""
    file = folder / SEARCHED
    if not CATALOG[config.task.name].is_studied or not file.is_file():
        return []
    assert config.task.path is not None, "the task needs a path"
    names = [document.name for document in read_documents(config.task.path)]
    searched = names[: config.search.num_searched(len(names))]
    there = json.loads(file.read_text(encoding="utf-8"))
    return [] if there == searched else [f"its trials are about {', '.join(there)}, here {', '.join(searched)}"]


def _asks(config: SweepConfig) -> bool:
    """Whether the sweep has its base write questions about its document: they depend on its seed."""
    return CATALOG[config.task.name].is_studied and config.task.exchanges is None


def _other_texts(config: SweepConfig, folder: Path) -> list[str]:
    """The documents that have the same name as there, but another text. Raises `UserError` where they are missing."""
    assert config.task.path is not None, "the task needs a path"
    others = [
        one.name for one in read_documents(config.task.path) if is_of_another_text(folder / FOLDER / one.name, one)
    ]
    return [f"its document {name} was another text; take a sweep of this one" for name in others]


def _other_digests(folder: Path, stored: Stored, facts: Provenance, same: Collection[str]) -> list[str]:
    """What has the same name as there, but other content. Without a table, it is what that sweep's driver keeps.

    Another commit of a base on the hub may have the same weights.
    """
    file = folder / "digests.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pairs = {
        "base": (stored.get("base_digest", kept.get("base")), facts.base_digest),
        "data": (stored.get("data_digest", kept.get("task")), facts.data_digest),
    }
    return [
        f"its {what} was another one under the same name; run that sweep again under another name"
        for what, (there, here) in pairs.items()
        if what in same and there not in (None, here) and not (is_commit(str(there)) and is_commit(here))
    ]


def _fitting(
    config: SweepConfig, arm: ArmConfig, other: SweepConfig, stored: Stored
) -> tuple[list[KnownTrial], Counter[str], int]:
    """The other sweep's trials that fit an arm, why others do not, and the number of ended trials of its method."""
    theirs = {one.name: one for one in other.arms if one.method == arm.method}
    rules, their_sample = rules_of(config), rules_of(other).dev_sample
    shares = evaluated(arm, rules)
    known: list[KnownTrial] = []
    misfits: Counter[str] = Counter()
    ended = [trial for trial in stored["search"] if trial["arm"] in theirs and trial["state"] != "running"]
    for trial in ended:
        fitted = _fit(arm, theirs[trial["arm"]], trial)
        share = their_sample if trial.get("is_sampled") else 1.0
        if trial["state"] in ("stopped", "paused") and shares.get(trial["step"], share) != share:
            fitted = (
                "its loss at a rung is over another share of dev (search.dev_sample, search.rungs, train.eval_every)"
            )
        if isinstance(fitted, str):
            misfits[fitted] += 1
        else:
            loss = None if trial["state"] == "failed" else trial["dev_loss"]
            known.append(KnownTrial(values=fitted, state=trial["state"], step=trial["step"], loss=loss))
    return known, misfits, len(ended)


def _fit(arm: ArmConfig, theirs: ArmConfig, trial: SearchTrial) -> dict[str, Scalar] | str:
    """The trial's values of the arm's searched keys; a sentence where the arm cannot have the trial."""
    try:
        there = _flat(theirs.trial(trial["config"]))
    except ValidationError:
        return "its values do not go together"
    values: dict[str, Scalar] = {}
    for key in arm.dimensions:
        distribution = arm.distribution(key, values)
        if distribution is not None and not distribution.contains(there[key]):
            return f"{key} {shown(there[key])} is not searched here"
        if distribution is not None:
            values[key] = as_listed(distribution, there[key])
    try:
        here = _flat(arm.trial(values))
    except ValidationError:
        return "its values do not go together here"
    return next(
        (f"{key} is {shown(there[key])} there and {shown(here[key])} here" for key in here if here[key] != there[key]),
        values,
    )


def _flat(trial: TrialConfig) -> dict[str, Scalar]:
    """The method's values and the recipe, as far as the loss depends on them."""
    return {key: value for key, value in trial.by_key().items() if key not in _NOT_OF_LOSS}
