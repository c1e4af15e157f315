"""A sweep over a folder without Ray: real self-study, training and decoding in this process, up to the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.small_documents import DOCUMENTS, write_documents

from prefixray.artifacts.store import load_artifact
from prefixray.cluster.decode_queue import DecodeJob
from prefixray.cluster.worker import WorkerSetup
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data.documents.made import is_made, made_from
from prefixray.data.documents.read import read_documents
from prefixray.decoding.evaluate import decode_artifact, decode_for_sweep
from prefixray.driver.documents.make import task_with_exchanges
from prefixray.driver.documents.student import Assignment, Student
from prefixray.driver.final_stage import FinalStage
from prefixray.driver.results_folder import ResultsFolder
from prefixray.driver.stage import Stage
from prefixray.results.artifacts import best_artifact, best_run
from prefixray.results.compare import Facts, make_results
from prefixray.results.hypotheses import read_hypotheses
from prefixray.results.record import Results
from prefixray.search.storage import open_storage
from prefixray.search.study import ArmStudy
from prefixray.serving.names import find_models
from prefixray.training.trainer import Trainer, load_trainer
from prefixray.trial import Report, TrialSpec

SWEEP = """
name: small
base: {base}
task:
  {{name: document, path: texts, chunk_tokens: 40, max_target_tokens: 12, separator: "\\n",
   num_questions: {{train: 4, dev: 2, test: 2}}, prompts: ["Ask about {{passage}}"]}}
train: {{batch_size: 2, num_steps: 4, precision: fp32, objective: distill}}
arms:
  prefix:
    {{preseqlen: 2, mid_dim: null, init_token: null, init_from: document, learning_rate: {{log_uniform: [1e-3, 1e-1]}}}}
search: {{num_trials: 2, documents: 2, seed: 3}}
final: {{metric: test/rouge_l, num_beams: 1, max_new_tokens: 6}}
"""


class Engine:
    """Trains all trials of a stage side by side, and decodes, with one trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.pool = SimpleNamespace(decode_when_idle=lambda job: None)  # none is ever idle
        self.packs: list[list[str]] = []

    def run(self, name: str, stages: Sequence[Stage]) -> None:
        for stage in stages:
            started: dict[str, tuple[TrialSpec, int]] = {}
            while (proposal := stage.source.ask()) is not None:
                spec = stage.spec(proposal)
                Path(spec.folder).mkdir(parents=True)
                self.trainer.admit(spec)
                started[spec.key] = spec, proposal.number
            self.packs.append(sorted(self.trainer.pack.members))
            while self.trainer.keys():
                for report in self.trainer.run():
                    self._end(stage, *started[report.key], report)

    def decode(self, jobs: Sequence[DecodeJob]) -> list[tuple[DecodeJob, str]]:
        for model, folder, *rest in jobs:
            decode_for_sweep(self.trainer, model, Path(folder), *rest)
        return []

    def _end(self, stage: Stage, spec: TrialSpec, number: int, report: Report) -> None:
        if report.state == "done":
            spec.write_result(report, "done")
            stage.source.tell(number, "done", report.metrics["dev/best_loss"])


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folders: Mapping[str, Path]) -> SweepConfig:
    monkeypatch.chdir(tmp_path)
    write_documents(Path("texts"))
    Path("small.yaml").write_text(SWEEP.format(base=base_folders["llama"]))
    return load_sweep("small.yaml")


def _studied(config: SweepConfig, folder: ResultsFolder, setup: WorkerSetup) -> Trainer:
    """A trainer over the documents, of which a student has studied those that were not studied before."""
    student = Student(setup)
    for document in read_documents("texts"):
        made, place = made_from(document, config.task, base=config.base, precision="fp32", seed=1), folder.documents
        if not is_made(place / document.name, made):
            student.study(Assignment(document, place / document.name, made), 1)
    task, precision = task_with_exchanges(config, folder), config.train
    return load_trainer(config.base, task, precision, device="cpu", num_threads=1, max_new_tokens=6)


def _searched(config: SweepConfig, folder: ResultsFolder, engine: Engine) -> dict[str, ArmStudy]:
    arm = config.arm("prefix")
    study = ArmStudy(open_storage(folder.journal), config.name, arm, seed=3, num_startup=2)

    def spec(trial: object) -> TrialSpec:
        number, values = trial.number, trial.values  # type: ignore[attr-defined]
        where, key = str(folder.trial("prefix", number).absolute()), f"prefix/{number}"
        return TrialSpec(key, arm.trial(values), 3, 0, (), where, subsets=(0, 1), keep_artifact=False)

    engine.run("search", [Stage("prefix", arm, study, 2, spec)])
    return {"prefix": study}


