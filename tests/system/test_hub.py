"""Bases and data sets of the hub, by its real clients, from a hub on this machine that also refuses and breaks off."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow
from pyarrow import parquet
from support.hub_server import COMMIT, running_hub

BEGIN = """
import json, os, shutil, urllib.request
from prefixray.errors import UserError
def case(load, rules={}, fresh=True):
    if fresh:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
    body = json.dumps(rules).encode()
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + "/_rules", body, method="POST")).read()
    try:
        print(json.dumps(load()))
    except UserError as error:
        print(json.dumps(str(error)))
"""
BASES = """
from prefixray.model.base import load_base, outline_base
from prefixray.system.hub import newest_commit
def load(name="owner/tiny"):
    base = load_base(name)
    return [base.digest, len(base.tokenizer)]
def outline():
    return len(outline_base("owner/tiny").tokenizer)
case(load)
case(load, {"HEAD .*config.json": "drop"}, fresh=False)
case(lambda: [newest_commit("owner/tiny"), outline()])
case(load, {"HEAD .*/config.json": "drop"})
case(load, {"tokenizer_config.json": 403})
case(load, {"HEAD .*tokenizer_config.json": "drop"})
case(load, {" .*/tokenizer.json": 403})
case(load, {"chat_template.jinja": 403})
case(load)
case(load, {"HEAD": "drop"}, fresh=False)
case(load, {"config.json": 401})
case(lambda: load("owner/none"))
"""
DATA = """
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from huggingface_hub import constants
import datasets
def load(path="owner/pairs", **task):
    task = load_task(TaskConfig(name="custom", path=path, **task))
    return [len(task.train), len(task.dev), len(task.test_sources)]
case(load)
case(load, {"HEAD .*README": "drop"})
case(lambda: load("owner/script"))
case(lambda: load("owner/bare", split={}))
constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
case(lambda: load("owner/bare", split={}), fresh=False)
case(lambda: load("owner/none"), fresh=False)
"""


def answers(script: str, root: Path) -> list[object]:
    """What the cases of a script give, in a process that knows this hub alone."""
    with running_hub(root) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", BEGIN + script]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_bases_of_the_hub(tmp_path: Path, base_folders: Mapping[str, Path]) -> None:
    shutil.copytree(base_folders["gpt2"], tmp_path / "models" / "owner" / "tiny")
    fresh, again, outlined, dropped, refused, broken, wordless, formless, *loaded, login, none = answers(
        BASES, tmp_path
    )
    assert [fresh, again, *loaded] == [[COMMIT, 320]] * 4, "the cache has what a hub does not give that breaks off"
    assert outlined == [COMMIT, 320], "config.json alone in the cache makes no tokenizer"
    begun = "base: owner/tiny: cannot be loaded: "
    assert str(dropped).startswith(f"{begun}config.json: ") and "give a local copy as base" in str(dropped)
    assert str(refused).startswith(f"{begun}tokenizer_config.json: the hub answers 403: log in"), refused
    assert str(broken).startswith(f"{begun}tokenizer_config.json: ")
    assert str(wordless).startswith(f"{begun}tokenizer.json: the hub answers 403: log in")
    assert str(formless).startswith(f"{begun}chat_template.jinja: the hub answers 403: log in")
    assert str(login).startswith(
        f"{begun}config.json: the hub answers 401: log in with `hf auth login`, or set HF_TOKEN"
    )
    assert "owner/none: cannot be loaded: config.json: the hub has no such repository, or it is private" in str(none)


def _write(folder: Path, texts: str) -> None:
    folder.mkdir(parents=True)
    columns = {"source": [f"s {text}" for text in texts], "target": [f"t {text}" for text in texts]}
    parquet.write_table(pyarrow.table(columns), folder / "0000.parquet")


def test_data_sets_of_the_hub(tmp_path: Path) -> None:
    sets, exports = tmp_path / "datasets" / "owner", tmp_path / "exports" / "owner"
    for split, texts in (("train", "abc"), ("validation", "de"), ("test", "f")):
        _write(sets / "pairs" / "data" / split, texts)
        (sets / "pairs" / "data" / split / "0000.parquet").rename(sets / "pairs" / f"{split}.parquet")
        _write(exports / "script" / "default" / split, texts)
    shutil.rmtree(sets / "pairs" / "data")
    _write(exports / "bare" / "default" / "train", "abcdefghijklmnopqrstuvwxyz")
    for name in ("script", "bare"):
        (sets / name).mkdir()
        (sets / name / f"{name}.py").write_text("# a loading script\n")
    for name in ("pairs", "script", "bare"):
        (sets / name / "README.md").write_text("A data set.\n")
    whole, dropped, scripted, bare, offline, none = answers(DATA, tmp_path)
    assert whole == scripted == [3, 2, 1]
    assert str(dropped).startswith("task.path: owner/pairs: no such folder, nor can a hub data set be loaded: ")
    assert isinstance(bare, list) and sum(bare) == 26 and offline == bare, "the export is in the cache"
    assert "owner/none: no such folder, nor can a hub data set be loaded: " in str(none)
