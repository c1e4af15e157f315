"""A sweep's document is studied once, before the search, and workers read what was made."""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefixray.cluster.connect import Cluster
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.data import load_task
from prefixray.data.documents.made import study_record
from prefixray.driver.documents import make
from prefixray.driver.documents.student import Assignment, Student
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


killed_at: set[str] = set()  # the names of documents at which the driver is interrupted


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The documents that students have studied; here in the test's own process, without Ray."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(
        "The Eagle serves Chinese food to families. The Mill has a low rating near the river.\n"
    )
    Path("manual.md").symlink_to("text.txt")  # a document is called as the link
    names: list[str] = []

    def have_studied(cluster: Cluster, setup: WorkerSetup, assignments: Sequence[Assignment], **options: Any) -> None:  # noqa: ANN401
        student = Student(setup)
        for assignment in assignments:
            if assignment.document.name in killed_at:
                raise KeyboardInterrupt
            names.append(assignment.document.name)
            student.study(assignment, options["seed"])
            options["on_progress"](student.progress())
            options["on_done"](assignment)

    killed_at.clear()
    monkeypatch.setattr(make, "have_studied", have_studied)
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
    first[1].journal.write_text("{}\n")
    Path("manual.md").write_text("A third one.\n")
    with pytest.raises(UserError, match="was made from another document, base or settings, and this sweep has trials"):
        run(*first)
    assert study_record(first[1].documents / "manual") == before and made == ["manual", "manual"]


