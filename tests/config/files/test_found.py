"""By which names a sweep and its file are found, wherever a command takes one."""

from pathlib import Path

import pytest

from prefixray.config.files.found import check_options, find_sweep, find_sweep_file
from prefixray.config.files.given import given_sweep
from prefixray.config.files.shipped import shipped_sweeps
from prefixray.errors import UserError
from prefixray.plan import plan
from prefixray.sweep import sweep


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(path: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
    return Path(path)


def test_a_sweep_file_goes_by_its_name_the_users_own_before_the_shipped_one() -> None:
    assert find_sweep_file("quickstart") == shipped_sweeps()["quickstart"]
    assert find_sweep_file("paper/e2e") == shipped_sweeps()["paper/e2e"]
    touch("runs/quickstart/sweep.json")
    kept = touch("runs/quickstart/sweep.yaml")
    assert find_sweep_file("quickstart") == find_sweep_file("runs/quickstart") == kept
    assert find_sweep_file("quickstart") != touch("sweeps/other.yaml") == find_sweep_file("other")
    assert find_sweep_file("quickstart") != touch("sweeps/quickstart.yaml") == find_sweep_file("quickstart")
    assert find_sweep_file("sweeps/quickstart") == Path("sweeps/quickstart.yaml")
    assert find_sweep_file("nowhere.yaml") == Path("nowhere.yaml"), "who reads it says what is wrong"


def test_a_name_of_no_sweep_file_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^quikstart: is no sweep file .* \(did you mean 'quickstart'\?\)$"):
        find_sweep_file("quikstart")
    with pytest.raises(UserError, match=r"^zzz: is no sweep file and no name of one \(prefixray examples lists those"):
        find_sweep_file("zzz")


def test_the_copy_in_a_sweeps_folder_starts_no_other_sweep_where_the_options_are_missing() -> None:
    touch("runs/e2e-laptop/sweep.json").write_text('{"name": "e2e-laptop"}')
    copy = touch("runs/e2e-laptop/sweep.yaml")
    copy.write_text(shipped_sweeps()["paper/e2e"].read_text())
    wanted = r"^runs/e2e-laptop/sweep\.yaml: lies in .* e2e-laptop, and is the file of the sweep e2e; give the options"
    for command in (sweep, plan):
        with pytest.raises(UserError, match=wanted):
            command(Path("e2e-laptop"), [], ["search.num_trials=2"])
    with pytest.raises(UserError, match=wanted):
        given_sweep("e2e-laptop", {})
    assert given_sweep("e2e-laptop", {}, ["name=other"]).name == "other"
    check_options(copy, "e2e-laptop", [], ["laptop"])
    check_options(copy, "e2e-laptop", [])
    Path("runs/e2e-laptop/sweep.json").write_text("{")
    check_options(copy, "e2e", [])


def test_a_name_with_a_scale_means_the_scaled_sweeps_results() -> None:
    touch("runs/e2e/sweep.json")
    touch("runs/e2e-laptop/sweep.json")
    assert find_sweep("e2e") == Path("runs/e2e") and find_sweep("e2e", ["laptop"]) == Path("runs/e2e-laptop")
    assert find_sweep("runs/e2e", ["laptop"]) == Path("runs/e2e-laptop"), "a folder is a name, too"
    with pytest.raises(UserError, match=r"^e2e-lapto: is no results folder, .* \(did you mean 'e2e-laptop'\?\)$"):
        find_sweep("e2e", ["lapto"])
