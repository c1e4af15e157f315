"""The live view: what the sweep is doing, from the first minute on.

Its caller hands over whole pictures of the sweep. A terminal shows the latest as a table; without one, the differences
between consecutive pictures become plain lines, one per event.
"""

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefixray.reporting.grid import SHORT, differing_keys, value_text
from prefixray.search.status import ENDED, Row, State, View

ORDER: tuple[State, ...] = ("running", "done", "stopped", "failed", "waiting")
STYLES: Mapping[State, str] = {"stopped": "dim", "failed": "red", "waiting": "dim"}
NUM_OTHER_LINES = 5  # of the view besides its rows and its foot: title, header, what is left out, message, the cursor's
_STATE_WIDTH = 18  # "stopped at rung 1"
SHARE_OF_ENDED = 3  # where not all rows have room, a third of them is for the best that have ended


class LiveView:
    """Shows the pictures it is given, until `close()`. Pictures come from one thread, events from any.

    What is printed to stdout or stderr meanwhile appears above the table; a log handler that was made before writes
    past it, so it should call `event` instead.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._console = Console(file=self._file, force_terminal=self._file.isatty(), highlight=False)
        self._start = time.monotonic()
        self._previous: View | None = None
        self._is_unread = False
        self._live: Live | None = None
        if self._console.is_interactive:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()

    def update(self, view: View) -> None:
        """Show this picture."""
        if self._live is None:
            for line in events(self._previous, view):
                self.event(line)
        else:
            self._live.update(_drawn(view, self._console.width, self._console.height), refresh=True)
        self._previous = view

    def event(self, line: str) -> None:
        """Say one thing, above the table where there is one."""
        stamped = f"{duration_text(time.monotonic() - self._start)}  {line}"
        if self._live is None:
            self._print(stamped)
        else:
            self._console.print(Text(stamped))

    def close(self) -> None:
        """Leave the last picture standing and give the terminal back. A second call does nothing."""
        if self._live is not None:
            self._live.stop()

    def _print(self, line: str) -> None:
        """Print a line; where its reader has gone (`| head`) nothing more, and the sweep goes on."""
        if self._is_unread:
            return
        try:
            print(line, file=self._file, flush=True)
        except BrokenPipeError:
            self._is_unread = True


def events(previous: View | None, view: View) -> list[str]:
    """What happened between two pictures, a line each: stages, trials that started, reported, or ended."""
    lines = []
    if previous is None:
        lines.append(view.title)
        if earlier := [row for row in view.rows if row.state in ENDED]:
            lines.append(f"from an earlier run: {_counts(earlier)}")
    if view.stage and (previous is None or previous.stage != view.stage):
        lines.append("  ".join(part for part in (view.stage, view.budget) if part))
    known = {row.name: row for row in (view if previous is None else previous).rows}
    if previous is None:
        known = {name: row for name, row in known.items() if row.state in ENDED}
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
    """What happened to one trial. A trial that had ended and runs again is a new one (the final stage's)."""
    score = "" if row.score is None else f"  dev/loss {row.score:.3f}"
    at = f"step {row.step}/{row.num_steps}{score}"
    if row.state in ENDED:
        changed = before is None or before.state != row.state
        return [f"{row.name} {row.state_text}  {at}"] if changed else []
    if row.state == "waiting":
        return []
    if before is None or before.state != "running":
        values = "  ".join(f"{SHORT.get(key, key)} {value_text(key, value)}" for key, value in row.values.items())
        resumed = (" again" + (f" from step {row.step}" if row.step else "")) if row.adopted else ""
        return [f"{row.name} started{resumed}" + (f"  {values}" if values else "")]
    return [f"{row.name} {at}"] if row.score is not None and row.score != before.score else []


def _drawn(view: View, width: int, height: int) -> Group:
    """The picture for a terminal of this size."""
    foot = _packed(_foot(view), width)
    shown = _chosen(sorted(view.rows, key=_place), max(1, height - NUM_OTHER_LINES - len(foot)))
    parts: list[Text | Table] = [Text(view.title, style="bold", no_wrap=True, overflow="ellipsis")]
    if shown:
        parts.append(_table(view, shown, width))
    if len(view.rows) > len(shown):
        parts.append(Text(f"... {len(view.rows) - len(shown)} more"))
    if view.message:
        parts.append(Text(view.message, no_wrap=True, overflow="ellipsis"))
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in foot]
    return Group(*parts)


def _place(row: Row) -> tuple[int, float, str, int]:
    """Running trials first, in the order of their names, so that they keep their lines; ended ones by score."""
    return ORDER.index(row.state), row.comparable if row.state in ENDED else 0.0, row.arm, row.number


def _chosen(rows: Sequence[Row], room: int) -> list[Row]:
    """The rows that are shown: running ones, and of the others the best, for which some room is kept."""
    running = [row for row in rows if row.state == "running"]
    others = [row for row in rows if row.state != "running"]
    num_others = min(len(others), max(room // SHARE_OF_ENDED, room - len(running)))
    return [*running[: room - num_others], *others[:num_others]]


def _table(view: View, shown: Sequence[Row], width: int) -> Table:
    """Trials with as many of their values as the width allows; what cannot be missed has its room first."""
    keys = differing_keys([(row.arm, row.values) for row in view.rows])
    one_arm = len({row.arm for row in view.rows}) == 1
    best = _best(view.rows)
    ends = {"trial": [str(row.number) if one_arm else row.name for row in shown]}
    ends |= {
        "step": [f"{row.step}/{row.num_steps}" for row in shown],
        "dev/loss": ["-" if row.score is None else f"{row.score:.3f}" for row in shown],
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
    for at, row in enumerate(shown):
        style = "green" if row.name in best else STYLES.get(row.state, "")
        table.add_row(*(Text(cells[at]) for cells in columns.values()), style=style)
    return table


def _column_width(head: str, cells: Sequence[str]) -> int:
    return max(len(head), *map(len, cells)) + 2


def _best(rows: Sequence[Row]) -> set[str]:
    """The best trial of each arm that has several; while none is done, the best so far."""
    names = set()
    for arm in {row.arm for row in rows}:
        of_arm = [row for row in rows if row.arm == arm]
        candidates = [row for row in of_arm if row.state == "done"] or of_arm
        best = min(candidates, key=lambda row: row.comparable)
        if len(of_arm) > 1 and math.isfinite(best.comparable):
            names.add(best.name)
    return names


def _foot(view: View) -> list[str]:
    """What is said below the rows, part by part."""
    best = _best(view.rows)
    scores = [f"best {row.name} {row.score:.3f}" for row in view.rows if row.name in best and row.score is not None]
    parts = [view.stage, view.budget, _counts(view.rows), *(scores if len(view.rows) > 1 else [])]
    if view.tokens_per_second:
        parts.append(f"{view.tokens_per_second:,.0f} tok/s")
    parts.append(view.workers)
    if view.seconds_left is not None:
        parts.append(f"about {duration_text(view.seconds_left)} left")
    return [part for part in parts if part]


def _packed(parts: Sequence[str], width: int) -> list[str]:
    """The parts in lines of this width, none of them broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(row.state for row in rows)
    states: tuple[State, ...] = ("done", "stopped", "failed", "running", "waiting")
    return "  ".join(f"{state} {counts[state]}" for state in states if counts[state])
