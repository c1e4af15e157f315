"""Tasks: data sets as pairs of texts, split into train, dev and test, with the metrics that they are scored by.

A new family is one file here whose loader reads its splits as `Entry`s and gives them to `make_task`, and one case in
`load_task`.
"""

from typing import assert_never

from prefixray.data.custom import load_custom, load_own_summaries
from prefixray.data.data_to_text import load_dart, load_e2e, load_webnlg
from prefixray.data.summarization import load_extrapolation, load_summaries
from prefixray.data.task import Example, Sourced, Subset, Task
from prefixray.data.task_config import TaskConfig

__all__ = ["Example", "Sourced", "Subset", "Task", "load_task"]


def load_task(config: TaskConfig) -> Task:
    """Read the task that a sweep file names, cut to the subsets it asks for. Raises `UserError` with all problems."""
    match config.name:
        case "e2e":
            return load_e2e(config)
        case "webnlg":
            return load_webnlg(config)
        case "dart":
            return load_dart(config)
        case "custom":
            return load_custom(config)
        case "xsum" | "cnn_dm" | "dialogsum" | "scitldr":
            return load_summaries(config)
        case "xsum_news" | "xsum_sport":
            return load_extrapolation(config)
        case "summarization":
            return load_own_summaries(config)
        case _:
            assert_never(config.name)
