"""Sweeps side by side: their records, with p values that are corrected over all comparisons of all sweeps.

Each arm is compared with its own sweep's reference, on its own sweep's test sources, as in that sweep's table. What is
new is their number: more comparisons find more differences by chance, so Holm's correction goes over all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixray.config.identity import stored_config
from prefixray.errors import UserError
from prefixray.metrics import higher_is_better
from prefixray.results.record import ArmResult, Results, is_finished, load_results, tuned_arms
from prefixray.results.statistics import holm, ranks


@dataclass(frozen=True)
class OneOf:
    """One of the sweeps: its name among them, its results, and how many examples a run trained on."""

    name: str
    results: Results
    """Every `p_holm` is corrected over the comparisons of all sweeps."""
    num_train: int | None
    """None: all examples of a task whose record, an older one, does not hold their number."""

    @property
    def tuned(self) -> list[ArmResult]:
        """The arms without the untuned base."""
        return tuned_arms(self.results)


def side_by_side(folders: Sequence[Path]) -> list[OneOf]:
    """The finished sweeps in these folders.

    Raises `UserError` where one is no finished sweep, or is named twice.
    """
    stored = {folder: load_results(folder) for folder in folders}
    late = "the final stage has not been reached; leave this sweep out"
    problems = [f"{folder}: {late}" for folder, one in stored.items() if not is_finished(one)]
    resolved = [folder.resolve() for folder in folders]
    problems += [f"{f}: is named twice" for i, f in enumerate(folders) if f.resolve() in resolved[:i]]
    if problems:
        raise UserError(*problems)
    found = {folder: one for folder, one in stored.items() if is_finished(one)}
    names = [one["sweep"] for one in found.values()]
    corrected = _corrected(list(found.values()))
    return [
        OneOf(name if names.count(name) == 1 else str(folder), results, _num_train(results, folder))
        for folder, name, results in zip(found, names, corrected, strict=True)
    ]


def num_comparisons(sweeps: Sequence[OneOf]) -> int:
    """How many p values the correction goes over."""
    return sum(arm["p_holm"] is not None for sweep in sweeps for arm in sweep.tuned)


def arm_names(sweeps: Sequence[OneOf]) -> list[str]:
    """The arms of all sweeps, each once, in the order in which they appear."""
    return list(dict.fromkeys(arm["arm"] for sweep in sweeps for arm in sweep.results["arms"]))


def mean_ranks(sweeps: Sequence[OneOf]) -> dict[str, float]:
    """The mean rank of each tuned arm that every sweep has; 1 is the best of these arms."""
    names = [name for name in arm_names(sweeps) if all(name in {arm["arm"] for arm in one.tuned} for one in sweeps)]
    totals = dict.fromkeys(names, 0.0)
    for sweep in sweeps:
        metric = sweep.results["metric"]
        sign = -1.0 if higher_is_better(metric) else 1.0
        scores = {arm["arm"]: sign * arm["scores"][metric]["value"] for arm in sweep.tuned}
        for name, rank in zip(names, ranks([scores[name] for name in names]), strict=True):
            totals[name] += rank / len(sweeps)
    return totals


def _corrected(found: Sequence[Results]) -> list[Results]:
    """The results with p values that Holm's correction has gone over as one family."""
    p_values = {
        f"{i}/{arm['arm']}": p
        for i, results in enumerate(found)
        for arm in tuned_arms(results)
        if (p := arm["p"]) is not None
    }
    corrected = holm(p_values)
    copies = []
    for i, results in enumerate(found):
        copy = results.copy()
        copy["arms"] = [{**arm, "p_holm": corrected.get(f"{i}/{arm['arm']}")} for arm in results["arms"]]
        copies.append(copy)
    return copies


def _num_train(results: Results, folder: Path) -> int | None:
    """The examples that a run trained on; of an older record, those that the sweep file asked for."""
    if "num_train" in results:
        return results["num_train"]
    try:
        task = stored_config(folder).task
    except (OSError, UserError):
        return None
    if task.low_data is not None:
        return task.low_data.size
    return task.num_train if isinstance(task.num_train, int) else None
