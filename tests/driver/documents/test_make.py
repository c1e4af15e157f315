"""A sweep's document is studied once, before the search, and workers read what was made."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import load_task
from prefixray.data.documents import Document
from prefixray.data.documents.made import study_record
from prefixray.driver.documents import make
from prefixray.driver.documents.student import Student
from prefixray.driver.results_folder import ResultsFolder
from prefixray.errors import UserError
from prefixray.reporting.live import LiveView
from prefixray.results.likelihoods import read_likelihoods

SWEEP = """
name: {name}
base: {base}
task:
  {{name: document, path: manual.md, chunk_tokens: 40, max_target_tokens: 12, separator: "\\n",
   num_questions: {{train: 6, dev: 2, test: 2}}, prompts: ["Ask about {{passage}}"]}}
train: {{batch_size: 2, num_steps: 2, precision: fp32}}
arms: {{prefix: {{preseqlen: 2, mid_dim: null, init_token: null, learning_rate: 1e-2}}}}
search: {{num_trials: 1}}
final: {{metric: test/rouge_l}}
"""
HERE = Cluster("local", "tests", "cpu", num_cpus=1, num_gpus=0, num_workers=1, most_workers=1, num_threads=1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The documents that students have studied; here in the test's own process, without Ray."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(
        "The Eagle serves Chinese food to families. The Mill has a low rating near the river.\n"
    )
    Path("manual.md").symlink_to("text.txt")  # a document is called as the link
    names: list[str] = []

    def study(cluster: Cluster, setup: WorkerSetup, document: Document, folder: Path, **options: Any) -> None:  # noqa: ANN401
        names.append(document.name)
        student = Student(setup)
        student.study(document, str(folder), options["made"], options["seed"])
        options["on_progress"](student.progress())

    monkeypatch.setattr(make, "have_studied", study)
    return names


def sweep(name: str, base: Path, setup: WorkerSetup) -> tuple[SweepConfig, ResultsFolder, WorkerSetup]:
    Path(f"{name}.yaml").write_text(SWEEP.format(name=name, base=base))
    config, folder = load_sweep(f"{name}.yaml"), ResultsFolder(Path("runs") / name)
    task = make.task_with_exchanges(config, folder)
    return config, folder, replace(setup, base=str(base), task=task)


def run(config: SweepConfig, folder: ResultsFolder, setup: WorkerSetup) -> str:
    """What a driver without a terminal prints meanwhile."""
    shown = io.StringIO()
    live = LiveView(shown)
    make.make_study(config, folder, HERE, setup, live=live)
    live.close()
    return shown.getvalue()


def test_a_document_is_studied_once_and_workers_read_what_was_made(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup, tmp_path: Path
) -> None:
    config, folder, setup = sweep("first", base_folders["llama"], worker_setup)
    printed = run(config, folder, setup)
    assert "self-study: the base writes questions about manual, and answers them" in printed
    assert "10 questions with answers" in printed and "the teacher sees the document" in printed
    assert run(config, folder, setup) == "" and made == ["manual"], "a sweep that goes on makes none again"
    assert "are those of runs/first/documents/manual" in run(*sweep("second", base_folders["llama"], worker_setup))
    assert made == ["manual"], "nor does one with another name"
    worker = Worker(setup, on_crash=lambda: None)
    facts = worker.ready()
    assert (facts.num_dev, facts.num_test) == (2, 2)
    settings = config.final.decoding.model_copy(update={"max_new_tokens": 4}).model_dump()
    worker.decode("in_context", str(tmp_path / "out"), "test", settings, ["divergence"])
    read = read_likelihoods(tmp_path / "out", "test")
    assert abs(read.scored("divergence").corpus()) < 1e-4 < read.scored("perplexity").corpus(), "it is the teacher"


def test_a_document_that_changes_is_studied_again_unless_trials_have_trained_on_it(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    first = sweep("first", base_folders["llama"], worker_setup)
    run(*first)
    Path("manual.md").write_text("Another text about a pub in the city centre, which serves French food.\n")
    run(*first)
    assert made == ["manual", "manual"]
    before = study_record(first[1].documents / "manual")
    first[1].journal.touch()
    Path("manual.md").write_text("A third one.\n")
    with pytest.raises(UserError, match="was made from another document, base or settings, and trials have trained"):
        run(*first)
    assert study_record(first[1].documents / "manual") == before and made == ["manual", "manual"]


def test_the_exchanges_of_another_text_or_of_another_base_are_refused(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    first, other = (sweep("first", base_folders[name], worker_setup) for name in ("llama", "gpt2"))
    run(*first)
    setup = replace(other[2], task=first[2].task)
    with pytest.raises(UserError, match=r"exchanges: .*manual: were written by a base with digest .*; remove task.exc"):
        Worker(setup, on_crash=lambda: None).ready()
    task = first[0].task.model_copy(update={"exchanges": str(first[1].documents)})
    assert len(load_task(task).dev) == 2
    Path("manual.md").write_text("The Eagle closes at noon.\n")
    with pytest.raises(UserError, match=r"task.exchanges: runs.first.documents.manual: is about another text than man"):
        load_task(task)


def test_what_is_wrong_with_a_document_is_said_before_anything_starts(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    config, _, _ = sweep("first", base_folders["llama"], worker_setup)
    Path("manual.md").write_text(" \n")
    with pytest.raises(UserError, match=r"task.path: manual.md: is empty; a document must have text"):
        make.check_document(config.task)
    Path("two.jsonl").write_text('{"name": "a", "text": "A."}\n{"name": "b", "text": "B."}\n')
    with pytest.raises(UserError, match=r"two.jsonl: has 2 documents \(a, b\), and a sweep takes one: name its file"):
        make.check_document(config.task.model_copy(update={"path": "two.jsonl"}))