def _compared(config: SweepConfig, folder: ResultsFolder, engine: Engine, studies: dict[str, ArmStudy]) -> Results:
    task, storage = engine.trainer.task, open_storage(folder.final_journal)
    names = [document.name for document in task.documents]
    final = FinalStage(config, folder, storage, engine, lambda: task.dev_sources, names)  # type: ignore[arg-type]
    runs = final.run(studies)
    facts = Facts(config, engine.trainer.describe(), {}, (), {}, len(task.train))
    results, _ = make_results(facts, runs, final.untrained, task.test_sources)
    folder.store(results)
    return results


def test_one_configuration_is_found_on_some_documents_and_trained_for_all_also_for_one_that_comes_later(
    sweep: SweepConfig, worker_setup: WorkerSetup
) -> None:
    folder = ResultsFolder(Path("runs/small"))
    folder.path.mkdir(parents=True)
    task = task_with_exchanges(sweep, folder)
    setup = WorkerSetup(sweep.base, task, sweep.train, "cpu", 1, max_new_tokens=6)
    engine = Engine(_studied(sweep, folder, setup))
    studies = _searched(sweep, folder, engine)
    results = _compared(sweep, folder, engine, studies)
    (search, finals) = engine.packs
    assert search == [f"prefix/{trial}@{subset}" for trial in (0, 1) for subset in (0, 1)]
    (winner,) = studies["prefix"].best(1)
    assert finals == [f"final/prefix-{winner.number}-1@{name}" for name in DOCUMENTS], "all in one pack"

    # Each document has its artifact, which answers the questions about it.
    arms = {arm["arm"]: arm for arm in results["arms"]}
    assert list(arms) == ["untuned", "in_context", "prefix"] and results["num_sources"] == 6
    (seed,) = arms["prefix"]["seeds"]
    assert list(seed["documents"]) == list(arms["prefix"]["groups"]) == list(DOCUMENTS)
    for name, run in seed["documents"].items():
        assert load_artifact(folder.path / run["folder"] / "artifact")[1]["document"] == name
        assert len((folder.path / run["folder"] / "test.hyp").read_text().splitlines()) == 2
        assert best_run(results, None, name) == run["folder"]
    mean = sum(run["scores"]["rouge_l"] for run in seed["documents"].values()) / 3
    assert seed["scores"]["rouge_l"] == pytest.approx(mean) == arms["prefix"]["scores"]["rouge_l"]["value"]
    assert seed["dev_loss"] == pytest.approx(sum(run["dev_loss"] for run in seed["documents"].values()) / 3)
    assert best_artifact(folder.path, "prefix", "eagle").artifact.parent.name == f"prefix-{winner.number}-1@eagle"
    (folder.path / "sweep.json").write_text("{}")
    names = set(find_models([str(folder.path)]).folders)
    assert {*DOCUMENTS, "prefix@rice boat", f"final/prefix-{winner.number}-1@aromi"} <= names and "prefix" not in names

    # A document that comes later is trained with the same configuration, and all others stay as they are.
    before = {path: path.stat().st_mtime_ns for path in folder.path.glob("final/*@*/*")}
    Path("texts/zizzi.txt").write_text("Zizzi serves French food by the river.\n")
    found = best_artifact(folder.path, "prefix", "eagle")
    again = decode_artifact(found, "test", num_threads=1, device="cpu")  # zizzi has no exchanges yet
    assert again.hypotheses == read_hypotheses(found.artifact.parent, "test")
    later = Engine(_studied(sweep, folder, setup))
    more = _compared(sweep, folder, later, studies)
    assert later.packs == [[f"final/prefix-{winner.number}-1@zizzi"]]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    arms = {arm["arm"]: arm for arm in more["arms"]}
    assert more["num_sources"] == 8 and list(arms["prefix"]["seeds"][0]["documents"]) == [*DOCUMENTS, "zizzi"]
    for name in DOCUMENTS:
        assert arms["prefix"]["seeds"][0]["documents"][name] == seed["documents"][name]
