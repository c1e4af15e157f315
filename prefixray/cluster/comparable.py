"""Whether the trials of one worker can go on in another: the same data and weights, tokens and precision."""

from dataclasses import replace

from prefixray.cluster.worker import WorkerSetup
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.training.facts import WorkerFacts


def difference(setup: WorkerSetup, first: WorkerFacts, facts: WorkerFacts) -> UserError | None:
    """Why trials would not go on in another worker as they have begun; None where they would."""
    if facts.data_digest != first.data_digest:
        return other_data(setup.task)
    if facts.base_digest != first.base_digest:
        problem = "has not the weights that the sweep's first worker has loaded"
        remedy = "undo the change, or have the same files on every machine, and run the same command again"
        return UserError(f"base: {setup.base}: {problem}; {remedy}")
    if facts.rows_digest != first.rows_digest:
        problem = "its tokenizer or its chat format makes other tokens of the data than that of the first worker"
        remedy = "undo the change, or have the same files and the same packages on every machine"
        return UserError(f"base: {setup.base}: {problem}; {remedy}, and run the same command again")
    if facts.precision != first.precision:
        problem = f"auto is {facts.precision} on this device, and {first.precision} on the one of the first worker"
        remedy = "name one of them in the sweep file, or have devices of one kind"
        begun = f"when a sweep that has begun is run again, all its workers take {first.precision}"
        return UserError(f"train.precision: {problem}; {remedy}; {begun}")
    return None


def other_data(task: TaskConfig) -> UserError:
    """What is said where the task's files have changed since the sweep's first worker read them."""
    where = ", ".join(f"task.{key}: {path}" for key, path in task.paths.items()) or f"task: {task.name}"
    problem = "is not what the sweep's first worker has read"
    return UserError(f"{where}: {problem}; undo the change, and run the same command again")


def as_begun(setup: WorkerSetup, precision: str | None, commit: str | None) -> WorkerSetup:
    """The setup of workers that take this precision on any device, and this commit of a hub's base, where known."""
    train = setup.train if precision is None else setup.train.model_copy(update={"precision": precision})
    return replace(setup, train=train, commit=commit or setup.commit)
