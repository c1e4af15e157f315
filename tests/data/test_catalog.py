"""The catalog of tasks: what is said of a task stands in its entry and nowhere else."""

import ast
from pathlib import Path

from prefixray.data import catalog
from prefixray.data.catalog import CATALOG, default_task, task_title
from prefixray.metrics import METRICS

ROOT = Path(catalog.__file__).parents[1]

OTHER_MEANINGS = {  # files in which a task's name is another thing's, too
    "document": (
        "data/own/look.py",  # a column that holds sources
        "data/summarization.py",  # the same, of XSum
        "data/documents/made.py",  # a key of a record
        "artifacts/store.py",  # the same
        "artifacts/model_card.py",  # the same
        "decoding/evaluate.py",  # the same
        "self_study/study.py",  # what the teacher sees
        "config/trials.py",  # where a prefix starts
        "methods/prefix.py",  # the same
    )
}


def literals(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_a_tasks_name_stands_in_its_entry_and_its_loaders_file_alone() -> None:
    words = {file.relative_to(ROOT).as_posix(): literals(file) for file in ROOT.rglob("*.py")}
    for name, facts in CATALOG.items():
        files = {file for file, of_file in words.items() if name in of_file}
        loader = facts.load.__module__.removeprefix("prefixray.").replace(".", "/") + ".py"
        assert files <= {"data/catalog.py", loader, *OTHER_MEANINGS.get(name, ())}, f"{name} is named in {files}"


def test_the_catalog_names_each_task_once() -> None:
    tree = ast.parse(Path(catalog.__file__).read_text(encoding="utf-8"))
    keys = [key.value for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys if key is not None]  # type: ignore[attr-defined]
    assert keys == list(CATALOG)


def test_every_metric_that_a_task_names_exists() -> None:
    assert {metric for facts in CATALOG.values() for metric in facts.metrics} == set(METRICS)


def test_a_title_is_told_of_every_name() -> None:
    assert (task_title("cnn_dm"), task_title("custom"), task_title("of-a-later-version")) == (
        "CNN/DailyMail",
        "custom",
        "of-a-later-version",
    )


def test_a_checkpoint_of_the_original_has_a_task_on_either_kind_of_base() -> None:
    assert [default_task(is_encoder_decoder=kind) for kind in (False, True)] == ["e2e", "xsum"]
