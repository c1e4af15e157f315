"""A task over several documents: each is a subset of its own, and its questions are told apart from others'."""

from pathlib import Path

import numpy as np
import pytest

from prefixray.data import Task, load_task
from prefixray.data.documents.exchanges import TEACHERS, Exchange, StudySplit, write_exchanges
from prefixray.data.task_config import TaskConfig
from prefixray.data.teacher import Teacher, write_teachers
from prefixray.errors import UserError

COUNTS: dict[StudySplit, int] = {"train": 3, "dev": 2, "test": 2}


def folder_of(place: Path, **texts: str) -> TaskConfig:
    """A task over these documents, about each of which the same questions are asked."""
    for name, text in texts.items():
        (place / "texts").mkdir(exist_ok=True)
        (place / "texts" / f"{name}.txt").write_text(text)
        exchanges = [
            Exchange(split, "question", 0, 1, f"What is {split} {number}?", f"{name} {number}")
            for split, count in COUNTS.items()
            for number in range(count)
        ]
        made = place / "made" / name
        made.mkdir(parents=True)
        write_exchanges(made, exchanges)
        one = Teacher(np.zeros((2, 1), np.int32), np.log([[0.5]] * 2).astype(np.float32), np.log([0.5] * 2))
        write_teachers(made / TEACHERS, [one] * len(exchanges))
    return TaskConfig(name="document", path=str(place / "texts"), exchanges=str(place / "made"))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(folder_of(tmp_path, eagle="About a pub.", mill="About a mill."))


def test_each_document_has_its_own_rows_and_its_own_questions(task: Task) -> None:
    assert [document.name for document in task.documents] == ["eagle", "mill"]
    for name, subset in zip(("eagle", "mill"), task.subsets, strict=True):
        assert subset.document is not None and subset.document.name == name
        assert [example.target for example in subset.train] == [f"{name} {number}" for number in range(3)]
        assert [example.target for example in subset.dev] == [f"{name} {number}" for number in range(2)]
    answers = [(sourced.document, sourced.references) for sourced in task.test_sources]
    assert answers == [(name, (f"{name} {number}",)) for name in ("eagle", "mill") for number in range(2)]
    assert [sourced.document for sourced in task.dev_sources] == ["eagle", "eagle", "mill", "mill"]
    assert task.num_test_total == 4 and task.leaks == ()


def test_counts_hold_for_each_document_and_its_data_is_what_it_is_alone(tmp_path: Path) -> None:
    config = folder_of(tmp_path, eagle="About a pub.", mill="About a mill.").model_copy(
        update={"num_train": 2, "num_test": 1}
    )
    both = load_task(config)
    for subset, name in zip(both.subsets, ("eagle", "mill"), strict=True):
        alone = load_task(config.model_copy(update={"path": str(tmp_path / "texts" / f"{name}.txt")}))
        assert len(alone.train) == 2 and alone.subsets == (subset,)
        assert alone.test_sources == tuple(each for each in both.test_sources if each.document == name)
        assert len(alone.test_sources) == 1 and alone.digest != both.digest


def test_one_document_is_read_without_the_others_exchanges(tmp_path: Path) -> None:
    config = folder_of(tmp_path, eagle="About a pub.", mill="About a mill.")
    both = load_task(config)
    (tmp_path / "texts" / "new.txt").write_text("It has no exchanges yet.")
    alone = load_task(config, "mill")
    assert alone.subsets == both.subsets[1:] and alone.documents == both.documents[1:]
    assert alone.test_sources == both.test_sources[2:] and alone.dev_sources == both.dev_sources[2:]
    with pytest.raises(UserError, match="has no document inn, but eagle, mill, new"):
        load_task(config, "inn")


def test_a_users_own_questions_say_which_document_they_are_about(tmp_path: Path) -> None:
    rows = ['{"source": "Where?", "target": "Here.", "about": "mill"}']
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    config = folder_of(tmp_path, eagle="About a pub.", mill="About a mill.")
    own = {"test": str(tmp_path / "own.jsonl")}
    with pytest.raises(UserError, match="must say which of 2 documents each question is about"):
        load_task(config.model_copy(update=own))
    columns = config.columns.model_copy(update={"group": "about"})
    config = config.model_copy(update={**own, "columns": columns})
    (sourced,) = load_task(config).test_sources
    assert (sourced.document, sourced.source) == ("mill", "Where?")
    eagle = load_task(config, "eagle")
    assert eagle.test_sources == () and len(eagle.dev_sources) == 2


def test_a_column_of_groups_that_no_question_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"source": "Where?", "target": "Here.", "topic": "place"}\n')
    config = folder_of(tmp_path, mill="About a mill.").model_copy(update={"test": str(tmp_path / "own.jsonl")})

    def grouped_by(column: str) -> Task:
        columns = config.columns.model_copy(update={"group": column})
        return load_task(config.model_copy(update={"columns": columns}))

    assert grouped_by("topic").test_sources[0].group == "place"
    with pytest.raises(UserError, match='no row has a "topik" column; columns are source, target, topic'):
        grouped_by("topik")
