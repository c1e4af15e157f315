"""The one data set that ships with prefixray, read once."""

import pytest

from prefixray.data import Task, load_task
from prefixray.data.task_config import TaskConfig


@pytest.fixture(scope="session")
def e2e() -> Task:
    return load_task(TaskConfig(name="e2e"))
