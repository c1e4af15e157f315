"""Makes the self-study of a sweep's document before the search, unless it was made before.

It lies in the sweep's folder, `runs/NAME/documents/DOCUMENT`, where all workers see it. The same study of another sweep
in `runs` is copied.
"""

from dataclasses import replace

from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import WorkerSetup
from prefixray.config.schema import SweepConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.documents import Document, read_documents
from prefixray.data.documents.made import copy_made, find_made, is_made, made_from, study_record, the_document
from prefixray.data.documents.task import own_questions
from prefixray.data.task_config import TaskConfig
from prefixray.driver.documents.student import have_studied
from prefixray.driver.results_folder import ResultsFolder
from prefixray.errors import UserError
from prefixray.reporting.live import LiveView
from prefixray.results.hypotheses import check_data
from prefixray.search.status import View, title_of
from prefixray.system.path_or_hub import absolute


def is_to_study(config: SweepConfig) -> bool:
    """Whether the sweep's examples are made from a document, by its base."""
    return CATALOG[config.task.name].is_studied and config.task.exchanges is None


def task_with_exchanges(config: SweepConfig, folder: ResultsFolder) -> TaskConfig:
    """The task that workers load, with absolute paths: one over a document has its examples in the sweep's folder."""
    places = {key: absolute(path) for key, path in config.task.paths.items()}
    if is_to_study(config):
        places["exchanges"] = str(folder.documents.absolute())
    return config.task.model_copy(update=places)


def check_task(config: SweepConfig) -> None:
    """Read the task's local files before anything heavy starts. Raises `UserError` with what is wrong."""
    if is_to_study(config):
        check_document(config.task)
    else:
        check_data(config.task, config.final.named_metrics)


def check_document(task: TaskConfig) -> Document:
    """The task's document, before anything heavy starts; also reads a user's own questions.

    Raises `UserError` with what is wrong.
    """
    assert task.path is not None, "the task needs a path"
    document = the_document(read_documents(task.path), task.path)
    if task.test is not None:
        own_questions(task)
    return document


def make_study(
    config: SweepConfig,
    folder: ResultsFolder,
    cluster: Cluster,
    setup: WorkerSetup,
    *,
    live: LiveView,
) -> None:
    """Have the base study the sweep's document, if it has one that was not studied yet, and show how far it is.

    Raises `UserError` as `check_document` and the student do.
    """
    if not is_to_study(config):
        return
    document, seed = check_document(config.task), config.search.seed
    made = made_from(document, config.task, base=config.base, precision=config.train.precision, seed=seed)
    place = folder.documents / document.name
    if is_made(place, made):
        return
    if study_record(place) and folder.journal.is_file():
        problem = "was made from another document, base or settings, and trials have trained on it"
        raise UserError(f"{place}: {problem}; undo the change, or give this sweep another name")
    other = find_made(folder.path.parent, document.name, made)
    if other is not None:
        copy_made(other, place)
        live.event(f"self-study: the questions about {document.name} are those of {other}")
        return
    if not cluster.is_elastic:  # nobody else is at work on this machine
        setup = replace(setup, num_threads=cluster.num_threads * max(1, cluster.num_workers))

    def show(progress: str) -> None:
        live.update(View(title=title_of(config, folder.path), stage="self-study", message=progress))

    live.event(f"self-study: the base writes questions about {document.name}, and answers them")
    have_studied(cluster, setup, document, place.absolute(), made=made, seed=seed, on_progress=show)
    live.event(_summary(document.name, study_record(place)))


def _summary(name: str, record: dict[str, object]) -> str:
    """What was made, in a line."""
    empty = f"; {record['num_empty_answers']} empty answers were left out" if record["num_empty_answers"] else ""
    size = f"{record['num_tokens']} tokens in {record['num_chunks']} chunks"
    sees = f"the teacher sees the {record['teacher_sees']}"
    return f"self-study of {name}: {size}, {record['num_exchanges']} questions with answers{empty}; {sees}"
