"""The final stage without Ray: what is trained and decoded for which arm. Training and decoding are played."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend

from prefixray.cluster.decode_queue import DecodeJob
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import Sourced
from prefixray.data.task_config import LowDataConfig
from prefixray.driver.final_stage import FinalStage
from prefixray.driver.results_folder import ResultsFolder
from prefixray.driver.stage import Stage
from prefixray.planning.slots import most_final_runs
from prefixray.results.by_document import Part
from prefixray.results.hypotheses import write_hypotheses
from prefixray.search.importance import parameter_importance
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.trial import Report, TrialFolder, TrialSpec

SWEEP = """
name: small
base: some/model
task: {name: e2e}
train: {num_steps: 40}
arms:
  prefix: {preseqlen: 5, mid_dim: null, init_token: null, learning_rate: {log_uniform: [1e-4, 1e-1]}}
  lora: {rank: 4, learning_rate: 1e-3}
  finetune: {learning_rate: 1e-3}
search: {num_trials: 4, rungs: [10]}
final: {num_seeds: 2, candidates: 2}
"""
SOURCES = [Sourced("name : The Eagle", ("the eagle is a cheap pub near the river",), None)]


class PlayedEngine:
    """Trains every run well but those whose keys are in `failing`; decodes dev with fewer mistakes for prefix/1."""

    def __init__(self, folder: Path, failing: Sequence[str] = ()) -> None:
        self.folder, self.failing = folder, failing
        self.queued: list[str] = []  # models that idle workers are to decode with
        self.waiting: list[DecodeJob] = []  # of these, those that no worker has tried
        self.pool = SimpleNamespace(decode_when_idle=self._queue, is_decoding=self.waiting.__contains__)
        self.trained: list[tuple[str, list[str]]] = []
        self.stages: list[Stage] = []
        self.decoded: list[list[str]] = []
        self.jobs: list[DecodeJob] = []

    def run(self, name: str, stages: Sequence[Stage]) -> None:
        assert "untuned" in self.queued, "whoever has nothing to train may decode the floor"
        self.stages += stages
        for stage in stages:
            keys = []
            while (proposal := stage.source.ask()) is not None:
                spec = stage.spec(proposal)
                state = "failed" if spec.key in self.failing else "done"
                spec.write_result(Report(spec.key, 40, state, {"dev/best_loss": 1.0}), state)  # type: ignore[arg-type]
                stage.source.tell(proposal.number, state, 1.0)  # type: ignore[arg-type]
                keys.append(spec.key)
            self.trained.append((stage.name, keys))

    def _queue(self, job: DecodeJob) -> None:
        self.queued.append(job.model)
        if job not in self.waiting and not (Path(job.folder) / f"{job.split}.hyp").is_file():
            self.waiting.append(job)

    def use_idle(self) -> None:
        """Decode what waits; where it is to fail there are no hypotheses."""
        for job in self.waiting:
            if job.model not in self.failing:
                self._decode(job)
        self.waiting.clear()

    def decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[DecodeJob, str]]:
        self.decoded.append([str(Path(folder).relative_to(self.folder)) for _, folder, *_ in jobs])
        self.jobs += jobs
        self.queued.clear()  # as the pool does, which decodes all of these now
        for job in jobs:
            self._decode(job)
        return [(job, "out of memory") for job in jobs if job.model in self.failing]

    def _decode(self, job: DecodeJob) -> None:
        text = SOURCES[0].references[0] if "prefix-1-" in job.folder else "a river"
        write_hypotheses(Path(job.folder), job.split, [text], SOURCES)


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    (tmp_path / "small.yaml").write_text(SWEEP)
    return load_sweep(str(tmp_path / "small.yaml"))


def searched(folder: ResultsFolder, config: SweepConfig, losses: Sequence[float | None]) -> dict[str, ArmStudy]:
    """The studies after a search of the prefix arm with these losses; None is a trial that failed."""
    study = ArmStudy(open_storage(folder.journal), config.name, config.arm("prefix"), seed=1, num_startup=2)
    for loss in losses:
        proposal = study.ask()
        assert proposal is not None
        study.tell(proposal.number, "failed" if loss is None else "done", loss)
    return {"prefix": study}


def open_stage(config: SweepConfig, folder: ResultsFolder, engine: PlayedEngine) -> FinalStage:
    return FinalStage(config, folder, open_storage(folder.journal), engine, lambda: SOURCES)  # type: ignore[arg-type]


def test_candidates_are_compared_on_dev_and_the_winner_runs_fresh_seeds(tmp_path: Path, config: SweepConfig) -> None:
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    stage = open_stage(config, folder, engine)
    runs = stage.run(searched(folder, config, [2.0, 1.5, 3.0, 1.0]))
    assert engine.trained == [
        ("candidates/prefix", ["final/prefix-3-1000", "final/prefix-1-1000"]),
        ("final/finetune", ["final/finetune-0-1", "final/finetune-0-2"]),
        ("final/prefix", ["final/prefix-1-1", "final/prefix-1-2"]),
        ("final/lora", ["final/lora-0-1", "final/lora-0-2"]),
    ], "fine-tuning, which needs an empty worker, is asked first"
    seeds = [f"final/{arm}-{seed}" for arm in ("prefix-1", "lora-0", "finetune-0") for seed in (1, 2)]
    assert engine.decoded == [["final/prefix-3-1000", "final/prefix-1-1000"], ["final/untuned", *seeds]]
    assert list(runs) == ["prefix", "lora", "finetune"]
    assert [run.folder.relative_to(tmp_path).as_posix() for arm in runs for run in runs[arm]] == seeds
    result = TrialFolder(runs["prefix"][0].folder).result()
    assert result is not None and result["replicate"] == 1


def test_an_arm_without_a_score_and_runs_that_failed_are_left_out(tmp_path: Path, config: SweepConfig) -> None:
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path, failing=["final/lora-0-1"])
    runs = open_stage(config, folder, engine).run(searched(folder, config, [None] * 4))  # type: ignore[arg-type]
    assert {arm: [run.replicate for run in arm_runs] for arm, arm_runs in runs.items()} == {
        "lora": [2],
        "finetune": [1, 2],
    }


def test_a_run_whose_folder_is_deleted_is_trained_again_and_one_that_has_failed_is_not(
    tmp_path: Path, config: SweepConfig
) -> None:
    folder, failing = ResultsFolder(tmp_path), ["final/lora-0-1"]
    studies = searched(folder, config, [None] * 4)
    open_stage(config, folder, PlayedEngine(tmp_path, failing)).run(studies)  # type: ignore[arg-type]
    again = PlayedEngine(tmp_path)
    runs = open_stage(config, folder, again).run(studies)  # type: ignore[arg-type]
    assert [key for _, keys in again.trained for key in keys] == [] and len(runs["lora"]) == 1
    for name in ("lora-0-1", "finetune-0-2"):
        shutil.rmtree(tmp_path / "final" / name)
    runs = open_stage(config, folder, again).run(studies)  # type: ignore[arg-type]
    trained = {key for _, keys in again.trained for key in keys}
    assert trained == {"final/lora-0-1", "final/finetune-0-2"} and len(runs["lora"]) == 2


def test_where_all_candidates_of_an_arm_fail_its_best_trial_goes_on(tmp_path: Path, config: SweepConfig) -> None:
    failing = ["final/prefix-3-1000", "final/prefix-1-1000"]
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path, failing)
    runs = open_stage(config, folder, engine).run(searched(folder, config, [2.0, 1.5, 3.0, 1.0]))
    assert [run.number for run in runs["prefix"]] == [3, 3]


def test_a_driver_opens_its_journal_once(tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = JournalFileBackend.__init__

    def note(backend: JournalFileBackend, path: str, **more: Any) -> None:  # noqa: ANN401
        opened.append(path)
        read(backend, path, **more)

    monkeypatch.setattr(JournalFileBackend, "__init__", note)
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    storage = open_storage(folder.journal)
    study = ArmStudy(storage, config.name, config.arm("prefix"), seed=1, num_startup=2)
    FinalStage(config, folder, storage, engine, lambda: SOURCES).run({"prefix": study})  # type: ignore[arg-type]
    parameter_importance(storage, config.name, config.arm("prefix"), ())
    assert len(opened) == 1 and len(engine.trained) >= 2


def test_runs_that_began_early_are_those_of_the_final_stage_and_are_not_run_again(
    tmp_path: Path, config: SweepConfig
) -> None:
    config = config.model_copy(update={"final": config.final.model_copy(update={"candidates": 1})})
    specs: dict[str, list[TrialSpec]] = {}
    trained: dict[str, list[tuple[str, list[str]]]] = {}
    for when in ("early", "late"):
        folder, engine = ResultsFolder(tmp_path / when), PlayedEngine(tmp_path / when)
        folder.path.mkdir()
        studies, stage = searched(folder, config, [2.0, 1.5, 3.0, 1.0]), open_stage(config, folder, engine)
        if when == "early":
            begun = [stage.early(arm, studies.get(arm.name)) for arm in config.arms]
            engine.run("search", [one for one in begun if one is not None])
        runs = stage.run(studies)
        specs[when] = [one.spec(record) for one in engine.stages for record in one.source.records()]
        trained[when] = [(name, keys) for name, keys in engine.trained if keys]
        assert engine.decoded == [["final/untuned", *(run.name for arm in runs for run in runs[arm])]]
    assert sorted(trained["early"]) == sorted(trained["late"])
    at = {spec.key: replace(spec, folder="") for spec in specs["late"]}
    assert {spec.key: replace(spec, folder="") for spec in specs["early"]} == at and len(at) == 6


def test_candidates_begin_early_too_and_an_arm_without_a_score_begins_nothing(
    tmp_path: Path, config: SweepConfig
) -> None:
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    stage, studies = open_stage(config, folder, engine), searched(folder, config, [2.0, 1.5, 3.0, 1.0])
    begun = stage.early(config.arm("prefix"), studies["prefix"])
    assert begun is not None
    engine.run("search", [begun])
    assert engine.trained == [("candidates/prefix", ["final/prefix-3-1000", "final/prefix-1-1000"])]
    stage.run(studies)
    assert ("candidates/prefix", []) in engine.trained, "they are not trained again"
    assert ("final/prefix", ["final/prefix-1-1", "final/prefix-1-2"]) in engine.trained
    other = ResultsFolder(tmp_path / "other")
    other.path.mkdir()
    unscored = searched(other, config, [None] * 4)
    assert open_stage(config, other, engine).early(config.arm("prefix"), unscored["prefix"]) is None


@pytest.mark.parametrize("fails", [False, True])
def test_final_runs_follow_candidates_as_soon_as_idle_workers_have_decoded_dev(
    tmp_path: Path, config: SweepConfig, fails: bool
) -> None:
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    stage, studies = open_stage(config, folder, engine), searched(folder, config, [2.0, 1.5, 3.0, 1.0])
    candidates = stage.early(config.arm("prefix"), studies["prefix"])
    assert candidates is not None and candidates.num_then == 2
    engine.run("search", [candidates])
    assert not candidates.may_follow(), "none has been decoded"
    engine.failing = [job.model for job in engine.waiting if fails and job.split == "dev"]
    engine.use_idle()
    deadline = time.monotonic() + 30
    while not candidates.may_follow() and time.monotonic() < deadline:
        time.sleep(0.01)
    following = candidates.then()
    if fails:
        assert following is None, "the final stage decodes again, and says why it cannot"
        engine.failing = []
    else:
        assert following is not None and following.name == "final/prefix"
        engine.run("search", [following])
        assert engine.trained[-1] == ("final/prefix", ["final/prefix-1-1", "final/prefix-1-2"])
    runs = stage.run(studies)
    assert [run.name for run in runs["prefix"]] == ["final/prefix-1-1", "final/prefix-1-2"]
    assert (("final/prefix", []) in engine.trained) is not fails, "they are not trained again"


def test_where_the_task_has_a_document_the_base_that_sees_it_decodes_too(tmp_path: Path) -> None:
    """Workers are told the metrics, since some of them read references."""
    (tmp_path / "page.md").write_text("A page.\n")
    task, final = f"{{name: document, path: {tmp_path / 'page.md'}}}", "{num_seeds: 2, metric: test/divergence}"
    text = SWEEP.replace("{name: e2e}", task).replace("{num_seeds: 2, candidates: 2}", final)
    (tmp_path / "small.yaml").write_text(text)
    config, folder, engine = load_sweep(str(tmp_path / "small.yaml")), ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    stage = open_stage(config, folder, engine)
    studies = searched(folder, config, [2.0, 1.5, 3.0, 1.0])
    stage.run(studies)
    assert engine.decoded[-1][:2] == ["final/untuned", "final/in_context"]
    assert stage.untrained == {arm: [Part(tmp_path / "final" / arm)] for arm in ("untuned", "in_context")}
    assert [job.model for job in engine.jobs[:2]] == ["untuned", "in_context"]
    assert all(list(job.metrics) == ["divergence"] for job in engine.jobs)
    engine.failing = ["in_context"]
    stage.run(studies)
    assert list(stage.untrained) == ["untuned"] and stage.left_out == {"in_context": "out of memory"}
    engine.failing, num_before = [], len(engine.jobs)
    stage.run(studies)
    assert "in_context" in [job.model for job in engine.jobs[num_before:]], "it is tried again"
    assert list(stage.untrained) == ["untuned", "in_context"] and not stage.left_out


def test_the_winner_is_trained_for_every_document_and_candidates_for_those_of_the_search(
    tmp_path: Path, config: SweepConfig
) -> None:
    config = config.model_copy(update={"search": config.search.model_copy(update={"documents": 2})})
    failing = ["final/lora-0-2@mill"]
    folder, engine, documents = ResultsFolder(tmp_path), PlayedEngine(tmp_path, failing), ("aromi", "eagle", "mill")
    sources = [replace(SOURCES[0], document=name) for name in documents]
    stage = FinalStage(config, folder, open_storage(folder.journal), engine, lambda: sources, documents)  # type: ignore[arg-type]
    assert most_final_runs(config, len(documents)) == 6
    runs = stage.run(searched(folder, config, [2.0, 1.5, 3.0, 1.0]))
    keys = dict(engine.trained)
    assert keys["candidates/prefix"] == [f"final/prefix-{n}-1000@{name}" for n in (3, 1) for name in documents[:2]]
    wanted = [f"final/prefix-1-{seed}@{name}" for seed in (1, 2) for name in documents]
    assert keys["final/prefix"] == [run.name for run in runs["prefix"]] == wanted
    specs = {spec.key: spec for one in engine.stages for spec in map(one.spec, one.source.records())}
    assert [specs[key].subsets for key in wanted] == [(0,), (1,), (2,)] * 2
    assert [run.name for run in runs["lora"]] == [f"final/lora-0-1@{name}" for name in documents], "a seed is whole"


def test_a_final_run_decodes_test_and_a_candidate_dev(tmp_path: Path, config: SweepConfig) -> None:
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    open_stage(config, folder, engine).run(searched(folder, config, [2.0, 1.5, 3.0, 1.0]))
    jobs = {
        spec.key: one.decode(spec)
        for one in engine.stages
        if one.decode is not None
        for spec in map(one.spec, one.source.records())
    }
    assert {key: job.split for key, job in jobs.items() if "prefix" in key} == {
        "final/prefix-3-1000": "dev",
        "final/prefix-1-1000": "dev",
        "final/prefix-1-1": "test",
        "final/prefix-1-2": "test",
    }
    assert len(jobs) == 8 and all(job in engine.jobs for job in jobs.values()), "early or late, it is the same job"


def test_in_low_data_the_runs_take_the_subsets_in_turn(tmp_path: Path, config: SweepConfig) -> None:
    low = LowDataConfig(size=10, num_subsets=2)
    config = config.model_copy(update={"task": config.task.model_copy(update={"low_data": low})})
    folder, engine = ResultsFolder(tmp_path), PlayedEngine(tmp_path)
    open_stage(config, folder, engine).run(searched(folder, config, [2.0, 1.5, 3.0, 1.0]))
    subsets = {spec.key: spec.subsets for one in engine.stages for spec in map(one.spec, one.source.records())}
    assert subsets["final/prefix-1-1000"] == subsets["final/lora-0-1"] == (0,) and subsets["final/lora-0-2"] == (1,)
