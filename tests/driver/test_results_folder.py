"""A sweep's folder: who may write in it, and what becomes of older results."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest
from support.example_results import finished_sweep

from prefixray.cluster.connect import Cluster
from prefixray.config.load import load_sweep
from prefixray.driver.results_folder import COMMIT, PRECISION, TOKENS, ResultsFolder
from prefixray.driver.setup import worker_setup
from prefixray.errors import UserError
from prefixray.results.record import Results
from prefixray.search.policies.choice import AUTO_POLICY, auto_rungs

SWEEP = """
name: small
base: some/model
task: {name: e2e}
train: {num_steps: 40}
arms:
  lora: {rank: {choice: [1, 2, 4, 8]}, learning_rate: 1e-3}
search: {num_trials: 4}
"""


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    folder = ResultsFolder(tmp_path / "runs" / "small")
    with folder.lock():
        return folder


@pytest.fixture
def results() -> Results:
    return finished_sweep()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    return path


def stored(folder: ResultsFolder, name: str = "results.json") -> dict[str, object]:
    content: dict[str, object] = json.loads((folder.path / name).read_text())
    return content


def test_one_driver_at_a_time_has_the_folder_and_the_next_is_told_which(folder: ResultsFolder) -> None:
    held_by = f"another driver runs this sweep: process {os.getpid()} on "
    with folder.lock(), pytest.raises(UserError, match=held_by), ResultsFolder(folder.path).lock():
        pass
    with folder.lock():
        pass


def test_a_sweep_with_other_settings_is_refused_once_a_trial_was_proposed(folder: ResultsFolder, file: Path) -> None:
    folder.store_config(load_sweep(str(file)), file)
    assert folder.sweep_file.read_text() == SWEEP
    changed = load_sweep(str(file), ["train.num_steps=60"])
    folder.store_config(changed, file)  # there is no journal yet
    folder.journal.touch()
    folder.store_config(changed, file)  # the driver has ended before its first study
    folder.journal.write_text("{}\n")
    folder.store_config(load_sweep(str(file), ["train.num_steps=60", "search.num_trials=9"]), file)
    with pytest.raises(UserError) as refused:
        folder.store_config(load_sweep(str(file)), file)
    hint = "holds a sweep with other settings; give this one another name, or undo:"
    assert refused.value.problems[0] == f"{file}: {folder.path} {hint}"
    assert "  train.num_steps: 60 -> 40" in refused.value.problems
    for content, problem in {"{": "is damaged", '{"is": "of another"}': "was written by another version"}.items():
        (folder.path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=rf"sweep\.json: {problem}; give this sweep another name"):
            folder.store_config(changed, file)


def test_other_data_or_weights_under_the_same_name_are_refused_once_a_sweep_has_begun(folder: ResultsFolder) -> None:
    folder.keep_digests({"base": "a1", "task": "b1"})
    folder.keep_digests({"base": "a2", "task": "b2"})  # it has not begun
    folder.journal.write_text("{}\n")
    folder.keep_digests({"base": "a2", "task": "b2"})
    folder.keep_digests({"base": "a2"})
    with pytest.raises(UserError, match="base and task had another content when this sweep began; undo the change, or"):
        folder.keep_digests({"base": "a1", "task": "b1"})
    with pytest.raises(UserError, match="small: task had another content"):
        folder.keep_digests({"base": "a2", "task": "b1"})
    folder.keep_digests({TOKENS: "c1"})  # an earlier version has begun it
    with pytest.raises(UserError, match="small: task in tokens of base had another content"):
        folder.keep_digests({"base": "a2", TOKENS: "c2"})


def test_a_sweep_goes_on_in_the_precision_it_began_in(folder: ResultsFolder, file: Path) -> None:
    """Another kind of machine may go on with it, on which `auto` means another one."""
    config, cluster = load_sweep(str(file)), Cluster("local", "", "cpu", 2, 0, 1, 1, 1)
    folder.keep_digests({"base": "a1", PRECISION: "bf16"})
    assert worker_setup(config, cluster, folder).train.precision == "auto"  # it has not begun
    folder.journal.write_text("{}\n")
    assert worker_setup(config, cluster, folder).train.precision == "bf16"
    (folder.path / "digests.json").write_text('{"base": "a1"}')
    assert worker_setup(config, cluster, folder).train.precision == "auto"  # an earlier version has begun it
    folder.keep_digests({"base": "a1", PRECISION: "fp32"})
    assert worker_setup(config, cluster, folder).train.precision == "fp32"


def test_a_sweep_goes_on_with_the_commit_of_the_hub_that_it_began_with(folder: ResultsFolder, file: Path) -> None:
    config, cluster = load_sweep(str(file), ["base=owner/name"]), Cluster("local", "", "cpu", 2, 0, 1, 1, 1)
    folder.keep_digests({COMMIT: "a" * 40})
    assert worker_setup(config, cluster, folder).commit is None  # it has not begun
    folder.journal.write_text("{}\n")
    assert worker_setup(config, cluster, folder).commit == "a" * 40


def test_a_sweep_goes_on_by_the_rules_it_began_with(folder: ResultsFolder, file: Path) -> None:
    """Another version may have begun it, which meant something else by `auto`, or had no such keys."""
    begun = folder.store_config(load_sweep(str(file)), file)
    assert (begun.search.policy, begun.search.rungs) == (AUTO_POLICY, auto_rungs(begun.arms))
    folder.journal.write_text("{}\n")
    for rules in ({"policy": "settle", "rungs": [5], "keep": 0.7}, {}, {"policy": "stop", "rungs": [7]}):
        earlier = stored(folder, "sweep.json")
        earlier["search"] = {"num_trials": 4, "seed": 1, **rules}
        (folder.path / "sweep.json").write_text(json.dumps(earlier))
        expected = {"policy": "stop", "rungs": [], "keep": 0.5, "dev_sample": 1.0, **rules}
        for _ in range(2):
            search = folder.store_config(load_sweep(str(file)), file).search
            assert {key: search.model_dump(mode="json")[key] for key in expected} == expected
        assert folder.store_config(load_sweep(folder.sweep_file), folder.sweep_file).search == search
    with pytest.raises(UserError, match=r"search\.rungs: \[7\] -> \[8\]"):
        folder.store_config(load_sweep(str(file), ["search.rungs=[8]"]), file)


def test_only_results_of_a_final_stage_count_as_such(folder: ResultsFolder, results: Results) -> None:
    assert folder.final_results() is None
    folder.store({"search": [], "rungs": [10], "importance": []})
    assert folder.final_results() is None
    folder.publish(results, results["examples"])
    assert folder.final_results() == json.loads(json.dumps(results))
    assert not list(folder.path.glob("results.*.json"))


def test_results_with_other_winners_and_unreadable_ones_stay_beside_the_new(
    folder: ResultsFolder, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.path / "results.json").write_text("{")
    results["arms"][-1]["seeds"][0]["curve"] = [(8, 1.9), (16, 1.7)]
    files = folder.publish(results, results["examples"])
    assert "it is kept as results.1.json" in caplog.text and (folder.path / "results.1.json").read_text() == "{"
    assert [path.name for path in files][:3] == ["results.json", "results.md", "results.csv"]
    assert all(path.is_file() for path in files)
    folder.publish(results, results["examples"])
    assert not (folder.path / "results.2.json").exists(), "nothing has changed"
    changed: Results = {**results, "arms": results["arms"][:-1]}
    folder.publish(changed, results["examples"])
    assert stored(folder, "results.2.json")["arms"] == json.loads(json.dumps(results["arms"]))


def test_a_file_system_without_locks_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = r"small: its file system cannot lock files \(Operation not supported\), so two drivers could"
    with pytest.raises(UserError, match=told), ResultsFolder(tmp_path / "small").lock():
        pass
