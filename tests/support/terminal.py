"""The live view in a pseudo-terminal of any size."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap

from prefixray.search.status import Row, State, View

TITLE = "quickstart  SmolLM2-135M on e2e   8 trials, 4 at once in one pack   runs/quickstart"


def row(number: int, state: State = "running", step: int = 0, score: float | None = None, preseqlen: int = 5) -> Row:
    values = {"preseqlen": preseqlen, "mid_dim": None, "init_token": "restaurant", "learning_rate": 1e-3 * number}
    return Row("prefix", number, values, step, 40, score, state)


def view(*rows: Row, stage: str = "search") -> View:
    return View(TITLE, stage, rows)


def shown(
    script: str, *, height: int = 24, width: int = 110, resized: tuple[int, int] | None = None
) -> tuple[str, str]:
    """Run a script in a terminal of this size; everything it wrote, and the screen at the end.

    Where the script prints "now" the terminal is resized to another height and width; it shall wait for that.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    program = "from prefixray.reporting.live import LiveView, Row, View\n" + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 65536):
            written += block
            if resized is not None and b"now" in written:
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *resized, 0, 0))
                resized = None
    except OSError:  # Linux's way to say that the other end was closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode(), re.sub(r"\d:\d\d so far", "0:00 so far", screen(written.decode()))


def screen(written: str) -> str:
    """What a terminal shows after these characters: only what rich uses is understood."""
    lines, line = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            line += 1
            lines += [""] * (line == len(lines))
        elif part == "\x1b[1A":
            line -= 1
        elif part == "\x1b[2K":
            lines[line] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[line] += part
    return "\n".join(text.rstrip() for text in lines)
