"""The live view without a terminal: a line for each event."""

import io
import os
import re
import time
from dataclasses import replace

import pytest
from support.terminal import TITLE, row, view

from prefixray.reporting import live as live_module
from prefixray.reporting.live import LiveView, events
from prefixray.search.status import Row, View


def test_without_a_terminal_each_event_is_a_line_and_nothing_is_drawn() -> None:
    file = io.StringIO()
    live = LiveView(file)
    running = row(1, "running")
    for rows in ([], [running], [running], [replace(running, step=7)]):
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


def test_a_trial_that_pauses_is_told_and_told_again_when_it_goes_on() -> None:
    running, pausing = row(1, step=8), replace(row(1, "paused", 10, 2.0), note="at rung 1")
    assert events(view(running), view(pausing)) == ["prefix/1 paused at rung 1  step 10/40  dev/loss 2.000"]
    assert events(view(pausing), view(pausing)) == []
    (line,) = events(view(pausing), view(replace(pausing, state="running", note=None, adopted=True)))
    assert line.startswith("prefix/1 started again from step 10")
    assert events(None, view(pausing))[1] == "from an earlier run: paused 1"
