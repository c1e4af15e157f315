"""The pages of docs/: parts made from the code are up to date, every page is in the site, files to copy are valid."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start
from recipes.reference import PAGES, PARTS, filled

from prefixray import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FILES = DOCS / "howto" / "files"
KUBERAY = {
    "spec": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"},
    "spec.rayClusterSpec": {"authOptions", "headGroupSpec", "workerGroupSpecs"},
    "spec.rayClusterSpec.headGroupSpec": {"rayStartParams", "template"},
    "spec.rayClusterSpec.workerGroupSpecs.0": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    },
}
"""Fields of KubeRay's API reference (ray.io/v1), as far as the file uses them: it has these and no others."""
SKYPILOT = {"name", "resources", "num_nodes", "workdir", "file_mounts", "envs", "setup", "run"}
"""The keys of a SkyPilot task."""
SBATCH = {
    "job-name",
    "nodes",
    "ntasks-per-node",
    "cpus-per-task",
    "gpus-per-node",
    "time",
    "requeue",
    "signal",
    "output",
}
"""The options of sbatch that the script uses, by its manual."""


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_generated_parts_of_a_page_are_those_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == filled(text), "run python tests/recipes/reference.py"


def test_every_generated_part_stands_in_one_page() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    assert sorted(re.findall(r"<!-- from the code: ([\w ]+) -->", text)) == sorted(PARTS)


def test_a_changed_part_is_found() -> None:
    page = (PAGES / "exit_codes.md").read_text(encoding="utf-8")
    assert filled(page.replace("| 0 | done |", "| 0 | perhaps |")) == page


def test_every_page_is_in_the_site_and_no_folder_is_large() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(re.findall(r": ([\w/]+\.md)$", nav, flags=re.M)) == pages
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w/]+\.md)\)", index)) == pages - {"index.md"}
    for folder in (path for path in (DOCS, *DOCS.rglob("*")) if path.is_dir()):
        assert len([path for path in folder.iterdir() if path.is_file()]) <= 10, folder


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_script_for_slurm_is_a_shell_script_whose_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    script = (FILES / "slurm.sh").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", FILES / "slurm.sh"], check=True)
    assert set(re.findall(r"^#SBATCH --([\w-]+)", script, flags=re.M)) == SBATCH
    starts = re.findall(r"ray start (.*?)(?: &)?$", script, flags=re.M)
    assert len(starts) == 2
    for words in starts:
        values = re.sub(r'"?\$\w+"?', "1", words).replace("1:1", "h:1")
        start.make_context("start", shlex.split(values))
    _check_sweep(re.findall(r"^exec (prefixray sweep .*)$", script, flags=re.M), "$sweep", capsys)


def test_the_script_for_slurm_waits_for_all_nodes_and_passes_options_on(tmp_path: Path) -> None:
    shown = 'printf "<%s>" "$@"'
    programs = {"ray": "true", "srun": f"{shown} >&2", "hostname": "echo 10.0.0.1", "prefixray": shown}
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "ray.py").write_text(
        "def init(**_): pass\nnum_there = 0\ndef nodes():\n"
        "    global num_there\n    num_there += 1\n    return [{'Alive': True}] * num_there\n"
    )
    environment = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "2", "SLURM_NNODES": "2", "PYTHONPATH": str(tmp_path)}
    environment["SLURMD_NODENAME"] = "node-a"  # which need not be the host's name
    command = ["bash", str(FILES / "slurm.sh"), "my sweep.yaml", "--set", "search.num_trials=16"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(command, env={**environment, "PATH": path}, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "2 of 2 nodes are there",
        "<sweep><my sweep.yaml><--set><search.num_trials=16><--address><10.0.0.1:20001>",
    ]
    assert "<--exclude=node-a><--cpus-per-task=2><ray><start>" in ran.stderr


def test_the_file_for_kuberay_has_the_fields_of_its_api(capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load((FILES / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"], set(job)) == (
        "ray.io/v1",
        "RayJob",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    for path, fields in KUBERAY.items():
        assert set(_at(job, path)) == fields, path
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    _check_sweep(re.findall(r"&& (prefixray .*)\"$", job["spec"]["entrypoint"]), "sweeps/xsum.yaml", capsys)


def test_the_file_for_skypilot_has_the_keys_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    task = yaml.safe_load((FILES / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) <= SKYPILOT and task["run"] and (ROOT / task["envs"]["SWEEP"]).is_file()
    assert set(task["envs"]) == set(re.findall(r"\$(\w+)", task["run"]))
    _check_sweep(task["run"].splitlines(), "$SWEEP", capsys)


def _at(values: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = values
    for key in path.split("."):
        found = found[int(key)] if key.isdecimal() else found[key]
    assert isinstance(found, Mapping)
    return found


def _check_sweep(commands: list[str], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The one command is understood up to the point where the sweep's file is read."""
    (command,) = commands
    program, name, given, *options = shlex.split(command.replace(' "$@"', "").replace(" $OPTIONS", ""))
    assert (Path(program).name, name, given) == ("prefixray", "sweep", file)
    assert cli.main([name, "none.yaml", *options]) == 2
    assert capsys.readouterr().err.startswith("none.yaml: ")
