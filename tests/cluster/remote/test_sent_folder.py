"""What a laptop sends to a cluster: the files that a sweep file names, and nothing of an earlier time."""

import os
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.runtime_env.packaging import _zip_files

from prefixray.cluster.remote import submit as submit_module
from prefixray.cluster.remote.submit import submit
from prefixray.config.schema import FinalConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError


def test_a_folder_that_is_sent_again_has_nothing_of_the_first_time(tmp_path: Path) -> None:
    home, sent = tmp_path / "a home", tmp_path / "sent"
    for folder, name in ((home / "sweeps" / "small" / "the manuals", "old.md"), (sent / "the manuals", "new.md")):
        folder.mkdir(parents=True)
        (folder / name).write_text("text")
    (home / "sweeps" / "small" / "kept.jsonl").write_text("text")
    command = submit_module._unpack("small", ["the manuals"])
    environment = {**os.environ, "PREFIXRAY_HOME": str(home)}
    subprocess.run(["bash", "-c", command], cwd=sent, env=environment, check=True)
    own = home / "sweeps" / "small"
    assert [path.name for path in (own / "the manuals").iterdir()] == ["new.md"] and (own / "kept.jsonl").is_file()
    assert subprocess.run(["bash", "-c", submit_module._unpack("small", [])], cwd=sent, env=environment).returncode == 0


def test_what_another_sweep_has_found_is_not_written_into_its_folder_on_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/other/documents").mkdir(parents=True)
    for name in ("small.yaml", "manual.md", "runs/other/sweep.json"):
        Path(name).write_text("")
    task = TaskConfig(name="document", path="manual.md", exchanges="runs/other/documents")
    config: Any = SimpleNamespace(name="small", base="a-hub-id", task=task, final=FinalConfig(metric="test/rouge_l"))
    with pytest.raises(UserError, match=r"runs/other/documents: is sent into runs/other of the cluster, whose sweep"):
        submit(None, config, Path("small.yaml"), [])  # type: ignore[arg-type]


def test_what_git_is_to_ignore_is_sent_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.gguf").write_text("large")
    (tmp_path / "model" / ".gitignore").write_text("/weights.gguf")  # Ray heeds what it finds
    (tmp_path / "mine.py").write_text("def score(hypotheses, references): ...")
    (tmp_path / "small.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    sent: list[str] = []

    def submit_job(runtime_env: Mapping[str, Any], **_: object) -> str:
        assert runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
        folder = Path(runtime_env["working_dir"])
        _zip_files(str(folder), [], str(tmp_path / "sent.zip"), include_gitignore=True)
        sent.extend(name for name in zipfile.ZipFile(tmp_path / "sent.zip").namelist() if not name.endswith("/"))
        return "job"

    final = FinalConfig(metric="mine:score", more_metrics=("test/bleu", "json:dumps"))  # the second is not ours to send
    config: Any = SimpleNamespace(name="small", base="model", task=TaskConfig(name="e2e"), final=final)
    client: Any = SimpleNamespace(submit_job=submit_job)
    assert submit(client, config, Path("small.yaml"), []) == "job"
    assert sorted(sent) == ["mine.py", "model/weights.gguf", "small.yaml"], "the module of an own metric as well"
