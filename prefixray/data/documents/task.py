"""The task `document`: questions about documents and their answers, which the base itself has written.

`prefixray sweep` has them made before the search (`self_study`), and says by `task.exchanges` where they are.
"""

from collections.abc import Sequence
from dataclasses import replace

from prefixray.data.documents.exchanges import TEACHERS, read_exchanges
from prefixray.data.documents.made import is_of_another_text
from prefixray.data.documents.read import Document, read_documents
from prefixray.data.entries import DataConfig, Entry, Splits
from prefixray.data.own.custom import check_groups, own_form
from prefixray.data.read_entries import read_file
from prefixray.data.row_files import SPLITS, for_each_split
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded

_NUM_SHOWN = 5


def load_document(config: DataConfig, name: str | None = None) -> Splits:
    """The exchanges of the documents that `task.path` names, or of the one with this name among them.

    `task.test` may name a file of questions to test on. Raises `UserError` where a document or its exchanges cannot be
    read, or none has the name.
    """
    assert config.path is not None, "the task needs a path"
    documents = read_documents(config.path)
    if config.exchanges is None:
        about = documents[0].name if len(documents) == 1 else f"{len(documents)} documents"
        problem = f"the questions about {about} are not made yet: prefixray sweep makes them before its search"
        raise UserError(f"task.exchanges: {problem}")
    known = {document.name: document for document in documents if name in (None, document.name)}
    if not known:
        names = ", ".join(document.name for document in documents)
        raise UserError(f"task.path: {config.path}: has no document {name}, but {names}")
    found = for_each_split(lambda name: _entries(config, known[name]), known)
    splits = {split: [entry for parts in found.values() for entry in parts[split]] for split in SPLITS}
    return Splits(**(splits if config.test is None else {**splits, "test": own_questions(config, documents)}))


def own_questions(config: DataConfig, documents: Sequence[Document]) -> list[Entry]:
    """The user's own questions and answers. Raises `UserError` with all problems of their file.

    With several documents `columns.group` says which one a question is about.
    """
    assert config.test is not None, "asked for where there is a file"
    names, file = [document.name for document in documents], expanded(config.test)
    form = own_form(config)
    entries = read_file("task.test", file, form)
    if len(names) == 1:
        check_groups(form)
        return [replace(entry, document=names[0]) for entry in entries]
    column = config.columns.group
    if column is None:
        problem = f"must say which of {len(names)} documents each question is about"
        raise UserError(f"task.test: {config.test}: {problem}; name the column with their names as task.columns.group")
    unknown = dict.fromkeys(entry.group for entry in entries if entry.group not in names)
    if unknown:
        given = ", ".join("none" if name is None else repr(name) for name in [*unknown][:_NUM_SHOWN])
        raise UserError(f'{file}: "{column}": {given}: no document of task.path: {config.path}')
    return [replace(entry, document=entry.group) for entry in entries]


def _entries(config: DataConfig, document: Document) -> dict[str, list[Entry]]:
    """The exchanges of each split about a document, with what the base expects at their answers. Raises `UserError`."""
    from prefixray.data.teacher import read_teachers  # imports numpy

    assert config.exchanges is not None, "they are made"
    folder = expanded(config.exchanges) / document.name
    if is_of_another_text(folder, document):
        problem = f"is about another text than {config.path} has now"
        remedy = "name the text that it is about, or remove task.exchanges, and prefixray sweep studies this one"
        raise UserError(f"task.exchanges: {folder}: {problem}; {remedy}")
    exchanges, teachers = read_exchanges(folder), read_teachers(folder / TEACHERS)
    if len(exchanges) != len(teachers):
        problem = f"has {len(teachers)} answers' predictions for {len(exchanges)} answers"
        raise UserError(f"{folder}: {problem}; delete it, and it is made again")
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for exchange, teacher in zip(exchanges, teachers, strict=True):
        answer = (exchange.answer,)
        splits[exchange.split].append(Entry(exchange.question, answer, answer, teacher=teacher, document=document.name))
    return splits
