"""The live view: a table that redraws itself in a (pseudo-)terminal, elsewhere a line per event."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time
from dataclasses import replace

import pytest

from prefixray.reporting import live as live_module
from prefixray.reporting.live import CountBar, LiveView, duration_text, events
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


def test_a_terminal_shows_one_table_that_replaces_itself() -> None:
    _, final = shown(
        """
        live = LiveView()
        rung = "at rung 2"
        rest = "prefix 3 of 8 trials, 4 at once", 940.4, "2 workers x 4 slots, 0.9 GiB", 70
        def rows(step, state):
            first = Row("prefix", 5, {"preseqlen": 10, "init_token": "restaurant"}, 40, 40, 1.5621, "done")
            second = Row("prefix", 7, {"preseqlen": 20, "init_token": "table-to-text:"}, 20, 40, 1.7, "stopped", rung)
            third = Row("prefix", 8, {"preseqlen": 5, "init_token": None}, step, 40, None, state)
            return first, second, third
        for step in (1, 2, 3):
            live.update(View("quickstart", "search", rows(step, "running"), *rest))
        live.event("looked at the dev set")
        live.update(View("quickstart", "search", rows(12, "running"), *rest))
        live.close()
        live.close()
        """
    )
    first, *rest = final.splitlines()
    assert re.fullmatch(r"\d+:\d\d  looked at the dev set", first)
    assert rest == [
        "quickstart",
        "trial  preseqlen        init   step  dev/loss  state",
        "8              5      random  12/40         -  running",
        "5             10  restaurant  40/40     1.562  done  * best",
        "7             20  table-to..  20/40     1.700  stopped at rung 2",
        "search   prefix 3 of 8 trials, 4 at once   done 1  stopped 1  running 1   best prefix/5 1.562   940 tok/s",
        "2 workers x 4 slots, 0.9 GiB   about 1:10 left   0:00 so far",
    ]


def test_a_low_terminal_shows_what_fits_and_counts_the_rest() -> None:
    _, final = shown(
        """
        live = LiveView()
        rows = [Row("prefix", n, {"preseqlen": n}, n, 40, 3 - n / 10, "done") for n in range(20)]
        rows.append(Row("lora", 1, {"rank": 4}, 3, 40, None, "running"))
        for _ in range(3):
            live.update(View("quickstart", "search", rows, message="writing"))
        live.close()
        """,
        height=12,
    )
    lines = final.splitlines()
    assert len(lines) == 11, final
    assert lines[2].split()[0] == "lora/1", "running trials come first"
    assert [line.split()[0] for line in lines[3:8]] == [f"prefix/{n}" for n in (19, 18, 17, 16, 15)]
    assert lines[8:10] == ["... 15 more", "writing"]
    assert lines[10] == "search   done 20  running 1   best prefix/19 1.100   0:00 so far"


def test_two_hundred_trials_fit_the_screen_running_ones_first_and_the_best_in_sight() -> None:
    _, final = shown(
        """
        live = LiveView()
        rows = [Row("prefix", n, {"preseqlen": n}, 9, 40, 3.0, "running") for n in range(64)]
        rows += [Row("prefix", n, {"preseqlen": n}, 40, 40, 3 - n / 200, "done") for n in range(64, 200)]
        for _ in range(3):
            live.update(View("quickstart", "search", rows, "prefix 200 of 999 trials, 64 at once"))
        live.close()
        """
    )
    lines = final.splitlines()
    assert len(lines) <= 23, final
    trials = [line.split() for line in lines[2:-2]]
    assert [row[0] for row in trials] == [*map(str, range(12)), "199", "198", "197", "196", "195", "194"]
    assert trials[12][-1] == "best"
    assert lines[-2] == "... 182 more"
    assert lines[-1].endswith("best prefix/199 2.005   0:00 so far")


def test_a_terminal_that_is_resized_meanwhile_is_used_as_it_is() -> None:
    _, final = shown(
        """
        import os, time
        live = LiveView()
        rows = [Row("prefix", n, {"preseqlen": n}, n, 40, 3 - n / 10, "done") for n in range(20)]
        live.update(View("quickstart", "search", rows))
        live.event("now")
        before = time.monotonic()
        while os.get_terminal_size(1).columns != 60 and time.monotonic() < before + 20:
            time.sleep(0.01)
        live.update(View("quickstart", "search", rows))
        live.close()
        """,
        height=12,
        resized=(18, 60),
    )
    lines = final.splitlines()
    assert len(lines) - 1 == 16 and max(map(len, lines)) <= 60, final
    assert lines[-2] == "... 8 more"


def test_a_narrow_terminal_never_wraps_a_line() -> None:
    written, final = shown(
        f"""
        live = LiveView()
        values = {{"preseqlen": 1, "mid_dim": 512, "init_token": "table-to-text:", "learning_rate": 1e-3}}
        failed = Row("prefix", 1, values, 1, 40, 2.0, "failed", "x" * 200)
        rows = [failed, Row("prefix", 2, {{}}, 9, 40, 1.9, "running")]
        rest = "prefix 2 of 8 trials, 4 at once", 940.0, "2 workers x 64 slots, 0.3 GiB", 70, "message " * 30
        live.update(View({TITLE!r}, "search", rows, *rest))
        live.close()
        """,
        width=60,
    )
    lines = final.splitlines()
    assert lines[1].split() == ["trial", "preseqlen", "step", "dev/loss", "state"], "values go before what counts"
    assert lines[2].endswith("running  * best") and "failed: xxx" in lines[3]
    assert lines[5:] == [
        "search   prefix 2 of 8 trials, 4 at once",
        "failed 1  running 1   best prefix/2 1.900   940 tok/s",
        "2 workers x 64 slots, 0.3 GiB   about 1:10 left",
        "0:00 so far",
    ]
    assert max(map(len, final.splitlines())) <= 60
    assert written.startswith("\x1b[?25l") and written.rstrip("\r\n").endswith("\x1b[?25h"), "the cursor comes back"


def test_what_is_printed_meanwhile_stays_above_the_table() -> None:
    _, final = shown(
        """
        import sys
        live = LiveView()
        live.update(View("quickstart", "search"))
        print("residual 0.2", file=sys.stderr)
        live.update(View("quickstart", "search"))
        live.close()
        """
    )
    assert final.splitlines() == ["residual 0.2", "quickstart", "search   0:00 so far"]


def test_without_a_terminal_each_event_is_a_line_and_nothing_is_drawn() -> None:
    file = io.StringIO()
    live = LiveView(file)
    waiting, running = row(1, "waiting"), row(1, "running")
    for rows in ([waiting], [running], [running], [replace(running, step=7)]):
        live.update(view(*rows))
    live.update(view(replace(running, step=10, score=2.5)))
    live.update(view(replace(running, step=12, score=2.5)))
    live.event("a line of its own")
    live.update(view(replace(running, step=20, score=2.1, state="stopped", note="at rung 2")))
    live.close()
    assert re.sub(r"^\d+:\d\d  ", "", file.getvalue(), flags=re.MULTILINE).splitlines() == [
        TITLE,
        "search",
        "prefix/1 started  preseqlen 5  mid_dim -  init restaurant  lr 1.0e-3",
        "prefix/1 step 10/40  dev/loss 2.500",
        "a line of its own",
        "prefix/1 stopped at rung 2  step 20/40  dev/loss 2.100",
    ]


def test_without_a_terminal_a_quiet_sweep_still_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    live = LiveView(file)
    training = replace(view(row(1, step=3)), hint="prefixray control small --help: stop, add or extend trials")
    for seconds in range(0, 61, 5):
        clock[0] = seconds
        live.update(training if seconds < 40 else View(TITLE, "decode", message=f"{seconds} of 99 sources"))
    assert file.getvalue().splitlines() == [
        f"0:00  {TITLE}",
        "0:00  search",
        "0:00  prefixray control small --help: stop, add or extend trials",
        "0:00  prefix/1 started  preseqlen 5  mid_dim -  init restaurant  lr 1.0e-3",
        "0:25  search  running 1",
        "0:40  decode  40 of 99 sources",
    ]


def test_what_cannot_say_how_far_it_is_is_shown_again_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "REDRAW_SECONDS", 0.01)
    monkeypatch.setattr(live_module, "QUIET_SECONDS", 0.02)
    file = io.StringIO()
    with LiveView(file).during(View(TITLE, "score", message="scoring and comparing")):
        deadline = time.monotonic() + 20
        while len(file.getvalue().splitlines()) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {line.partition("  ")[2] for line in file.getvalue().splitlines()[1:]} == {"score  scoring and comparing"}
    assert len(file.getvalue().splitlines()) >= 4


def test_a_final_run_is_called_by_its_folder() -> None:
    run = Row("final/prefix", 0, {"seed": 1}, 0, 40, None, "running", own_name="final/prefix-3-1")
    assert (run.name, run.short_name) == ("final/prefix-3-1", "prefix-3-1")
    assert events(view(), view(run, stage="final"))[1] == "final/prefix-3-1 started  seed 1"


def test_a_reader_that_has_gone_does_not_end_the_sweep() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as file:
        live = LiveView(file)
        live.update(view(row(1)))
        live.event("nobody reads this")
        live.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # what the file still holds has to go somewhere


def test_a_budget_is_told_with_its_stage_and_the_best_when_it_is_done() -> None:
    before = View(TITLE, "start")
    rows = [row(1, "done", 40, 1.6), row(2, "done", 40, 1.5)]
    lines = events(before, View(TITLE, "search", rows, "prefix 2 of 8 trials, 4 at once"))
    assert lines == [
        "search  prefix 2 of 8 trials, 4 at once",
        "prefix/1 done  step 40/40  dev/loss 1.600",
        "prefix/2 done  step 40/40  dev/loss 1.500  * best",
    ]


def test_a_loss_over_a_sample_of_dev_is_compared_last() -> None:
    _, final = shown(
        f"""
        rows = [Row("prefix", 2, {{}}, 9, 40, 1.9, "running"), Row("prefix", 4, {{}}, 0, 40, None, "running")]
        rows.append(Row("prefix", 3, {{}}, 4, 40, 1.8, "paused", is_sampled=True))
        live = LiveView()
        live.update(View({TITLE!r}, "search", rows))
        live.close()
        """
    )
    assert "best prefix/2 1.900" in final and "~1.800  paused" in final


def test_a_forced_colour_does_not_make_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    live = LiveView(file)
    live.update(view(row(1)))
    live.close()
    assert "\x1b" not in file.getvalue()
    assert len(file.getvalue().splitlines()) == 3


def test_trials_of_an_earlier_run_are_counted_not_told_again() -> None:
    running = [replace(row(number, "running", step), adopted=True) for number, step in ((3, 10), (4, 0))]
    lines = events(None, view(row(1, "done", 40, 1.6), row(2, "stopped", 10, 2.6), *running))
    assert lines[1:] == [
        "from an earlier run: done 1  stopped 1",
        "search",
        "prefix/3 started again from step 10  preseqlen 5  mid_dim -  init restaurant  lr 3.0e-3",
        "prefix/4 started again  preseqlen 5  mid_dim -  init restaurant  lr 4.0e-3",
    ]


def test_a_trial_that_has_taken_steps_when_it_is_first_seen_was_started_no_second_time() -> None:
    lines = events(view(), view(row(1, "running", 6)))
    assert lines == ["prefix/1 started  preseqlen 5  mid_dim -  init restaurant  lr 1.0e-3"]


def test_a_trial_that_begins_and_ends_between_two_views_is_told_once() -> None:
    before = view(row(1, "done", 40, 1.6))
    failed = replace(row(2, "failed", 3), note="the loss is not finite")
    assert events(before, view(*before.rows, failed)) == ["prefix/2 failed: the loss is not finite  step 3/40"]


def test_a_new_stage_starts_its_trials_anew() -> None:
    before = view(row(1, "done", 40, 1.6))
    lines = events(before, view(row(1, "running"), stage="final"))
    assert lines[0] == "final"
    assert lines[1].startswith("prefix/1 started  ")


def test_durations_read_like_a_clock() -> None:
    assert [duration_text(seconds) for seconds in (0, 59.6, 70, 7400)] == ["0:00", "1:00", "1:10", "2:03:20"]


def test_what_a_command_counts_is_a_bar_on_a_terminal_and_elsewhere_a_line_now_and_then() -> None:
    written, final = shown(
        """
        import sys
        from prefixray.reporting.live import CountBar
        with CountBar("sources", sys.stderr) as bar:
            bar.show(10, 40)
            bar._bar.refresh()
        print("done")
        """
    )
    assert re.search(r"sources .*10/40", written) and final.splitlines() == ["done"], "the bar has gone"
    for seconds, lines in ((0.0, ["10 of 40 sources", "40 of 40 sources"]), (3600.0, [])):
        file = io.StringIO()
        with CountBar("sources", file, seconds=seconds) as bar:
            bar.show(10, 40)
            bar.show(40, 40)
        assert [line.split("  ")[1] for line in file.getvalue().splitlines()] == lines


def test_a_trial_that_pauses_is_told_and_told_again_when_it_goes_on() -> None:
    running, pausing = row(1, step=8), replace(row(1, "paused", 10, 2.0), note="at rung 1")
    assert events(view(running), view(pausing)) == ["prefix/1 paused at rung 1  step 10/40  dev/loss 2.000"]
    assert events(view(pausing), view(pausing)) == []
    (line,) = events(view(pausing), view(replace(pausing, state="running", note=None, adopted=True)))
    assert line.startswith("prefix/1 started again from step 10")
    assert events(None, view(pausing))[1] == "from an earlier run: paused 1"
