"""The command that leaves requests."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.sweep_files import left_by_a_driver

from prefixray.control import main

NO_SWEEP = "is no results folder, no name under runs/ and no sweep file"
NO_TRIAL = "must be ARM/NUMBER, the arm one that is searched (prefix, lora)"
SWEEP = """
name: small
base: some/model
task: {name: e2e}
train: {num_steps: 40}
arms:
  prefix:
    preseqlen: {choice: [1, 5, 10]}
    mid_dim: null
    init_token: pub
    learning_rate: {log_uniform: [1e-3, 3e-2]}
  lora: {rank: {choice: [1, 2, 4, 8]}, learning_rate: 1e-3}
  finetune: {learning_rate: 1e-3}
search: {num_trials: 4}
"""


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder as a driver leaves it, seen from its working directory."""
    monkeypatch.chdir(tmp_path)
    return left_by_a_driver(SWEEP)


def posted(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "control").glob("*.json"))]


def test_the_command_leaves_its_request_and_says_where_it_is_kept(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ["--set", "preseqlen=5", "learning_rate=2e-3"]
    for arguments in (
        ["stop", "prefix/3"],
        ["resume", "prefix/3"],
        ["add", "--arm", "prefix", *lengths],
        ["extend", "--trials", "20"],
        ["finish"],
        ["finish", "--let-run"],
    ):
        assert main(["small", "--wait", "0", *arguments]) == 0
        assert "no answer in 0 s: the request is kept in runs/small/control/" in capsys.readouterr().out
    assert posted(stored) == [
        {"verb": "stop", "trial": "prefix/3"},
        {"verb": "resume", "trial": "prefix/3"},
        {"verb": "add", "arm": "prefix", "values": {"preseqlen": 5, "learning_rate": 2e-3}},
        {"verb": "extend", "num_trials": 20, "arm": None},
        {"verb": "finish", "let_run": False},
        {"verb": "finish", "let_run": True},
    ]


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["smal", "finish"], [f"smal: {NO_SWEEP} (did you mean 'small'?)"]),
        (["small", "stop", "prefix3"], [f"stop prefix3: {NO_TRIAL}"]),
        (["small", "stop", "finetune/0"], [f"stop finetune/0: {NO_TRIAL}"]),
        (["small", "extend", "--trials", "0"], ["--trials 0: must be a whole number above 0"]),
        (
            ["small", "extend", "--trials", "2", "--arm", "lroa"],
            ["--arm lroa: no such arm, or nothing is searched in it (did you mean 'lora'?)"],
        ),
        (["small", "add", "--set", "rank=2"], ["--arm: required, because several arms are searched: prefix, lora"]),
        (
            ["small", "add", "--arm", "prefix", "--set", "presqlen=5", "learning_rate=1", "mid_dim=3"],
            [
                "arms.prefix: preseqlen: required, but missing: an entry gives every searched key",
                "--set presqlen=5: is not searched in this arm (did you mean 'preseqlen'?)",
                "--set learning_rate=1: must be within [0.001, 0.03]",
                "--set mid_dim=3: is not searched in this arm (the keys are: preseqlen, learning_rate)",
            ],
        ),
    ],
)
def test_what_the_user_can_mend_is_said_before_anything_is_asked(
    arguments: list[str], problems: list[str], stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == problems
    assert posted(stored) == []
