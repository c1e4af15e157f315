"""Requests to a running sweep, as files in its folder, so that any machine that sees the folder can make a request.

A request is `control/ID.json` and its answer `control/ID.done`; IDs sort by time. A request without an answer waits for
the next driver. The driver records the effect of a request under the request's ID, so that a request is not executed
twice where a driver dies before it answers.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from prefixray.errors import UserError, is_of_disk
from prefixray.system.atomic_files import write_whole
from prefixray.system.records import Scalar, Strict

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # between two looks for an answer


class Stop(Strict):
    """Stop a trial for good."""

    verb: Literal["stop"] = "stop"
    trial: str
    """ARM/NUMBER."""


class Resume(Strict):
    """Let a paused trial go on, whatever the policy says of it."""

    verb: Literal["resume"] = "resume"
    trial: str
    """ARM/NUMBER."""


class Add(Strict):
    """Try a configuration of the user's choice next, as one more trial of its arm."""

    verb: Literal["add"] = "add"
    arm: str
    values: Mapping[str, Scalar]
    """A value of every searched key."""


class Extend(Strict):
    """Raise the number of trials."""

    verb: Literal["extend"] = "extend"
    num_trials: PositiveInt
    """More trials for each arm."""
    arm: str | None = None
    """Which arm; by default every arm that is searched."""


class Finish(Strict):
    """End the search with the trials that have started, and start the final stage."""

    verb: Literal["finish"] = "finish"
    let_run: bool = False
    """Whether the trials that have started go on as the policy says; else they are stopped."""


Request = Stop | Resume | Add | Extend | Finish
_PARSER: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="verb")])


class Answer(Strict):
    """The answer to a request."""

    ok: bool
    text: str
    """For the user; where the request failed, one problem a line."""


class Inbox:
    """The requests of one sweep."""

    def __init__(self, sweep: Path) -> None:
        self._folder = sweep / "control"

    def post(self, request: Request) -> str:
        """Leave a request; returns its ID."""
        request_id = f"{time.time_ns():020}-{secrets.token_hex(3)}"
        self._write(self._folder / f"{request_id}.json", request.model_dump(mode="json"))
        return request_id

    def answer(self, request_id: str, *, seconds: float) -> Answer | None:
        """Wait for the answer to a request; None where no driver has answered in time."""
        deadline = time.monotonic() + seconds
        path = self._folder / f"{request_id}.done"
        while not path.is_file():
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)
        return Answer.model_validate_json(path.read_text(encoding="utf-8"))

    def is_empty(self) -> bool:
        """Whether no request waits."""
        return not self._waiting()

    def serve(self, execute: Callable[[str, Request], str | None]) -> list[str]:
        """Execute and answer the requests that wait, oldest first; the texts of the answers.

        `execute` gets an ID and a request, and returns the text of the answer, or None to leave the request for later.
        An error in a request becomes its answer; only an `OSError` of the disk reaches the caller.
        """
        lines = []
        for path in self._waiting():
            answer = self._reply(path, execute)
            if answer is not None:
                self._write(path.with_suffix(".done"), answer.model_dump())
                path.unlink(missing_ok=True)
                lines.append(answer.text)
                logger.info("request %s: %s", path.stem, answer.text)
        return lines

    def _reply(self, path: Path, execute: Callable[[str, Request], str | None]) -> Answer | None:
        try:
            content = path.read_bytes()
        except OSError as error:
            return Answer(ok=False, text=f"{path}: cannot be read: {error.strerror}")
        try:
            text = execute(path.stem, _PARSER.validate_json(content, strict=True))
        except UserError as error:
            return Answer(ok=False, text=str(error))
        except ValidationError as error:
            return Answer(ok=False, text=f"{path}: is no request: {error}")
        except Exception as error:
            if is_of_disk(error):
                raise  # not the request's fault: the request waits for the next driver
            logger.exception("request %s has failed", path.stem)
            return Answer(ok=False, text=f"{path}: could not be executed; the sweep's sweep.log says why")
        return None if text is None else Answer(ok=True, text=text)

    def _waiting(self) -> list[Path]:
        """The requests without an answer; deletes a request that a driver answered before it died."""
        waiting = []
        for path in sorted(path for path in self._folder.glob("*.json") if path.is_file()):
            if path.with_suffix(".done").exists():
                path.unlink(missing_ok=True)
            else:
                waiting.append(path)
        return waiting

    def _write(self, path: Path, content: Mapping[str, object]) -> None:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(content) + "\n")
