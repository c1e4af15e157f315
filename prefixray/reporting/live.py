"""The live view of a running sweep, and the bar of a command that counts.

The driver hands over pictures of the whole sweep (`search.status.View`). A terminal shows the latest picture as a
table. Without a terminal, the differences between two pictures are printed as plain lines, one per event.
"""

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from prefixray.reporting.grid import SHORT, differing_keys, value_text
from prefixray.search.status import ENDED, Row, State, View

ORDER: tuple[State, ...] = ("running", "done", "paused", "stopped", "failed")
STYLES: Mapping[State, str] = {"paused": "dim", "stopped": "dim", "failed": "red"}
NUM_OTHER_LINES = 5  # besides rows and foot: title, header, the number of hidden rows, message, the cursor's line
_STATE_WIDTH = 18  # "stopped at rung 1"
_AT_REST = ENDED | {"paused"}
QUIET_SECONDS = 25.0  # after which a line says how far things are, where there is no terminal
REDRAW_SECONDS = 5.0  # between two pictures of something that cannot say how far it is
SHARE_OF_ENDED = 3  # where rows are hidden, a third of the shown ones are the best of the trials that have ended


class LiveView:
    """Shows the pictures that it is given, until `close()`. Pictures come from one thread, events from any thread.

    Text that is printed to stdout or stderr meanwhile appears above the table. A log handler that was made before the
    view would write into the table, so it should call `event` instead.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._console = Console(file=self._file, force_terminal=self._file.isatty(), highlight=False)
        self._start = self._last = time.monotonic()  # `_last`: when the last line was printed
        self._previous: View | None = None
        self._is_unread = False
        self._live: Live | None = None
        if self._console.is_interactive:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()

    def update(self, view: View) -> None:
        """Show this picture. Without a terminal, one that comes 25 seconds after the last line prints a line, too."""
        now = time.monotonic()
        if self._live is None:
            lines = events(self._previous, view)
            if not lines and now - self._last >= QUIET_SECONDS:
                lines = ["  ".join([view.stage, view.message] if view.message else _foot(view))]
            for line in lines:
                self.event(line)
        else:
            took = duration_text(now - self._start)
            self._live.update(_draw(view, took, self._console.width, self._console.height), refresh=True)
        self._previous = view

    @contextmanager
    def during(self, view: View) -> Iterator[None]:
        """Show this picture, and again now and then while the block runs."""
        ended = threading.Event()

        def redraw() -> None:
            while not ended.wait(REDRAW_SECONDS):
                self.update(view)

        self.update(view)
        thread = threading.Thread(target=redraw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def event(self, line: str) -> None:
        """Print one line, above the table where there is one."""
        self._last = time.monotonic()
        stamped = f"{duration_text(self._last - self._start)}  {line}"
        if self._live is None:
            self._print(stamped)
        else:
            self._console.print(Text(stamped))

    def close(self) -> None:
        """Give the terminal back; the last picture stays. A second call does nothing."""
        if self._live is not None:
            self._live.stop()

    def _print(self, line: str) -> None:
        """Print a line. When its reader is gone (`| head`), print nothing more; the sweep goes on."""
        if self._is_unread:
            return
        try:
            print(line, file=self._file, flush=True)
        except BrokenPipeError:
            self._is_unread = True


class CountBar:
    """How many of a number of things are done: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, things: str, file: TextIO, *, seconds: float = 10.0) -> None:
        """`things`: in the plural; `seconds`: between two lines."""
        self._things, self._file, self._seconds = things, file, seconds
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if file.isatty():
            columns = TextColumn(things), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(file=file, force_terminal=True), transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, num_done: int, num_in_all: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._things, total=num_in_all)
            self._bar.update(self._task, completed=num_done)
        elif now - self._last >= self._seconds:
            self._last = now
            took = duration_text(now - self._start)
            print(f"{took}  {num_done} of {num_in_all} {self._things}", file=self._file, flush=True)


def events(previous: View | None, view: View) -> list[str]:
    """The events between two pictures, a line each: new stages, and trials that started, reported or ended."""
    lines = []
    if previous is None:
        lines.append(view.title)
        if earlier := [row for row in view.rows if row.state in _AT_REST]:
            lines.append(f"from an earlier run: {_counts(earlier)}")
    if view.stage and (previous is None or previous.stage != view.stage):
        lines.append("  ".join(part for part in (view.stage, view.budget, view.message) if part))
        lines += [view.hint] if view.hint else []
    known = {row.name: row for row in (view if previous is None else previous).rows}
    if previous is None:
        known = {name: row for name, row in known.items() if row.state in _AT_REST}
    best = _best(view.rows)
    for row in view.rows:
        mark = "  * best" if row.state == "done" and row.name in best else ""
        lines += [line + mark for line in _row_events(known.get(row.name), row)]
    return lines


