"""A sweep file becomes a `SweepConfig`: read, and checked as a whole.

All problems of a file are reported at once, as `file:line: key: problem`, before anything heavy is imported. Paths in
the file are relative to the working directory, like the file's own path.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from prefixray.config.arms import read_arms
from prefixray.config.messages import explain, parse
from prefixray.config.scales import apply_evaluation, apply_scales
from prefixray.config.schema import ArmConfig, FinalConfig, SamplerName, SearchConfig, SweepConfig
from prefixray.config.space import LARGEST_GRID, Choice
from prefixray.config.trials import METHODS, TrainConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.documents import read_documents
from prefixray.data.entries import DataConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded, leads_nowhere
from prefixray.system.yaml_document import Document, Key, read_document, suggestion

_Section = TypeVar("_Section", bound=BaseModel)
_FILES = ("train", "dev", "test")


def load_sweep(
    path: Path | str, overrides: Sequence[str] = (), scales: Sequence[str] = (), *, elsewhere: bool = False
) -> SweepConfig:
    """Read a sweep file, with the values of the named scales and then of the overrides in place of its own.

    An override is written `dotted.key=value`, with the value in YAML. `elsewhere` says that the sweep will run on other
    machines, where absolute paths may lead to files that are not here.

    Raises `UserError` with every problem of the file, the scales and the overrides.
    """
    return load_document(read_document(path), overrides, scales, elsewhere=elsewhere)


def load_document(
    document: Document, overrides: Sequence[str] = (), scales: Sequence[str] = (), *, elsewhere: bool = False
) -> SweepConfig:
    """The configuration that a document holds. Raises `UserError` as `load_sweep` does."""
    apply_scales(document, scales)
    apply_overrides(document, overrides)
    apply_evaluation(document)
    config = _validated(document)
    train = _section(document, "train", TrainConfig)
    search = _section(document, "search", SearchConfig)
    num_trials = search.num_trials if search is not None else 1
    stand_in = TrainConfig(num_steps=2**62)  # where `train` has problems of its own
    arms = read_arms(document, train or stand_in, num_trials)
    _check_task(document, elsewhere=elsewhere)
    _check_base(document, elsewhere=elsewhere)
    _check_teachers(document, arms)
    _check_documents(document, search, arms)
    _check_search(document, search, train, arms)
    _check_sampler(document, search, arms)
    _check_final(document)
    _check_precision(document, arms)
    document.raise_problems()
    assert config is not None, "a file that cannot be read has problems"
    return config.model_copy(update={"arms": arms})


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Put the overrides' values in place of the document's own. Raises `UserError` for one of no certain key."""
    for override in overrides:
        _check_names_its_arm(override, document)
        document.override(override)


def _check_names_its_arm(override: str, document: Document) -> None:
    """Raise `UserError` for an override of an arm's key that does not say which arm."""
    key = override.partition("=")[0].strip()
    names = {name for method in METHODS.values() for name in method.model_fields} | {"learning_rate"}
    if key in names or key == "train.learning_rate":
        arms = document.mapping(("arms",)) or {"ARM": None}
        meant = (f"--set arms.{arm}.{override.removeprefix('train.')}" for arm in arms)
        raise UserError(f"--set {override}: is a value of an arm: {', '.join(meant)}")


def _validated(document: Document) -> SweepConfig | None:
    """The configuration without its arms. Its problems are added to the document's."""
    try:
        return parse(SweepConfig, {**document.values, "arms": []})
    except ValidationError as error:
        explain(error, SweepConfig, document)
        return None


def _section(document: Document, name: str, model: type[_Section]) -> _Section | None:
    """One section, or None where it is not valid: the checks of the other sections can still run."""
    values = document.values.get(name, {})
    try:
        return parse(model, values) if isinstance(values, dict) else None
    except ValidationError:
        return None


