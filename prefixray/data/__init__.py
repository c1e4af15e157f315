"""Tasks: data sets as pairs of texts, split into train, dev and test.

In: a `TaskConfig`, which names a task of the catalog, its files and how much of them is used. Out: a `Task` with its
examples, its test sources and their references.
Read first: `catalog.py`, then `task.py`.
"""

from prefixray.data.catalog import CATALOG
from prefixray.data.documents import read_documents
from prefixray.data.documents.task import load_document
from prefixray.data.own.custom import check_columns, load_own_data
from prefixray.data.task import Example, Sourced, Subset, Task, make_task
from prefixray.data.task_config import TaskConfig

__all__ = ["Example", "Sourced", "Subset", "Task", "check_own_data", "load_task"]


def check_own_data(config: TaskConfig) -> None:
    """Refuse a user's own files whose columns are wrong, by their first rows. Raises `UserError` with all problems."""
    if CATALOG[config.name].load is load_own_data:
        check_columns(config)


def load_task(config: TaskConfig, document: str | None = None) -> Task:
    """Read the task that a sweep file names, cut to the subsets it asks for. Raises `UserError` with all problems.

    Of several documents only the one called `document` is in the task, where it is given.
    """
    facts = CATALOG[config.name]
    splits = facts.load(config) if document is None else load_document(config, document)
    documents = read_documents(config.path) if facts.is_studied and config.path is not None else ()
    about = [each for each in documents if document in (None, each.name)]
    return make_task(config, splits, facts.kind.metrics, documents=about)
