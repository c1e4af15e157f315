"""The task `document`: questions about a document and their answers, which the base itself has written.

`prefixray sweep` has them made before the search (`self_study`), and says by `task.exchanges` where they are.
"""

from pathlib import Path

from prefixray.data.documents.exchanges import TEACHERS, read_exchanges
from prefixray.data.documents.made import is_of_another_text, the_document
from prefixray.data.documents.read import read_documents
from prefixray.data.entries import DataConfig, Entry, Splits, read_file
from prefixray.data.own.custom import own_form
from prefixray.data.row_files import SPLITS
from prefixray.errors import UserError
from prefixray.system.path_or_hub import expanded


def load_document(config: DataConfig) -> Splits:
    """The exchanges of the document that `task.path` names; `task.test` may name a file of questions to test on.

    Raises `UserError` where the document or its exchanges cannot be read.
    """
    assert config.path is not None, "the task needs a path"
    document = the_document(read_documents(config.path), config.path)
    if config.exchanges is None:
        problem = f"the questions about {document.name} are not made yet: prefixray sweep makes them before its search"
        raise UserError(f"task.exchanges: {problem}")
    folder = expanded(config.exchanges) / document.name
    if is_of_another_text(folder, document):
        problem = f"is about another text than {config.path} has now"
        remedy = "name the text that it is about, or remove task.exchanges, and prefixray sweep studies this one"
        raise UserError(f"task.exchanges: {folder}: {problem}; {remedy}")
    splits = _entries(folder)
    return Splits(**(splits if config.test is None else {**splits, "test": own_questions(config)}))


def own_questions(config: DataConfig) -> list[Entry]:
    """The user's own questions and answers. Raises `UserError` with all problems of their file."""
    assert config.test is not None, "asked for where there is a file"
    return read_file("task.test", expanded(config.test), own_form(config))


def _entries(folder: Path) -> dict[str, list[Entry]]:
    """The exchanges of each split, with what the base expects at their answers. Raises `UserError`."""
    from prefixray.data.teacher import read_teachers  # imports numpy

    exchanges, teachers = read_exchanges(folder), read_teachers(folder / TEACHERS)
    if len(exchanges) != len(teachers):
        problem = f"has {len(teachers)} answers' predictions for {len(exchanges)} answers"
        raise UserError(f"{folder}: {problem}; delete it, and it is made again")
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for exchange, teacher in zip(exchanges, teachers, strict=True):
        answer = (exchange.answer,)
        splits[exchange.split].append(Entry(exchange.question, answer, answer, teacher=teacher))
    return splits
