"""Chats: what becomes source and target, and what is said about one that has none."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.data_files import jsonl, write

from prefixray.data import Example, load_task
from prefixray.data.entries import ColumnsConfig, SplitConfig
from prefixray.data.own.chat import source_and_target
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError


def chat(*messages: str) -> list[dict[str, str]]:
    """`user: hello` as a message."""
    return [dict(zip(("role", "content"), message.split(": "), strict=True)) for message in messages]


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        (chat("user: Who? ", "assistant: I."), ("Who?", "I.")),
        (chat("system: Be brief.", "user: Who?", "assistant: I."), ("Be brief.\nWho?", "I.")),
        (
            chat("system: Be brief.", "user: Who?", "assistant: I.", "user: Why?", "assistant: So."),
            ("Be brief.\nuser: Who?\nassistant: I.\nuser: Why?", "So."),
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *chat("assistant: b")],
            ("a", "b"),
        ),
        ([], "must end with a message of role 'assistant', which is the target; it is empty"),
        (chat("user: a"), "must end with a message of role 'assistant', which is the target; it ends with 'user'"),
        (chat("assistant: a"), "has no message of a user in front of the answer"),
        (chat("system: s", "assistant: a"), "has no message of a user in front of the answer"),
        ("hello", "is text; it must be a list of messages"),
        ([{"from": "human"}], "message 1 is an object with from; it must be an object with role and content"),
        ([*chat("user: a"), {"role": "assistant", "content": " "}], "message 2 is empty"),
        ([{"role": "user", "content": 1}], "message 1 must have text as its role and its content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 must have text as its role and its content"),
    ],
)
def test_the_last_answer_is_the_target(messages: object, read: object) -> None:
    assert source_and_target(messages) == read


def test_a_file_of_chats_is_read_and_a_bad_one_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [{"messages": chat(f"user: q{n}", f"assistant: a{n}")} for n in range(4)]
    config = TaskConfig(
        name="custom",
        train=write(tmp_path / "train.jsonl", jsonl(rows)),
        split=SplitConfig(),
        columns=ColumnsConfig(messages="messages"),
    )
    task = load_task(config)
    found = {*task.train, *task.dev, *(Example(each.source, each.references[0]) for each in task.test_sources)}
    assert found == {Example(f"q{n}", f"a{n}") for n in range(4)} and len(task.train) == 2
    write(tmp_path / "train.jsonl", jsonl([*rows, {"messages": chat("user: q")}, {"chat": []}]))
    with pytest.raises(UserError) as caught:
        load_task(config)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "train.jsonl:5: \"messages\" must end with a message of role 'assistant', which is the target; "
        "it ends with 'user'",
        'train.jsonl:6: no "messages" column; columns are chat (set task.columns.messages)',
    ]


def saved(folder: Path, column: str, chats: Sequence[object]) -> TaskConfig:
    """A task that reads these chats from a folder of `datasets`."""
    import datasets

    datasets.Dataset.from_dict({column: chats}).save_to_disk(folder)
    return TaskConfig(name="custom", path=str(folder), split=SplitConfig(), columns=ColumnsConfig(messages=column))


def test_chats_of_datasets_without_an_answer_are_left_out_with_the_reason_and_a_wrong_form_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [chat(f"user: q{n}", "assistant: a") for n in range(8)]
    mixed = [*good, None, chat("user: q", "assistant:  "), *[[*each, *chat("user: thanks")] for each in good]]
    load_task(saved(tmp_path / "mixed", "messages", mixed))
    ends = "\"messages\" must end with a message of role 'assistant', which is the target; it ends with 'user' (8)"
    reasons = f'{ends}, "messages" is null; it must be a list of messages (1), "messages" message 2 is empty (1)'
    assert caplog.messages[:1] == [f"task.path: {tmp_path / 'mixed'}: train: 10 of 18 rows are left out: {reasons}"]
    shared = [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]] * 4
    with pytest.raises(UserError) as caught:
        load_task(saved(tmp_path / "shared", "conversations", shared))
    problem = "message 1 is an object with from, value; it must be an object with role and content"
    assert caught.value.problems == (f'task.path: {tmp_path / "shared"}: train: all 4 rows: "conversations" {problem}',)


def test_a_column_of_groups_may_be_called_like_the_columns_of_pairs(tmp_path: Path) -> None:
    rows = [{"source": "web", "target": "old", "messages": chat(f"user: q{n}", f"assistant: a{n}")} for n in range(4)]
    file = write(tmp_path / "chats.jsonl", jsonl(rows))
    for column, group in {"source": "web", "target": "old"}.items():
        columns = ColumnsConfig(messages="messages", group=column)
        task = load_task(TaskConfig(name="custom", train=file, dev=file, test=file, columns=columns))
        assert task.train[0] == Example("q0", "a0")
        assert {sourced.group for sourced in task.test_sources} == {group}
    alone = write(tmp_path / "alone.jsonl", jsonl([{"messages": row["messages"]} for row in rows]))
    for path, column, existing in ((file, "topic", "source, target, messages"), (alone, "source", "messages")):
        with pytest.raises(UserError, match=rf'no row has a "{column}" column; columns are {existing}(?!,)'):
            columns = ColumnsConfig(messages="messages", group=column)
            load_task(TaskConfig(name="custom", train=path, dev=path, test=path, columns=columns))
