"""A task's data is looked at before a sweep starts."""

import pytest

from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.results.hypotheses import check_data


def test_a_missing_folder_of_a_task_that_is_not_on_the_hub_is_told_before_anything_starts() -> None:
    with pytest.raises(UserError, match=r"^task\.path: data/dart: no such folder; dart reads that of its JSON files$"):
        check_data(TaskConfig(name="dart", path="data/dart"), ())
    check_data(TaskConfig(name="webnlg", path="data/dart"), ())  # a hub data set may be called so