def _check_task(document: Document, *, elsewhere: bool) -> None:
    """The task must have the keys that it needs and no others, and its files must exist."""
    task = _section(document, "task", TaskConfig)
    if task is None:
        return
    used = (*CATALOG[task.name].keys, *CATALOG[task.name].form_keys)
    for key in DataConfig.model_fields:
        if key != "name" and key in task.model_fields_set and key not in used:
            document.complain(("task", key), f"is not used by task {task.name}: remove it")
    if CATALOG[task.name].needs_path and task.path is None:
        document.complain(("task", "path"), f"required for task {task.name}, but missing")
    _check_subsets(document, task)
    is_studied = CATALOG[task.name].is_studied
    away = {path for path in task.paths.values() if elsewhere and Path(path).is_absolute()}
    path, exchanges = (None if path in away else path for path in (task.path, task.exchanges))
    if "path" in used and path is not None and _is_missing(path, may_be_hub=not is_studied):
        document.refuse(
            ("task", "path"), f"no such {'file or ' * is_studied}folder; paths are relative to the working directory"
        )
    if is_studied and exchanges is not None and not expanded(exchanges).is_dir():
        document.refuse(("task", "exchanges"), "no such folder; paths are relative to the working directory")
    for key in (key for key in ("urls", *_FILES) if key in used):
        file = getattr(task, key)
        if file not in (None, *away) and not expanded(file).is_file():
            document.refuse(("task", key), "no such file; paths are relative to the working directory")
        elif is_studied:
            continue
        elif file is not None and key in _FILES and task.path is not None:
            document.complain(("task", key), "is not used beside task.path: remove one of them")
        elif file is None and key in _FILES and task.path is None:
            hint = "" if key == "train" else ", or task.split: {} to take it out of train"
            if not hint or task.split is None:
                problem = f"required for task {task.name}, but missing (or set task.path{hint})"
                document.complain(("task", key), problem)
    if task.split is not None and task.dev is not None and task.test is not None:
        document.complain(("task", "split"), "is not used beside task.dev and task.test: remove it")


def _is_missing(path: str, *, may_be_hub: bool) -> bool:
    """Whether nothing on this machine can be meant by the path."""
    return leads_nowhere(path) if may_be_hub else not expanded(path).exists()


def _check_subsets(document: Document, task: TaskConfig) -> None:
    """The size of the training set must be given by one key alone."""
    for key, others in {"fraction": ("num_train", "low_data"), "low_data": ("num_train", "num_dev")}.items():
        for other in others if getattr(task, key) is not None else ():
            if getattr(task, other) not in (None, "all"):
                document.complain(("task", other), f"is not used beside task.{key}: remove one of them")


def _check_base(document: Document, *, elsewhere: bool) -> None:
    base = document.values.get("base")
    if not isinstance(base, str) or ":" in base or (elsewhere and Path(base).is_absolute()):
        return
    if leads_nowhere(base) or (base.endswith(".gguf") and not expanded(base).is_file()):
        document.refuse(("base",), "no such file or folder; paths are relative to the working directory")


def _check_documents(document: Document, search: SearchConfig | None, arms: Sequence[ArmConfig]) -> None:
    """A task's documents must be readable, and as many as a search takes; no key for another kind of task is there."""
    task, asked = _section(document, "task", TaskConfig), None if search is None else search.documents
    if task is None:
        return
    if not CATALOG[task.name].is_studied:
        if asked is not None:
            document.complain(("search", "documents"), f"is not used by task {task.name}: remove it")
        return
    if task.low_data is not None:
        document.complain(("task", "low_data"), "is not used by task document, where each document is a set: remove it")
    if task.path is None or not expanded(task.path).exists():
        return
    try:
        count = len(read_documents(task.path))
    except UserError as error:
        for problem in error.problems:
            document.complain(("task", "path"), problem.removeprefix("task.path: "))
        return
    if asked is not None and asked > count:
        document.refuse(("search", "documents"), f"must be at most {count}, the documents of task.path")
    elif search is not None and search.num_searched(count) > 1:
        for arm in (arm for arm in arms if arm.exclusive and arm.dimensions):
            problem = "a trial over several documents has a model of its own for each: set search.documents: 1"
            document.complain(("arms", arm.name), f"{problem}, or remove the arm")


