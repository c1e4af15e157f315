"""Tasks: data sets as linearised text, split into train, dev and test, with the metrics that they are scored by.

A new family is one file here whose loader reads its splits as `Entry`s and gives them to `make_task`, and one case in
`load_task`.
"""

from typing import assert_never

from prefixray.config import TaskConfig
from prefixray.tasks.contract import Example, Sourced, Task
from prefixray.tasks.custom import load_custom
from prefixray.tasks.data_to_text import load_e2e, load_webnlg

__all__ = ["Example", "Sourced", "Task", "load_task"]


def load_task(config: TaskConfig) -> Task:
    """Read the task that a sweep file names, cut to the subsets it asks for. Raises `UserError` with all problems."""
    match config.name:
        case "e2e":
            return load_e2e(config)
        case "webnlg":
            return load_webnlg(config)
        case "custom":
            return load_custom(config)
        case _:
            assert_never(config.name)
