"""What models are called: by the arms and runs of a sweep, by an artifact's run, or as the user says."""

import json
import shutil
from pathlib import Path

import pytest
from support.quickstart_results import quickstart_sweep

from prefixray.errors import UserError
from prefixray.serving.names import find_models


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A finished sweep with artifacts of final runs and of some trials."""
    folder = tmp_path / "quickstart"
    for run, method in (
        ("final/prefix-1", "prefix"),
        ("final/adapter-1", "adapter"),
        ("final/finetune-1", "finetune"),
        ("trials/prefix/6", "prefix"),
        ("trials/prefix/7", "prefix"),
        ("trials/adapter/1", "adapter"),
    ):
        (folder / run / "artifact").mkdir(parents=True)
        (folder / run / "artifact" / f"{method}_config.json").touch()
    (folder / "sweep.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps(quickstart_sweep()))
    return folder


def test_a_sweep_gives_its_arms_its_final_runs_and_each_arms_best_trial(sweep: Path) -> None:
    named = find_models([str(sweep)])
    assert {name: folder.relative_to(sweep).as_posix() for name, folder in named.folders.items()} == {
        "prefix": "final/prefix-1/artifact",
        "final/prefix-1": "final/prefix-1/artifact",
        "adapter": "final/adapter-1/artifact",
        "final/adapter-1": "final/adapter-1/artifact",
        "prefix/6": "trials/prefix/6/artifact",  # of trial 5, the better one, nothing is kept
        "adapter/1": "trials/adapter/1/artifact",
    }
    assert named.left_out == ("finetune", "final/finetune-1")
    again = find_models([f"first={sweep}", str(sweep)]).folders
    assert again["first/prefix"] == again["prefix"]
    results = quickstart_sweep()
    sampled = next(trial for trial in results["search"] if (trial["arm"], trial["number"]) == ("prefix", 6))
    sampled["is_sampled"] = True
    (sweep / "results.json").write_text(json.dumps(results))
    assert "prefix/7" in find_models([str(sweep)]).folders, "a loss over a sample of dev is compared last"


def test_an_artifact_has_the_name_of_its_run_or_the_one_that_is_given(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lora_config.json").touch()
    words = [
        f"{sweep}/final/prefix-1/artifact",
        f"{sweep}/trials/prefix/7/artifact",
        str(tmp_path / "mine"),
        f"her={tmp_path / 'mine'}",
    ]
    assert list(find_models(words).folders) == ["final/prefix-1", "prefix/7", "mine", "her"]


def test_a_sweep_without_artifacts_is_refused_with_the_reason(sweep: Path) -> None:
    results = quickstart_sweep()
    (sweep / "results.json").write_text(json.dumps({"search": results["search"]}))
    for artifact in sweep.glob("*/*/**/artifact"):
        shutil.rmtree(artifact)
    with pytest.raises(UserError, match="quickstart: no final stage yet; its trials have left no artifact"):
        find_models([f"mine={sweep}"])


def test_names_that_do_not_go_together_are_refused(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "prefix_config.json").touch()
    for words, told in (
        (
            [str(sweep), str(tmp_path / "prefix")],
            "prefix: is the name of .*final/prefix-1/artifact too; give it another",
        ),
        ([f"untuned={tmp_path / 'prefix'}"], "untuned: is the name of the base; give it another: NAME="),
        ([f"{sweep}/final/finetune-1/artifact"], "^final/finetune-1: fine-tuned models of their own share no batch"),
        (["nothing"], "^nothing: is no results folder"),
    ):
        with pytest.raises(UserError, match=told):
            find_models(words)
