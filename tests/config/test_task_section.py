"""The section `task` of a sweep file: own files, training sets, documents, and what goes with a task."""

from pathlib import Path

import pytest
from support.sweep_files import changed, complaint, load

from prefixray.config.trials import PrefixTrial


def test_who_distills_needs_a_task_with_a_teacher() -> None:
    problem = "distill needs a teacher, and task e2e has none: take token_mean"
    assert complaint(changed("5e-5", "5e-5, objective: distill")) == f"x.yaml:14: arms.finetune.objective: {problem}"
    assert complaint(changed("  warmup_steps: 4", "  objective: distill")) == f"x.yaml:6: train.objective: {problem}"


def test_a_users_own_files_must_exist() -> None:
    Path("train.jsonl").touch()
    assert complaint(changed("name: e2e", "name: custom, train: train.jsonl, dev: data/dev.jsonl")) == (
        "x.yaml:3: task.dev: 'data/dev.jsonl': no such file; paths are relative to the working directory\n"
        "x.yaml:3: task.test: required for task custom, but missing "
        "(or set task.path, or task.split: {} to take it out of train)"
    )


def test_own_data_is_a_path_or_three_files_not_both() -> None:
    Path("a").mkdir()
    Path("a/test.jsonl").touch()
    assert load(changed("name: e2e", "name: summarization, path: a")).task.path == "a"
    assert load(changed("name: e2e", "name: summarization, path: owner/name")).task.path == "owner/name"
    assert complaint(changed("name: e2e", "name: summarization, path: a, test: a/test.jsonl")) == (
        "x.yaml:3: task.test: is not used beside task.path: remove one of them"
    )
    assert complaint(changed("name: e2e", "name: summarization, path: ./b")) == (
        "x.yaml:3: task.path: './b': no such folder; paths are relative to the working directory"
    )


def test_the_urls_of_articles_must_be_a_file() -> None:
    assert complaint(changed("name: e2e", "name: xsum_news, urls: urls.txt")) == (
        "x.yaml:3: task.urls: 'urls.txt': no such file; paths are relative to the working directory"
    )


def test_a_divergence_needs_a_teacher(tmp_path: Path) -> None:
    text = changed("test/bleu", "test/divergence")
    assert "final.metric: 'test/divergence': must be one of test/bleu" in complaint(text)
    (tmp_path / "own.jsonl").write_text('{"source": "Who?", "target": "We."}\n')
    (tmp_path / "page.md").write_text("A page.\n")
    text = text.replace("{name: e2e, num_dev: 64}", f"{{name: document, path: {tmp_path}/page.md, num_dev: 64}}")
    assert load(text).final.metric == "test/divergence"
    assert complaint(text.replace("num_dev: 64", f"test: {tmp_path}/own.jsonl")) == (
        "x.yaml:16: final.metric: 'test/divergence': compares with the teacher, which has not seen the answers of "
        "task.test: take test/perplexity, or leave task.test out"
    )


def test_a_training_set_is_measured_in_one_way() -> None:
    low = changed("task: {name: e2e, num_dev: 64}", "task: {name: e2e, num_train: 9, low_data: {size: 50}}")
    assert complaint(low) == "x.yaml:3: task.num_train: is not used beside task.low_data: remove one of them"
    share = changed("num_dev: 64", "num_dev: 64, fraction: 0.2, low_data: {size: 50}")
    assert complaint(share).splitlines() == [
        "x.yaml:3: task.low_data: is not used beside task.fraction: remove one of them",
        "x.yaml:3: task.num_dev: is not used beside task.low_data: remove one of them",
    ]
    assert load(changed("num_dev: 64", "num_dev: 64, fraction: 0.2")).task.fraction == 0.2


def test_a_document_must_be_there_and_has_keys_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def document(keys: str) -> str:
        return changed("name: e2e, num_dev: 64", f"name: document, {keys}").replace("test/bleu", "test/rouge_l")

    assert "x.yaml:3: task.path: 'manual.md': no such file or folder" in complaint(document("path: manual.md"))
    assert "task.path: required for task document, but missing" in complaint(document("chunk_tokens: 9"))
    Path("manual.md").write_text("text")
    Path("own.jsonl").write_text("")
    task = load(document("path: manual.md, test: own.jsonl, num_questions: {train: 7}, prompts: [Ask.]")).task
    assert (task.num_questions.train, task.num_questions.dev, task.prompts) == (7, 24, ("Ask.",))
    started = document("path: manual.md").replace("init_token: {choice: [restaurant, null]}", "init_from: {}")
    method = (
        load(started.replace("init_from: {}", "init_from: chunks"), "arms.prefix.preseqlen=5")
        .arm("prefix")
        .trial({"mid_dim": None, "learning_rate": 1e-3})
        .method
    )
    assert method == PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, init_from="chunks")
    assert "arms.prefix.init_token: required, but missing" in complaint(
        started.replace("init_from: {}", "init_from: {choice: [chunks, words]}")
    )
    wrong = complaint(document("path: manual.md, train: own.jsonl, num_questions: {dev: 0}, exchanges: gone"))
    assert "task.train: is not used by task document: remove it" not in wrong  # a wrong value is told first
    assert "task.num_questions.dev: 0: must be a whole number above 0" in wrong
    wrong = complaint(document("path: manual.md, train: own.jsonl, exchanges: gone"))
    assert "task.train: is not used by task document: remove it" in wrong
    assert "task.exchanges: 'gone': no such folder" in wrong
    assert "task.chunk_tokens: is not used by task e2e: remove it" in complaint(
        changed("num_dev: 64", "chunk_tokens: 64")
    )


def test_what_does_not_go_with_a_folder_of_documents_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for name in ("a.md", "b.txt"):
        Path("texts", name).write_text("A text.\n")

    def sweep(search: str = "", task: str = "") -> str:
        text = changed("name: e2e, num_dev: 64", f"name: document, path: texts{task}").replace(
            "test/bleu", "test/rouge_l"
        )
        text = text.replace("rungs: [10, 20]", f"rungs: [10, 20]{search}")
        return text.replace("finetune: {", "finetune: {batch_size: {choice: [2, 4]}, ")

    assert load(sweep(", documents: 1")).search.num_searched(2) == 1
    assert complaint(sweep(", documents: 3")).endswith(
        "search.documents: 3: must be at most 2, the documents of task.path"
    )
    alone = "a trial over several documents has a model of its own for each: set search.documents: 1, or remove the arm"
    assert complaint(sweep()).endswith(f"arms.finetune: {alone}")
    assert complaint(sweep(", documents: 1", ", low_data: {size: 4}")).endswith(
        "x.yaml:3: task.low_data: is not used by task document, where each document is a set: remove it"
    )
    assert complaint(changed("rungs: [10, 20]", "rungs: [10, 20], documents: 2")).endswith(
        "search.documents: is not used by task e2e: remove it"
    )
    Path("texts/A.txt").write_text("Another.\n")
    assert "x.yaml:3: task.path: texts: 2 documents are called 'a'" in complaint(sweep())
    Path("texts/b.txt").write_text(" \n")
    assert complaint(sweep()) == "x.yaml:3: task.path: texts/b.txt: is empty; a document must have text"
