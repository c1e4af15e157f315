"""The JSON schema takes every shipped sweep file and refuses what `load_sweep` refuses of a single key."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.sweep_files import VALID, changed

from prefixray.cli import main
from prefixray.config.files.json_schema import sweep_schema
from prefixray.config.files.shipped import shipped_sweeps
from prefixray.config.load import load_sweep
from prefixray.config.scales import apply_scales, scale_names
from prefixray.config.schema import FinalConfig, SearchConfig, SweepConfig, TrackingConfig
from prefixray.config.trials import METHODS, TrainConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.system.yaml_document import read_document

SCHEMA = sweep_schema()
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


def errors(values: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in CHECKER.iter_errors(values)]


def written(text: str, folder: Path) -> Path:
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return folder / "x.yaml"


def test_the_schema_is_one_and_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("name", shipped_sweeps())
def test_every_shipped_file_at_every_scale_is_taken(name: str) -> None:
    file = shipped_sweeps()[name]
    assert errors(read_document(file).values) == []
    for scale in scale_names(read_document(file)):
        document = read_document(file)
        apply_scales(document, [scale])
        document.raise_problems()
        assert errors(document.values) == [], scale


CASES = (
    "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}\n      - {choice: [1e-4], when: {mid_dim: [512]}}"
)
GOOD = {
    "fixed": ("{choice: [1, 5]}", "5"),
    "a range of whole numbers": ("{choice: [1, 5]}", "{int: [1, 9]}"),
    "cases": ("{log_uniform: [1e-4, 1e-2]}", CASES),
    "sites": ("prefix:\n", "prefix:\n    sites: {choice: [[encoder, cross], null]}\n"),
    "an arm's recipe": ("{learning_rate: 5e-5}", "{learning_rate: 5e-5, num_steps: 80, batch_size: {choice: [2, 4]}}"),
}


@pytest.mark.parametrize("what", GOOD)
def test_what_a_sweep_file_may_say_is_taken(what: str, tmp_path: Path) -> None:
    file = written(changed(*GOOD[what]), tmp_path)
    load_sweep(file)
    assert errors(read_document(file).values) == []


BAD = {
    "a misspelt section": ("search:", "serach:"),
    "a misspelt key": ("num_steps: 40", "num_step: 40"),
    "a key of another method": ("{learning_rate: 5e-5}", "{learning_rate: 5e-5, rank: 4}"),
    "a missing key": ("init_token: {choice: [restaurant, null]}", "prefix_mode: activation"),
    "a start from words without any": ("init_token: {choice: [restaurant, null]}", "init_from: words"),
    "text for a number": ("warmup_steps: 4", "warmup_steps: four"),
    "a number out of range": ("num_trials: 8", "num_trials: 0"),
    "a word that is none of the choices": ("{name: e2e,", "{name: e3e,"),
    "a form of search that does not exist": ("{log_uniform: [1e-4", "{loguniform: [1e-4"),
    "two forms of search": ("{choice: [1, 5]}", "{choice: [1, 5], int: [1, 5]}"),
    "a range of three": ("[1e-4, 1e-2]", "[1e-4, 1e-3, 1e-2]"),
    "a range of text": ("{choice: [restaurant, null]}", "{uniform: [0, 1]}"),
    "a bare list": ("{choice: [1, 5]}", "[1, 5]"),
    "an empty choice": ("[1, 5]", "[]"),
    "a value twice": ("[1, 5]", "[5, 5]"),
    "a condition that is no list": ("{mid_dim: [512]}", "{mid_dim: 512}"),
    "an arm without a method": ("finetune:", "tuned:"),
    "an unknown method": ("{learning_rate: 5e-5}", "{learning_rate: 5e-5, method: fintune}"),
    "a reserved arm": ("finetune: {", "untuned: {method: finetune, "),
    "searched steps": ("{learning_rate: 5e-5}", "{learning_rate: 5e-5, num_steps: {choice: [20, 40]}}"),
    "a recipe of all": ("{learning_rate: 5e-5}", "{learning_rate: 5e-5, precision: fp32}"),
    "a name with a blank": ("name: small", "name: my sweep"),
    "a key of a scale": ("name: small", "name: small\nscale: {laptop: {trian.num_steps: 4}}"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_sweep_file_may_not_say_is_refused_by_both(what: str, tmp_path: Path) -> None:
    old, new = BAD[what]
    file = written(VALID.replace(old, new), tmp_path)
    assert file.read_text() != VALID
    assert errors(read_document(file).values)
    with pytest.raises(UserError):
        load_sweep(file)


def _keys(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        yield name, inner
        yield from _keys(inner)
    for inner in schema.get("$defs", {}).values():
        yield from _keys(inner)


def test_every_key_of_every_section_and_method_has_its_sentence() -> None:
    told = {name for name, inner in _keys(SCHEMA) if "description" in inner}
    sections = (SweepConfig, TaskConfig, TrainConfig, SearchConfig, FinalConfig, TrackingConfig, *METHODS.values())
    assert {key for section in sections for key in section.model_fields} - told == set()
    silent = {name for name, inner in _keys(SCHEMA) if "description" not in inner}
    assert silent == set(METHODS), "an arm is described where its method is"
