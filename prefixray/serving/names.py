"""The names of models: what each artifact that is served is called.

In a sweep an arm's name means the run that `--arm` means elsewhere. All final runs, and each arm's best trial, have
names as in MLflow: `final/prefix-3-1`, `prefix/3`. An artifact's folder gives the name of its run, or its own. A
document's name means the run about it that `--document` means elsewhere; with several documents an arm's run about one
is `prefix@manual`.
`NAME=WHERE` calls an artifact NAME, and puts NAME/ in front of all names of a sweep.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixray.config.files.found import find_sweep
from prefixray.config.trials import METHODS
from prefixray.errors import UserError
from prefixray.results.artifacts import best_artifact, best_run, is_artifact
from prefixray.results.record import (
    UNTUNED,
    Results,
    Stored,
    documents_of,
    is_finished,
    load_results,
    runs_of,
    tuned_arms,
)
from prefixray.trial import TrialFolder


@dataclass(frozen=True)
class Named:
    """The artifacts that are to be served."""

    folders: dict[str, Path]
    """Each by its name; one may have several."""
    left_out: tuple[str, ...]
    """Names of a sweep's runs that have a model of their own, and so can share no batch."""


def find_models(words: Sequence[str]) -> Named:
    """The artifacts that the words name, each word `WHERE` or `NAME=WHERE`.

    Raises `UserError` where a word names nothing, where a name comes twice, and where nothing can share a batch.
    """
    folders: dict[str, Path] = {}
    left_out: list[str] = []
    for word in words:
        given, where = _split(word)
        for name, folder in _of_artifact(given, where) if is_artifact(Path(where)) else _of_sweep(given, where):
            if _has_own_model(folder):
                left_out.append(name)
            elif name in folders and folders[name] != folder:
                raise UserError(f"{word}: {name}: is the name of {folders[name]} too; give it another: NAME={where}")
            elif name == UNTUNED:
                raise UserError(f"{word}: {name}: is the name of the base; give it another: NAME={where}")
            else:
                folders[name] = folder
    if not folders and not left_out:
        best_artifact(find_sweep(_split(words[0])[1]))  # refuses, and says why there is none
    if not folders:
        raise UserError(f"{', '.join(left_out)}: fine-tuned models of their own share no batch; name other artifacts")
    return Named(folders, tuple(left_out))


def _split(word: str) -> tuple[str | None, str]:
    """The name that the user gives, and the place."""
    name, sign, where = word.partition("=")
    return (name, where) if name and sign and not Path(word).exists() else (None, word)


def _has_own_model(folder: Path) -> bool:
    return any(facts.has_own_model and (folder / f"{name}_config.json").is_file() for name, facts in METHODS.items())


def _of_artifact(given: str | None, where: str) -> Iterator[tuple[str, Path]]:
    """An artifact by the name of its run: of `runs/x/trials/prefix/3/artifact` prefix/3."""
    folder = Path(where)
    parts = folder.resolve().parts
    if parts[-1] == "artifact" and len(parts) > 1:
        parts = parts[:-1]
    in_sweep = parts[-2:-1] == ("final",) or parts[-3:-2] == ("trials",)
    yield given or "/".join(parts[-2:] if in_sweep else parts[-1:]), folder


def _of_sweep(given: str | None, where: str) -> Iterator[tuple[str, Path]]:
    """All names of a sweep with their artifacts."""
    sweep = find_sweep(where)
    results = load_results(sweep)
    before = "" if given is None else f"{given}/"
    if is_finished(results):
        runs = _final_runs(results)
        yield from ((f"{before}{name}", TrialFolder(sweep / folder).artifact) for name, folder in runs.items())
    yield from ((f"{before}{name}", folder) for name, folder in _best_trials(sweep, results))


def _final_runs(results: Results) -> dict[str, str]:
    """The folders of the final runs by all their names; an arm's name goes before a document's."""
    arms, documents = [entry["arm"] for entry in tuned_arms(results)], documents_of(results)
    runs = {name: best_run(results, None, name) for name in documents if arms}
    if len(documents) < 2:
        runs |= {arm: best_run(results, arm) for arm in arms}
    else:
        runs |= {f"{arm}@{name}": best_run(results, arm, name) for arm in arms for name in documents}
    folders = [run["folder"] for entry in tuned_arms(results) for seed in entry["seeds"] for run in runs_of(seed)]
    return {**runs, **{folder: folder for folder in folders}}


def _best_trials(sweep: Path, results: Stored) -> Iterator[tuple[str, Path]]:
    """Of each arm the trial with the lowest dev loss among those whose artifacts are there, samples of dev last."""
    best: dict[str, tuple[bool, float, str, Path]] = {}
    for trial in results["search"]:
        name, loss = f"{trial['arm']}/{trial['number']}", trial["dev_loss"]
        folder = TrialFolder(sweep / "trials" / name).artifact
        if loss is not None and folder.is_dir():
            found = trial.get("is_sampled", False), loss, name, folder
            best[trial["arm"]] = min(best.get(trial["arm"], found), found)
    yield from ((name, folder) for *_, name, folder in best.values())
