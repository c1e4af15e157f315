"""What makes two sweeps the same, and a configuration as JSON."""

import json
from pathlib import Path

import pytest
from support.sweep_files import VALID, load

from prefixray.config.identity import differences, dump, identity, restore, stored_config
from prefixray.errors import UserError


def test_a_configuration_survives_json() -> None:
    config = load(VALID, "arms.prefix.weight_decay={int: [0, 2]}")
    assert restore(json.loads(json.dumps(dump(config)))) == config


@pytest.mark.parametrize(
    "budget",
    [
        "search.num_trials=9",
        "search.concurrency=2",
        "search.max_hours=1.5",
        "search.max_gpu_hours=8",
        "search.max_failures=1",
        "arms.prefix.num_trials=5",
        "final.num_seeds=3",
        "tracking.mlflow=null",
        "final.length_with_prompt=true",
    ],
)
def test_budgets_tracking_and_the_final_stage_do_not_change_what_a_sweep_is(budget: str) -> None:
    assert identity(load()) == identity(load(VALID, budget))


def test_another_way_of_measuring_alone_trains_nothing_anew() -> None:
    """WebNLG is scored and decoded anew; E2E's targets become others, which the difference names."""
    webnlg = "task={name: webnlg, path: .}"
    assert identity(load(VALID, webnlg)) == identity(load(VALID, webnlg, "evaluation=paper"))
    changed = differences(identity(load()), identity(load(VALID, "evaluation=paper")))
    assert changed == ["task.tokenised: false -> true"]


def test_differences_are_named_as_the_file_has_them() -> None:
    overrides = ["train.num_steps=60", "arms.prefix.preseqlen=20", "arms.prefix.learning_rate.log_uniform=[1e-4, 1]"]
    overrides += ["arms.lora={rank: 4, learning_rate: 1e-3}", "search.seed=2"]
    assert differences(identity(load()), identity(load(VALID, *overrides))) == [
        "train.num_steps: 40 -> 60",
        'arms.prefix.preseqlen: {"choice": [1, 5]} -> 20',
        "arms.prefix.learning_rate.log_uniform: [0.0001, 0.01] -> [0.0001, 1.0]",
        'arms.lora: added -> {"method": "lora", "rank": 4, "learning_rate": 0.001}',
        "search.seed: 1 -> 2",
    ]
    assert differences({"a": 1, "b": 2}, {"b": 2}) == ["a: 1 -> removed"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"arms": 3}', '{"arms": [3]}', "null"])
def test_a_record_of_another_version_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(
        UserError, match=r"sweep\.json: was written by another version; give this sweep another name \("
    ):
        stored_config(tmp_path)