def _check_teachers(document: Document, arms: Sequence[ArmConfig]) -> None:
    """A teacher and a document must be the task's, and the trials of an arm must have dev losses of one kind."""
    task = _section(document, "task", TaskConfig)
    for arm in arms:
        objectives = _values(arm, "objective", arm.train.objective)
        if len(objectives) > 1 and "distill" in objectives:
            problem = "a divergence from a teacher cannot be compared with another dev/loss: write a second arm"
            document.complain(("arms", arm.name, "objective"), problem)
        if task is None or CATALOG[task.name].is_studied:
            continue
        if "distill" in objectives:
            is_own = "objective" in {**arm.fixed, **arm.dimensions}
            key: Key = ("arms", arm.name, "objective") if is_own else ("train", "objective")
            document.complain(key, f"distill needs a teacher, and task {task.name} has none: take token_mean")
        for start in sorted(_values(arm, "init_from", "words") - {"words"}):
            problem = f"{start} needs a document, and task {task.name} has none: take words"
            document.complain(("arms", arm.name, "init_from"), problem)


def _values(arm: ArmConfig, key: str, default: str) -> set[str]:
    """The words that a key of an arm can have as its value."""
    if key not in arm.dimensions:
        return {str(arm.fixed.get(key, default))}
    cases = arm.dimensions[key].cases
    return {str(end) for case in cases for end in case.ends()} | {default for case in cases if case.when}


def _check_search(
    document: Document, search: SearchConfig | None, train: TrainConfig | None, arms: Sequence[ArmConfig]
) -> None:
    """The rungs must lie within the schedule of every arm that is searched, and not before the end of its warm-up."""
    if search is None or train is None or search.rungs == "auto" or not search.rungs:
        return
    problems = [] if list(search.rungs) == sorted(set(search.rungs)) else ["must be ascending"]
    for arm in (arm for arm in arms if arm.dimensions):
        own = {**arm.fixed, **arm.dimensions}
        steps, warmup = (
            f"arms.{arm.name}.{key}" if key in own else f"train.{key}" for key in ("num_steps", "warmup_steps")
        )
        if max(search.rungs) >= arm.num_steps:
            problems.append(f"must be below {steps} ({arm.num_steps}), at which every trial ends")
        if search.rungs[0] < arm.largest("warmup_steps"):
            problems.append(f"the first must be at least {warmup} ({arm.largest('warmup_steps')})")
    for problem in dict.fromkeys(problems):
        document.refuse(("search", "rungs"), problem)


def _check_sampler(document: Document, search: SearchConfig | None, arms: Sequence[ArmConfig]) -> None:
    """The sampler must be installed, and able to take every arm's space."""
    if search is None:
        return
    key, name = ("search", "sampler"), search.sampler
    package = {"gp": "scipy", "cmaes": "cmaes"}.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        document.refuse(key, f"needs the package {package}: pip install 'prefixray[cmaes]'")
    for arm in arms:
        for place, problem in _unsampled(search.sampler, arm):
            document.refuse(key, f"{'.'.join(('arms', arm.name, *place))} {problem}, or take tpe or random")


