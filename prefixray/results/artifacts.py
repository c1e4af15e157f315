"""The artifacts of a sweep: which is the best one, and how its final stage has decoded with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefixray.config.files.found import find_sweep
from prefixray.config.identity import stored_config
from prefixray.config.schema import Evaluation
from prefixray.data.documents.made import FOLDER
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.metrics import higher_is_better
from prefixray.results.hypotheses import Split, read_split_record
from prefixray.results.record import ArmResult, Results, SeedResult, is_finished, load_results, runs_of
from prefixray.system.path_or_hub import leads_nowhere
from prefixray.trial import TrialFolder


def best_run(results: Mapping[str, Any], arm: str | None, document: str | None = None) -> str:
    """The folder of an arm's run with the first seed, relative to the sweep's folder.

    Without `arm` it is the best arm that tunes a prefix, or the best of all arms where none does. `document` must be
    named where there are several. Raises `UserError` for an arm that has no artifact, and an unknown document.
    """
    tuned = {entry["arm"]: entry for entry in results["arms"] if entry["method"] is not None}
    if arm is None:
        sign = 1.0 if higher_is_better(results["metric"]) else -1.0
        candidates = [entry for entry in tuned.values() if entry["method"] == "prefix"] or list(tuned.values())
        if not candidates:
            raise UserError("no final run of this sweep has ended well; there is nothing to decode")
        chosen = max(candidates, key=lambda entry: sign * entry["scores"][results["metric"]]["value"])
    elif arm in tuned:
        chosen = tuned[arm]
    else:
        raise UserError(f"--arm: {arm}: no tuned arm of this sweep; they are {', '.join(tuned)}")
    run = min(chosen["seeds"], key=lambda run: run["seed"])
    documents = run.get("documents", {})
    if document is None and len(documents) < 2:
        return str(run["folder"])
    if document not in documents:
        known = f"they are {', '.join(documents)}" if documents else "it has none"
        asked = f"{document}: no document of this sweep" if document else f"name one of {len(documents)} documents"
        raise UserError(f"--document: {asked}; {known}")
    return str(documents[document]["folder"])


@dataclass(frozen=True)
class Found:
    """An artifact, and how its sweep has decoded and by what it scored; one that lies elsewhere has no sweep."""

    artifact: Path
    sweep: Path | None = None
    metrics: Sequence[str] = ()
    decoding: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = "own"
    machine: Mapping[str, Any] = field(default_factory=dict)

    def num_threads(self, split: Split) -> int | None:
        """The threads with which the split was decoded on a CPU; None where no record says so."""
        beside = read_split_record(self.artifact.parent, split)
        made_on = beside if "num_threads" in beside else self.machine
        count = made_on.get("num_threads")
        return count if made_on.get("device") == "cpu" and isinstance(count, int) else None


@dataclass(frozen=True)
class Origin:
    """The final run of a finished sweep that an artifact comes from."""

    results: Results
    arm: ArmResult
    run: SeedResult
    folder: Path  # of the run
    document: str | None = None  # that the run is about, where there are several

    @property
    def first_source(self) -> str:
        """The first source that the run has decoded; "..." where it has none."""
        results = self.results
        if self.document is None:
            return results["examples"][0]["source"] if results["examples"] else "..."
        file = self.folder / f"{results['split']}.src"
        sources = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return sources[0] if sources else "..."


def sweep_of(artifact: Path) -> Path | None:
    """The folder of the sweep that an artifact of a final run or of a trial lies in; None where it lies elsewhere."""
    within = artifact.resolve().parent.parents  # of SWEEP/final/RUN, or of SWEEP/trials/ARM/NUMBER
    lies_in = {"final": within[0], "trials": within[1]}
    above = [folder.parent for name, folder in lies_in.items() if folder.name == name]
    return next((folder for folder in above if (folder / "sweep.json").is_file()), None)


def find_origin(artifact: Path) -> Origin | None:
    """The final run that an artifact belongs to, found by the artifact's path; None outside a finished sweep."""
    sweep = sweep_of(artifact)
    if sweep is None or not (sweep / "results.json").is_file():
        return None
    results = load_results(sweep)
    if not is_finished(results):
        return None
    folder = artifact.resolve().parent.relative_to(sweep).as_posix()
    for arm in results["arms"]:
        for seed in arm["seeds"]:
            documents = list(seed.get("documents", ()))
            for index, result in enumerate(runs_of(seed)):
                if result["folder"] == folder:
                    document = documents[index] if len(documents) > 1 else None
                    return Origin(results, arm, result, sweep / folder, document)
    return None


def best_artifact(folder: Path, arm: str | None = None, document: str | None = None) -> Found:
    """The artifact of `best_run` in a sweep's folder, and how its final stage has decoded."""
    results = load_results(folder)
    if not is_finished(results):
        has_any = next(folder.glob("trials/*/*/artifact"), None) is not None
        kept = f"decode one of its trials: {folder}/trials/ARM/NUMBER/artifact"
        none = "its trials have left no artifact, as in every search over several documents: let the sweep go on"
        raise UserError(f"{folder}: no final stage yet; {kept if has_any else none}")
    return _found(TrialFolder(folder / best_run(results, arm, document)).artifact, folder, results)


def _found(artifact: Path, sweep: Path, results: Results) -> Found:
    """The artifact of a final run of a finished sweep."""
    evaluation: Evaluation = "paper" if results.get("evaluation") == "paper" else "own"
    return Found(artifact, sweep, results["metrics"], results["decoding"], evaluation, results["machine"])


def base_of(sweep: Path | None, record: Mapping[str, Any]) -> str:
    """Where an artifact's base lies: by its record, or where its sweep's file says, if nothing is there.

    A sweep's folder may have been moved, or fetched from a cluster.
    """
    name: str = record["base"]["name"]
    return stored_config(sweep).base if sweep is not None and leads_nowhere(name) else name


def base_and_task(found: Found, record: Mapping[str, Any]) -> tuple[str, TaskConfig]:
    """Where an artifact's base and data lie, by the rule of `base_of`."""
    base, task = base_of(found.sweep, record), TaskConfig.model_validate(record["task"])
    lost = [key for key, path in task.paths.items() if leads_nowhere(path)]
    if found.sweep is None or not lost:
        return base, task
    of_sweep = {"exchanges": str(found.sweep / FOLDER), **stored_config(found.sweep).task.paths}
    return base, task.model_copy(update={key: of_sweep[key] for key in lost if key in of_sweep})


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds what was trained."""
    return any(folder.glob("*_config.json"))


def find_artifact(where: str, arm: str | None = None, document: str | None = None) -> Found:
    """The artifact in the folder `where`, or the `best_artifact` of the sweep that `find_sweep` finds there.

    Raises `UserError` where there is none, and for `arm` or `document` beside an artifact's own folder.
    """
    artifact = Path(where)
    if not is_artifact(artifact):
        return best_artifact(find_sweep(where), arm, document)
    if given := [option for option, value in (("--arm", arm), ("--document", document)) if value is not None]:
        raise UserError(f"{', '.join(given)}: chooses in a sweep, and {where} is one artifact; leave it out")
    sweep, origin = sweep_of(artifact), find_origin(artifact)
    return Found(artifact, sweep) if sweep is None or origin is None else _found(artifact, sweep, origin.results)
