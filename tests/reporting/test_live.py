"""The live view: a table that redraws itself in a (pseudo-)terminal."""

import io
import re

import pytest
from support.terminal import TITLE, row, shown, view

from prefixray.reporting.live import CountBar, LiveView, duration_text


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