def _unsampled(sampler: SamplerName, arm: ArmConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a sampler cannot take in an arm's space: the key within the arm, and a sentence about it without its end."""
    cases = [(name, case) for name, dimension in arm.dimensions.items() for case in dimension.cases]
    for name in dict.fromkeys(name for name, case in cases if case.when and sampler in ("gp", "cmaes")):
        yield (name,), f"has a condition, which {sampler} cannot take: write an arm for each case"
    for name in dict.fromkeys(name for name, case in cases if isinstance(case, Choice) and len(case.choice) > 1):
        if sampler == "cmaes":
            yield (name,), "is a choice, and cmaes takes ranges alone: give it a range or one value"
    num_ranges = len({name for name, case in cases if not isinstance(case, Choice)})
    if sampler == "cmaes" and cases and num_ranges < 2:
        yield (
            (),
            f"has {num_ranges} searched range{'' if num_ranges == 1 else 's'}, and cmaes needs two or more: add one",
        )
    endless = dict.fromkeys(name for name, case in cases if math.isinf(case.size()))
    for name in endless if sampler == "grid" else ():
        yield (name,), "is a range of floats, which has no grid: list its values in a choice"
    size = math.prod(dimension.size() for dimension in arm.dimensions.values())
    if sampler == "grid" and not endless and size > LARGEST_GRID:
        yield (), f"has {size:,.0f} points, and grid takes at most {LARGEST_GRID:,}: list fewer values"


def _check_precision(document: Document, arms: Sequence[ArmConfig]) -> None:
    """Weights that are trained in full cannot be stored in 4 bits."""
    for arm in arms:
        if arm.exclusive and arm.train.precision == "4bit":
            problem = "full fine-tuning trains the base's own weights, and train.precision 4bit stores them in 4 bits"
            document.complain(("arms", arm.name), f"{problem}: remove the arm, or take another precision")


def _check_final(document: Document) -> None:
    """The reference must be an arm, the metrics the task's, and the lengths must leave room for text."""
    final = _section(document, "final", FinalConfig)
    task = _section(document, "task", TaskConfig)
    arms = document.values.get("arms")
    if final is None:
        return
    if final.reference is not None and isinstance(arms, dict) and final.reference not in arms:
        hint = suggestion(final.reference, arms, what="the arms are")
        document.refuse(("final", "reference"), f"no such arm{hint}")
    if task is not None:
        _check_metrics(document, task, final)
    if final.min_new_tokens > final.max_new_tokens:
        key = "min_new_tokens" if "min_new_tokens" in final.model_fields_set else "max_new_tokens"
        document.refuse(("final", key), f"min_new_tokens must be at most max_new_tokens ({final.max_new_tokens})")


def _check_metrics(document: Document, task: TaskConfig, final: FinalConfig) -> None:
    """Every metric must be one of the task's. One that runs Java must be able to run on this machine."""
    metrics = [f"test/{metric}" for metric in CATALOG[task.name].metrics]
    named: list[tuple[Key, str]] = [(("final", "metric"), final.metric)]
    named += [(("final", "more_metrics", index), name) for index, name in enumerate(final.more_metrics)]
    for key, name in named:
        if ":" in name:
            from prefixray.metrics import METRICS, label  # imports sacrebleu
            from prefixray.metrics.own import own_label, own_metric  # imports numpy and the user's module

            try:
                own_metric(name)
            except UserError as error:
                document.complain(key, str(error))
            function = own_label(name)
            if function in map(label, METRICS):
                document.refuse(key, f"tables have a column {function} already: give the function another name")
            if any(other != name and own_label(other) == function for _, other in named if ":" in other):
                document.refuse(key, f"tables call two metrics {function}: give one of the functions another name")
        elif name not in metrics:
            known = ", ".join(metrics)
            document.refuse(key, f"must be one of {known} for task {task.name}, or your own package.module:function")
        elif name == "test/divergence" and task.test is not None:
            remedy = "take test/perplexity, or leave task.test out"
            document.refuse(key, f"compares with the teacher, which has not seen the answers of task.test: {remedy}")
        elif name == "test/meteor_1_5":
            from prefixray.metrics.meteor import meteor_problem  # imports sacrebleu and numpy, so only on demand

            if problem := meteor_problem():
                document.refuse(key, problem)