def test_the_exchanges_of_another_text_are_refused(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    first = sweep("first", base_folders["llama"], worker_setup)
    run(*first)
    task = first[0].task.model_copy(update={"exchanges": str(first[1].documents)})
    assert len(load_task(task).dev) == 2
    Path("manual.md").write_text("The Eagle closes at noon.\n")
    with pytest.raises(UserError, match=r"task.exchanges: runs.first.documents.manual: is about another text than man"):
        load_task(task)


def test_the_exchanges_of_another_base_are_refused_where_it_would_be_the_teacher(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    first, other = (sweep("first", base_folders[name], worker_setup) for name in ("llama", "gpt2"))
    run(*first)
    worker = Worker(replace(other[2], task=first[2].task), on_crash=lambda: None)
    digest = worker.ready().base_digest  # no teacher is in play, and the exchanges are questions and answers
    config, folder, _ = other
    make.check_teachers(config, folder, digest)
    distilled = with_arm(config, objective="distill")
    own = r"^runs/first/documents/manual: its exchanges were .*; delete runs/first/documents/manual, or give this sweep"
    with pytest.raises(UserError, match=own):
        make.check_teachers(distilled, folder, digest)
    scored = config.model_copy(update={"final": config.final.model_copy(update={"metric": "test/divergence"})})
    with pytest.raises(UserError, match=own):
        make.check_teachers(scored, folder, digest)
    task = config.task.model_copy(update={"exchanges": str(folder.documents)})
    with pytest.raises(UserError, match=r"were written by a base with digest .*; remove task.exchanges, and prefixray"):
        make.check_teachers(distilled.model_copy(update={"task": task}), folder, digest)
    make.check_teachers(distilled, folder, study_record(folder.documents / "manual")["base_digest"])


def with_arm(config: SweepConfig, **fixed: str) -> SweepConfig:
    (arm,) = config.arms
    return config.model_copy(update={"arms": (arm.model_copy(update={"fixed": {**arm.fixed, **fixed}}),)})


def test_another_commit_of_a_hubs_base_is_its_own_teacher_still(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder, _ = sweep("first", base_folders["llama"], worker_setup)
    of_hub = with_arm(config.model_copy(update={"base": "owner/name"}), objective="distill")
    record = {"base_digest": "a" * 40, "made_from": {"base": {"name": "owner/name"}}}
    place = folder.documents / "manual"
    place.mkdir(parents=True)
    (place / "study.json").write_text(json.dumps(record))
    make.check_teachers(of_hub, folder, "b" * 40)
    assert "another commit, which may have changed no weight" in caplog.text
    with pytest.raises(UserError, match="were written by a base with digest aaaa"):
        make.check_teachers(of_hub.model_copy(update={"base": "owner/another"}), folder, "b" * 40)


def test_a_base_of_the_same_name_and_size_writes_its_own_exchanges(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    bases = [Path(which, "model") for which in ("one", "two")]
    for base in bases:
        shutil.copytree(base_folders["llama"], base)
    weights = bases[1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # of a number's mantissa
    weights.write_bytes(content)
    run(*sweep("first", bases[0], worker_setup))
    run(*sweep("second", bases[1], worker_setup))
    assert made == ["manual", "manual"]
    assert "are those of runs/first/documents/manual" in run(*sweep("third", bases[0], worker_setup))
    digests = [study_record(Path(f"runs/{name}/documents/manual"))["base_digest"] for name in ("first", "second")]
    assert digests[0] != digests[1]


def folder_of_three() -> None:
    Path("manual.md").unlink()
    Path("manual.md").mkdir()
    for name, text in {
        "aromi": "Aromi serves tea.",
        "mill": "The Mill is cheap.",
        "eagle": "The Eagle is a pub.",
    }.items():
        Path(f"manual.md/{name}.txt").write_text(f"{text} It lies near the river, and families like it.\n")


def test_of_a_folder_each_document_is_studied_once_and_a_driver_that_was_killed_goes_on_behind_the_last_one(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    folder_of_three()
    first = sweep("first", base_folders["llama"], worker_setup)
    killed_at.add("eagle")
    with pytest.raises(KeyboardInterrupt):
        run(*first)
    killed_at.clear()
    assert made == ["aromi"]
    printed = run(*first)
    assert made == ["aromi", "eagle", "mill"], "in the order of their files"
    assert "self-study: the base writes questions about 2 documents, and answers them" in printed
    assert printed.count("10 questions with answers") == 2
    worker = Worker(first[2], on_crash=lambda: None)
    facts = worker.ready()
    assert (facts.num_dev, facts.num_test) == (2, 6), "dev of one document, and the test of all three"


def test_the_documents_of_a_search_stay_once_trials_have_trained_on_them(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    folder_of_three()
    config, folder, _ = sweep("first", base_folders["llama"], worker_setup)
    two = config.model_copy(update={"search": config.search.model_copy(update={"documents": 2})})
    folder.path.mkdir(parents=True)
    make.keep_searched(two, folder)
    Path("manual.md/mill.txt").rename("manual.md/zizzi.txt")
    folder.journal.write_text("{}\n")
    make.keep_searched(two, folder)
    Path("manual.md/another.txt").write_text("A new one.\n")
    said = "trials have trained on aromi, eagle, and now another, aromi would be the first; undo the change"
    with pytest.raises(UserError, match=said):
        make.keep_searched(two, folder)


def test_a_document_that_comes_to_fewer_than_four_is_none_of_the_search(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    folder_of_three()
    Path("manual.md/mill.txt").unlink()
    config, folder, _ = sweep("first", base_folders["llama"], worker_setup)
    folder.path.mkdir(parents=True)
    assert make.keep_searched(config, folder).search.num_searched(2) == 2
    folder.journal.write_text("{}\n")
    Path("manual.md/zizzi.txt").write_text("Zizzi serves French food.\n")
    later = make.keep_searched(config, folder)
    assert later.search.num_searched(3) == 2 and json.loads(folder.searched_documents.read_text()) == ["aromi", "eagle"]
    Path("manual.md/eagle.txt").unlink()
    with pytest.raises(UserError, match="trials have trained on aromi, eagle, and now aromi, zizzi would be the first"):
        make.keep_searched(config, folder)


def test_what_is_wrong_with_a_document_is_said_before_anything_starts(
    made: list[str], base_folders: Mapping[str, Path], worker_setup: WorkerSetup
) -> None:
    config, _, _ = sweep("first", base_folders["llama"], worker_setup)
    Path("manual.md").write_text(" \n")
    with pytest.raises(UserError, match=r"task.path: manual.md: is empty; a document must have text"):
        make.check_documents(config.task)
    Path("two.jsonl").write_text('{"name": "a", "text": "A."}\n{"name": "b", "text": "B."}\n')
    own = '{"source": "What?", "target": "A.", "about": "a"}\n{"source": "Why?", "target": "C.", "about": "c"}\n'
    Path("own.jsonl").write_text(own)
    several = config.task.model_copy(update={"path": "two.jsonl", "test": "own.jsonl"})
    with pytest.raises(
        UserError, match=r"own.jsonl: must say which of 2 documents each question is about; name the column"
    ):
        make.check_documents(several)
    named = several.model_copy(update={"columns": several.columns.model_copy(update={"group": "about"})})
    with pytest.raises(UserError, match=r"own.jsonl: \"about\": 'c': no document of task.path: two.jsonl"):
        make.check_documents(named)
