"""Which runs of the command stand in a record, and what each is known by."""

import subprocess
from pathlib import Path

import pytest
from support.quickstart_results import quickstart_sweep

from prefixray.results.command_run import command_run, machine_of, runs_so_far, source_commit
from prefixray.results.record import CommandRun, Results

COMMAND = ["python", "-m", "prefixray.sweep", "a.yaml", "--scale", "laptop", "--set", "a=1", "--set", "b=[1, 2]"]


def run(began: float, minutes: float) -> CommandRun:
    return command_run(COMMAND, began=began, minutes=minutes)


@pytest.fixture
def results() -> Results:
    return quickstart_sweep()


def test_a_run_carries_its_command_its_overrides_its_commit_and_its_versions() -> None:
    this = run(0.0, 2.5)
    assert (this["command"], this["scales"], this["overrides"]) == (COMMAND, ["laptop"], ["a=1", "b=[1, 2]"])
    assert (this["began"], this["minutes"], this["commit"]) == ("1970-01-01T00:00:00Z", 2.5, source_commit())
    assert {"prefixray", "torch", "transformers", "ray"} <= this["versions"].keys()


def test_credentials_on_the_command_line_are_left_out() -> None:
    this = command_run(["--set", "tracking.uri=http://me:secret@there"], began=0.0, minutes=1.0)
    assert this["overrides"] == ["tracking.uri=http://***@there"] == this["command"][1:]


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = source_commit()
    assert commit is None if done.returncode else commit is not None and commit.startswith(done.stdout.strip())


def test_a_rerun_that_trains_nothing_keeps_the_record_of_the_first_run(results: Results) -> None:
    results["runs"] = runs_so_far(None, results, run(1.0, 30.0))
    again = quickstart_sweep()
    assert runs_so_far(results, again, run(2.0, 0.1)) == results["runs"]
    assert runs_so_far(results, again, run(2.0, 0.1), has_trained=True) == [*results["runs"], run(2.0, 0.1)]
    again["search"][0]["step"] += 4
    assert [one["minutes"] for one in runs_so_far(results, again, run(2.0, 0.1))] == [30.0, 0.1]
    again = quickstart_sweep()
    again["arms"][1]["seeds"] *= 2
    assert [one["minutes"] for one in runs_so_far(results, again, run(2.0, 5.0))] == [30.0, 5.0]
    again["arms"][1]["seeds"] = []
    assert runs_so_far(results, again, run(2.0, 5.0)) == results["runs"], "with fewer seeds nothing is trained"


def test_results_that_are_scored_on_another_machine_name_the_one_that_has_trained(results: Results) -> None:
    results["runs"] = [run(1.0, 30.0)]
    again = quickstart_sweep()
    again["machine"], again["runs"] = {"device": "another"}, results["runs"]
    assert machine_of(again, results) == results["machine"] != again["machine"] == machine_of(again, None)
    again["runs"] = [run(1.0, 30.0), run(2.0, 5.0)]
    assert machine_of(again, results) == {"device": "another"}


def test_results_that_one_run_writes_twice_name_it_once_with_its_last_time(results: Results) -> None:
    results["runs"] = runs_so_far(None, results, run(1.0, 30.0))
    assert runs_so_far(results, quickstart_sweep(), run(1.0, 31.0)) == [run(1.0, 31.0)]


def test_an_older_records_time_is_kept(results: Results) -> None:
    results["budget"] = {"minutes": 12.0}
    (older,) = runs_so_far(results, quickstart_sweep(), run(2.0, 0.1))
    assert (older["minutes"], older["versions"], older["commit"]) == (12.0, results["versions"], None)
