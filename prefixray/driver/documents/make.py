"""Makes the self-study of a sweep's documents before the search, but for those that were studied before.

It lies in the sweep's folder, `runs/NAME/documents/DOCUMENT`, where all workers see it. The same study of another sweep
in `runs` is copied.
"""

import json
from dataclasses import replace

from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import WorkerSetup
from prefixray.config.schema import SweepConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.documents import Document, read_documents
from prefixray.data.documents.made import check_teacher, copy_made, find_made, is_made, made_from, study_record
from prefixray.data.documents.task import own_questions
from prefixray.data.task_config import TaskConfig
from prefixray.driver.documents.student import Assignment, have_studied
from prefixray.driver.results_folder import ResultsFolder
from prefixray.errors import UserError
from prefixray.reporting.live import LiveView
from prefixray.results.hypotheses import check_data
from prefixray.search.status import View, title_of
from prefixray.system.atomic_files import write_whole
from prefixray.system.path_or_hub import absolute, expanded


def is_to_study(config: SweepConfig) -> bool:
    """Whether the sweep's examples are made from documents, by its base."""
    return CATALOG[config.task.name].is_studied and config.task.exchanges is None


def document_names(task: TaskConfig) -> tuple[str, ...]:
    """The names of the task's documents, in their order; none where the task has none."""
    if not CATALOG[task.name].is_studied:
        return ()
    assert task.path is not None, "the task needs a path"
    return tuple(document.name for document in read_documents(task.path))


def task_with_exchanges(config: SweepConfig, folder: ResultsFolder) -> TaskConfig:
    """The task that workers load, with absolute paths: one over documents has its examples in the sweep's folder."""
    places = {key: absolute(path) for key, path in config.task.paths.items()}
    if is_to_study(config):
        places["exchanges"] = str(folder.documents.absolute())
    return config.task.model_copy(update=places)


def check_task(config: SweepConfig) -> str | None:
    """Read the task's local files before anything heavy starts. Raises `UserError` with what is wrong.

    Returns the task's digest; None where it is not known yet.
    """
    if not is_to_study(config):
        return check_data(config.task, config.final.named_metrics)
    check_documents(config.task)
    return None


def check_documents(task: TaskConfig) -> tuple[Document, ...]:
    """The task's documents, before anything heavy starts; also reads a user's own questions.

    Raises `UserError` with what is wrong.
    """
    assert task.path is not None, "the task needs a path"
    documents = read_documents(task.path)
    if task.test is not None:
        own_questions(task, documents)
    return documents


def keep_searched(config: SweepConfig, folder: ResultsFolder) -> SweepConfig:
    """The configuration with the number of documents that the search trains on; the first run writes their names down.

    Once trials have trained on them, they stay the first ones. Others may come behind them or go: the final stage
    trains what is there. Raises `UserError` where others would be the first.
    """
    names, file = document_names(config.task), folder.searched_documents
    if not folder.has_begun() and names:
        write_whole(file, json.dumps(names[: config.search.num_searched(len(names))]) + "\n")
    if not file.is_file():
        return config
    before = json.loads(file.read_text(encoding="utf-8"))
    first = [*names[: len(before)]]
    if first != before:
        problem = f"trials have trained on {', '.join(before)}, and now {', '.join(first)} would be the first"
        remedy = "undo the change, name new ones so that they come behind, or give this sweep another name"
        raise UserError(f"task.path: {config.task.path}: {problem}; {remedy}")
    return config.model_copy(update={"search": config.search.model_copy(update={"documents": len(before)})})


def check_teachers(config: SweepConfig, folder: ResultsFolder, base_digest: str) -> None:
    """Raise `UserError` where another base is the teacher that an arm distills, or that test/divergence compares with.

    `base_digest` is that of the base that the workers have loaded.
    """
    is_distilled = any(arm.trial(next(arm.corners())).objective == "distill" for arm in config.arms)
    if is_distilled or "test/divergence" in config.final.named_metrics:
        given, names = config.task.exchanges, document_names(config.task)
        studies = folder.documents if given is None else expanded(given)
        check_teacher(studies, names, base=config.base, digest=base_digest, is_own=given is None)


def make_study(
    config: SweepConfig,
    folder: ResultsFolder,
    cluster: Cluster,
    setup: WorkerSetup,
    *,
    live: LiveView,
) -> None:
    """Have the base study those of the sweep's documents that were not studied yet, and show how far it is.

    Raises `UserError` as `check_documents` and the student do.
    """
    if not is_to_study(config):
        return
    documents, seed = check_documents(config.task), config.search.seed
    left = [assignment for each in documents if (assignment := _assignment(config, folder, each, live)) is not None]
    if not left:
        return
    if not cluster.is_elastic:  # nobody else is at work on this machine
        setup = replace(setup, num_threads=cluster.num_threads * max(1, cluster.num_workers))
    num_done = 0

    def show(progress: str) -> None:
        of_all = "" if len(left) == 1 else f"document {num_done + 1} of {len(left)}: "
        live.update(View(title=title_of(config, folder.path), stage="self-study", message=of_all + progress))

    def tell(done: Assignment) -> None:
        nonlocal num_done
        num_done += 1
        live.event(_summary(done.document.name, study_record(done.folder)))

    about = left[0].document.name if len(left) == 1 else f"{len(left)} documents"
    live.event(f"self-study: the base writes questions about {about}, and answers them")
    have_studied(cluster, setup, left, seed=seed, on_progress=show, on_done=tell)


def _assignment(config: SweepConfig, folder: ResultsFolder, document: Document, live: LiveView) -> Assignment | None:
    """The document as one that is to be studied; None where it was studied, or another sweep has done so."""
    seed = config.search.seed
    made = made_from(document, config.task, base=config.base, precision=config.train.precision, seed=seed)
    place = folder.documents / document.name
    if is_made(place, made):
        return None
    if study_record(place) and folder.has_begun():
        problem = "was made from another document, base or settings, and this sweep has trials already"
        raise UserError(f"{place}: {problem}; undo the change, or give this sweep another name")
    other = find_made(folder.path.parent, document.name, made, config.base)
    if other is None:
        return Assignment(document, place.absolute(), made)
    copy_made(other, place)
    live.event(f"self-study: the questions about {document.name} are those of {other}")
    return None


def _summary(name: str, record: dict[str, object]) -> str:
    """What was made, in a line."""
    empty = f"; {record['num_empty_answers']} empty answers were left out" if record["num_empty_answers"] else ""
    size = f"{record['num_tokens']} tokens in {record['num_chunks']} chunks"
    sees = f"the teacher sees the {record['teacher_sees']}"
    return f"self-study of {name}: {size}, {record['num_exchanges']} questions with answers{empty}; {sees}"
