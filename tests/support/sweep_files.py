"""A small sweep file that is valid, what becomes of it when it is changed, and what a driver leaves of one."""

import json
from pathlib import Path

import pytest

from prefixray.config.identity import dump
from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.errors import UserError

VALID = """\
name: small
base: a-hub-id
task: {name: e2e, num_dev: 64}
train:
  num_steps: 40
  warmup_steps: 4
arms:
  prefix:
    preseqlen: {choice: [1, 5]}
    mid_dim: {choice: [null, 512]}
    init_token: {choice: [restaurant, null]}
    learning_rate: {log_uniform: [1e-4, 1e-2]}
    prefix_dropout: {choice: [0.0, 0.1], when: {mid_dim: [512]}}
  finetune: {learning_rate: 5e-5}
search: {num_trials: 8, rungs: [10, 20]}
final: {metric: test/bleu, reference: finetune, max_new_tokens: 60}
"""


def load(text: str = VALID, *overrides: str) -> SweepConfig:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_sweep("x.yaml", overrides)


def complaint(text: str = VALID, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert VALID.count(old) == 1, f"{old!r} stands once in the valid file"
    return VALID.replace(old, new)


def left_by_a_driver(text: str) -> Path:
    """The folder `runs/small` as a driver leaves it that has begun the sweep `small.yaml`, which is written as well."""
    Path("small.yaml").write_text(text, encoding="utf-8")
    folder = Path("runs/small").absolute()
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(dump(load_sweep("small.yaml"))))
    return folder