def duration_text(seconds: float) -> str:
    """`1:10` or `2:03:20`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _row_events(before: Row | None, row: Row) -> list[str]:
    """The events of one trial. A trial that had ended and runs again belongs to the final stage and is a new one."""
    score = "" if row.score is None else f"  dev/loss {row.score_text}"
    at = f"step {row.step}/{row.num_steps}{score}"
    if row.state in _AT_REST:
        changed = before is None or before.state != row.state
        return [f"{row.name} {row.state_text}  {at}"] if changed else []
    if before is None or before.state != "running":
        values = "  ".join(f"{SHORT.get(key, key)} {value_text(key, value)}" for key, value in row.values.items())
        resumed = (" again" + (f" from step {row.step}" if row.step else "")) if row.adopted else ""
        return [f"{row.name} started{resumed}" + (f"  {values}" if values else "")]
    return [f"{row.name} {at}"] if row.score is not None and row.score != before.score else []


def _draw(view: View, took: str, width: int, height: int) -> Group:
    """The picture for a terminal of this size; `took` is the time since the view began."""
    foot = _packed([*_foot(view), f"{took} so far", *([view.hint] if view.hint else [])], width)
    shown = _choose(sorted(view.rows, key=_order), max(1, height - NUM_OTHER_LINES - len(foot)))
    parts: list[Text | Table] = [Text(view.title, style="bold", no_wrap=True, overflow="ellipsis")]
    if shown:
        parts.append(_table(view, shown, width))
    if len(view.rows) > len(shown):
        parts.append(Text(f"... {len(view.rows) - len(shown)} more"))
    if view.message:
        parts.append(Text(view.message, no_wrap=True, overflow="ellipsis"))
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in foot]
    return Group(*parts)


def _order(row: Row) -> tuple[int, tuple[bool, float], str, int]:
    """A key for sorting: running trials first, by name, so that they keep their lines; the others by score."""
    return ORDER.index(row.state), row.comparable if row.state in _AT_REST else (False, 0.0), row.arm, row.number


def _choose(rows: Sequence[Row], room: int) -> list[Row]:
    """The rows that are shown: running trials, and the best of the others, for which some room is reserved."""
    running = [row for row in rows if row.state == "running"]
    others = [row for row in rows if row.state != "running"]
    num_others = min(len(others), max(room // SHARE_OF_ENDED, room - len(running)))
    return [*running[: room - num_others], *others[:num_others]]


def _table(view: View, shown: Sequence[Row], width: int) -> Table:
    """The trials with as many of their values as the width allows; step, loss and state always have room."""
    keys = differing_keys([(row.arm, row.values) for row in view.rows])
    one_arm = len({row.arm for row in view.rows}) == 1
    best = _best(view.rows)
    ends = {"trial": [row.short_name if one_arm else row.name for row in shown]}
    ends |= {
        "step": [f"{row.step}/{row.num_steps}" for row in shown],
        "dev/loss": [row.score_text for row in shown],
        "state": [row.state_text + ("  * best" if row.name in best else "") for row in shown],
    }
    values = {SHORT.get(k, k): [value_text(k, row.values[k]) if k in row.values else "" for row in shown] for k in keys}
    room = width - sum(_column_width(head, cells) for head, cells in ends.items() if head != "state")
    while values and sum(_column_width(head, cells) for head, cells in values.items()) > room - _STATE_WIDTH:
        values.popitem()
    room -= sum(_column_width(head, cells) for head, cells in values.items())
    columns = {"trial": ends.pop("trial"), **values, **ends}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for head in columns:
        justify: Literal["left", "right"] = "left" if head in ("trial", "state") else "right"
        most = max(1, room) if head == "state" else None
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", max_width=most)
    for index, row in enumerate(shown):
        style = "green" if row.name in best else STYLES.get(row.state, "")
        table.add_row(*(Text(cells[index]) for cells in columns.values()), style=style)
    return table


def _column_width(head: str, cells: Sequence[str]) -> int:
    return max(len(head), *map(len, cells)) + 2


def _best(rows: Sequence[Row]) -> set[str]:
    """The names of the best trials: in each arm with several, the best finished one, or until then the best so far."""
    names = set()
    for arm in {row.arm for row in rows}:
        of_arm = [row for row in rows if row.arm == arm]
        candidates = [row for row in of_arm if row.state == "done"] or of_arm
        best = min(candidates, key=lambda row: row.comparable)
        if len(of_arm) > 1 and math.isfinite(best.comparable[1]):
            names.add(best.name)
    return names


def _foot(view: View) -> list[str]:
    """The parts of the lines below the rows."""
    best = _best(view.rows)
    scores = [f"best {row.name} {row.score_text}" for row in view.rows if row.name in best and row.score is not None]
    parts = [view.stage, view.budget, _counts(view.rows), *(scores if len(view.rows) > 1 else [])]
    if view.tokens_per_second:
        parts.append(f"{view.tokens_per_second:,.0f} tok/s")
    parts.append(view.workers)
    if view.seconds_left is not None:
        parts.append(f"about {duration_text(view.seconds_left)} left")
    return [part for part in parts if part]


def _packed(parts: Sequence[str], width: int) -> list[str]:
    """The parts in lines of this width; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    states: tuple[State, ...] = ("done", "stopped", "failed", "paused", "running")
    return "  ".join(f"{state} {counts[state]}" for state in states if counts[state])
