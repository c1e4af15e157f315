"""What is said where: the log's file, the terminal, and a log that others write to."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefixray.system.logs import followed, to_file


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger("prefixray")
    handlers, propagate = root.handlers, root.propagate
    yield
    root.handlers, root.propagate = handlers, propagate


@pytest.mark.parametrize(
    ("terminal", "shown"), [(logging.WARNING, "mind\nwrong\n"), (logging.ERROR, "wrong\n"), (None, "")]
)
def test_the_file_has_all_and_the_terminal_what_is_bad_enough(
    terminal: int | None, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_file(tmp_path / "sweep.log", terminal=terminal)
    logger = logging.getLogger("prefixray.driver.run")
    logger.info("chosen")
    logger.warning("mind")
    logger.error("wrong")
    assert capsys.readouterr().err == shown
    lines = (tmp_path / "sweep.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["chosen", "mind", "wrong"]


def test_a_followed_file_shows_what_is_added_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.log"
    path.write_text("before\n")
    with followed(path), path.open("a") as file:
        file.write("from a worker\n")
        file.flush()
        shown, deadline = "", time.monotonic() + 60
        while not shown and time.monotonic() < deadline:
            time.sleep(0.05)
            shown = capsys.readouterr().err
        assert shown == "from a worker\n"
        file.write("at the end\n")
    assert capsys.readouterr().err == "at the end\n"
    with path.open("a") as file:
        file.write("after\n")
    assert capsys.readouterr().err == ""
