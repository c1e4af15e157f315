"""Requests as files in a sweep's folder."""

from pathlib import Path
from unittest import mock

import pytest

from prefixray.errors import UserError
from prefixray.search.requests import Answer, Finish, Inbox, Request, Stop


def test_a_request_is_answered_once_and_its_files_say_so(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.is_empty() and inbox.serve(lambda _, request: "never") == []
    first, second = inbox.post(Stop(trial="prefix/3")), inbox.post(Finish())
    seen: list[tuple[str, Request]] = []

    def act(request_id: str, request: Request) -> str | None:
        seen.append((request_id, request))
        return "stopped" if isinstance(request, Stop) else None

    assert inbox.serve(act) == ["stopped"]
    assert seen == [(first, Stop(trial="prefix/3")), (second, Finish())]
    assert inbox.answer(first, seconds=0) == Answer(ok=True, text="stopped")
    assert inbox.answer(second, seconds=0) is None and not inbox.is_empty()
    assert inbox.serve(lambda _, request: "done") == ["done"]
    assert inbox.is_empty() and len(seen) == 2
    assert sorted(path.name for path in (tmp_path / "control").iterdir()) == [f"{first}.done", f"{second}.done"]


def test_a_request_that_was_answered_but_not_removed_is_not_executed_again(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    request_id = inbox.post(Finish())
    (tmp_path / "control" / f"{request_id}.done").write_text('{"ok": true, "text": "finished"}')
    assert inbox.serve(lambda _, request: "again") == []
    assert not (tmp_path / "control" / f"{request_id}.json").exists()


def test_what_cannot_be_read_is_no_request_and_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path)
    request_id = inbox.post(Finish())
    (tmp_path / "control" / "1.json").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
        (told,) = inbox.serve(lambda _, request: "never")
    assert told.endswith(f"{request_id}.json: cannot be read: Permission denied")
    assert inbox.is_empty()


@pytest.mark.parametrize("content", ["", "{", '{"verb": "dance"}', '{"verb": "extend", "num_trials": true}'])
def test_what_is_no_request_is_answered_as_such(content: str, tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "1.json").write_text(content)
    assert "is no request" in Inbox(tmp_path).serve(lambda _, request: "never")[0]
    answer = Inbox(tmp_path).answer("1", seconds=0)
    assert answer is not None and not answer.ok


def test_what_goes_wrong_with_a_request_is_its_answer_and_the_next_is_served(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    first, second, third = (inbox.post(Finish()) for _ in range(3))

    def act(request_id: str, request: Request) -> str:
        if request_id == first:
            raise UserError("finish: not now")
        if request_id == second:
            raise RuntimeError("a defect")
        return "finished"

    assert len(inbox.serve(act)) == 3
    assert inbox.answer(first, seconds=0) == Answer(ok=False, text="finish: not now")
    defect = inbox.answer(second, seconds=0)
    assert defect is not None and not defect.ok and "sweep.log" in defect.text
    assert inbox.answer(third, seconds=0) == Answer(ok=True, text="finished")
