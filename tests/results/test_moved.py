"""An artifact of a sweep whose folder was moved, or fetched from a cluster."""

import shutil
from pathlib import Path

import pytest
from support.sweep_files import VALID, left_by_a_driver

from prefixray.results.artifacts import Found, base_and_task, sweep_of


def test_what_is_not_where_the_record_says_is_where_the_sweeps_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    files = {key: f"data/{key}.jsonl" for key in ("train", "dev", "test")}
    for path in files.values():
        Path(path).write_text("")
    named = ", ".join(f"{key}: {path}" for key, path in files.items())
    text = VALID.replace("{name: e2e, num_dev: 64}", f"{{name: custom, {named}}}").replace("a-hub-id", "data")
    sweep = left_by_a_driver(text)
    there = {key: f"/mnt/of/the/cluster/{path}" for key, path in files.items()}
    record = {"base": {"name": "/mnt/of/the/cluster/base"}, "task": {"name": "custom", **there}}
    base, task = base_and_task(Found(sweep / "final" / "artifact", sweep), record)
    assert base == "data" and task.paths == files
    base, task = base_and_task(Found(sweep / "final" / "artifact"), record)
    assert base == "/mnt/of/the/cluster/base" and task.paths == there, "nothing is known of a sweep"
    record = {"base": {"name": "a/hub-id"}, "task": {"name": "custom", **files}}
    base, task = base_and_task(Found(sweep / "final" / "artifact", sweep), record)
    assert base == "a/hub-id" and task.paths == files
    runs = {
        folder: sweep_of(sweep / folder / "artifact") for folder in ("final/lora-0-1", "trials/lora/0", "train/lora")
    }
    assert list(runs.values()) == [sweep.resolve(), sweep.resolve(), None], "another task may have been trained alone"


def test_exchanges_lie_where_the_file_says_or_in_the_sweeps_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manual.md").write_text("The Eagle is a pub.\n")
    Path("made").mkdir()
    record = {
        "base": {"name": "a-hub-id"},
        "task": {"name": "document", "path": "/mnt/manual.md", "exchanges": "/mnt/runs/small/documents"},
    }
    text = VALID.replace("test/bleu", "test/token_f1")
    for task, exchanges in (("path: manual.md", "documents"), ("path: manual.md, exchanges: made", "made")):
        sweep = left_by_a_driver(text.replace("{name: e2e, num_dev: 64}", f"{{name: document, {task}}}"))
        _, config = base_and_task(Found(sweep / "final" / "artifact", sweep), record)
        assert config.path == "manual.md" and Path(str(config.exchanges)).name == exchanges
        shutil.rmtree(sweep)
