"""Sweep files: what they become, every message they can cause, and what makes two sweeps the same."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixray.config.identity import differences, dump, identity, restore
from prefixray.config.load import find_sweep, load_sweep
from prefixray.config.scales import scale_names
from prefixray.config.schema import SweepConfig
from prefixray.config.space import Choice, LogUniform
from prefixray.config.trials import PrefixTrial
from prefixray.errors import UserError
from prefixray.system.yaml_document import read_document

SWEEPS = Path(__file__).parents[2] / "sweeps"
SHIPPED = sorted(SWEEPS.rglob("*.yaml"))
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


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


# What a file becomes


def test_a_valid_file_becomes_typed_objects() -> None:
    config = load()
    prefix = config.arm("prefix")
    assert prefix.dimensions["preseqlen"] == Choice(choice=(1, 5))
    assert prefix.dimensions["learning_rate"] == LogUniform(log_uniform=(1e-4, 1e-2))
    assert (prefix.num_trials, prefix.exclusive) == (8, False)
    trial = prefix.trial({"preseqlen": 5, "mid_dim": None, "init_token": "x y", "learning_rate": 1e-3})
    assert trial.method == PrefixTrial(preseqlen=5, mid_dim=None, init_token="x y")
    assert (trial.num_steps, trial.warmup_steps, trial.learning_rate) == (40, 4, 1e-3)
    assert config.search.rungs == (10, 20)


def test_an_arm_without_a_search_has_one_trial() -> None:
    assert load().arm("finetune").num_trials == 1


def test_an_arm_has_no_more_trials_than_its_space_has_points() -> None:
    # preseqlen x init_token x (flat, or 512 with either dropout)
    assert load(VALID, "arms.prefix.learning_rate=1e-3", "search.num_trials=50").arm("prefix").num_trials == 2 * 2 * 3


def test_an_arm_may_have_its_own_budget_recipe_and_name() -> None:
    arm = "  wide: {method: lora, rank: {choice: [64, 128]}, learning_rate: 1e-3, batch_size: 16, num_trials: 2}\n"
    wide = load(changed("search:", f"{arm}search:")).arm("wide")
    assert (wide.method, wide.num_trials, wide.trial({"rank": 64}).batch_size) == ("lora", 2, 16)


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".5", 0.5), ("1_0", 10), ("+3", 3), ("010", 10), ("2", 2)],
)
def test_numbers_are_numbers(written: str, read: float) -> None:
    assert load(VALID, f"arms.finetune.learning_rate={written}").arm("finetune").fixed["learning_rate"] == read


@pytest.mark.parametrize("word", ["yes", "on", "1:30", "2024-01-01", ".inf"])
def test_words_that_only_older_yaml_takes_for_values_are_words(word: str) -> None:
    assert load(VALID, f"arms.prefix.init_token={word}").arm("prefix").fixed["init_token"] == word


def test_sites_are_a_list_that_may_be_searched() -> None:
    fixed = load(VALID, "arms.prefix.sites=[cross, encoder]").arm("prefix")
    assert fixed.trial(
        {"preseqlen": 5, "mid_dim": 512, "init_token": "a", "learning_rate": 1e-3}
    ).method == PrefixTrial(preseqlen=5, mid_dim=512, init_token="a", sites="encoder+cross")
    searched = load(VALID, "arms.prefix.sites={choice: [[cross], [encoder, decoder]]}")
    assert searched.arm("prefix").dimensions["sites"] == Choice(choice=("cross", "encoder+decoder"))
    assert restore(json.loads(json.dumps(dump(searched)))) == searched
    assert complaint(VALID, "arms.prefix.sites={choice: [[cross], [middle]]}").endswith(
        "arms.prefix.sites.choice[1]: [\"middle\"]: must be a list of 'encoder', 'decoder', 'cross', each at "
        "most once, or null"
    )


def test_configurations_to_be_tried_first_are_kept() -> None:
    entry = "{preseqlen: 5, mid_dim: 512, init_token: null, learning_rate: 1e-3, prefix_dropout: 0.1}"
    (first,) = load(VALID, f"arms.prefix.first=[{entry}]").arm("prefix").first
    assert first == {
        "preseqlen": 5,
        "mid_dim": 512,
        "init_token": None,
        "learning_rate": 1e-3,
        "prefix_dropout": 0.1,
    }


def test_a_whole_number_that_is_listed_is_meant_however_it_is_written() -> None:
    entry = "{preseqlen: 5.0, mid_dim: 512, init_token: null, learning_rate: 1e-3, prefix_dropout: 0}"
    (first,) = load(VALID, f"arms.prefix.first=[{entry}]").arm("prefix").first
    assert (type(first["preseqlen"]), type(first["prefix_dropout"])) == (int, float)


def test_values_that_do_not_go_together_under_a_condition_are_found() -> None:
    message = complaint(
        VALID,
        "arms.prefix.prefix_dropout=0.0",
        "arms.prefix.prefix_mode={choice: [activation, embedding]}",
        "arms.prefix.format_mode={choice: [cat, infix], when: {mid_dim: [512]}}",
    )
    assert "format_mode" in message or "prefix_mode" in message


def test_a_condition_that_no_value_meets_is_refused() -> None:
    assert "must be values that mid_dim can have" in complaint(changed("when: {mid_dim: [512]}", "when: {mid_dim: []}"))
    for value in ("513", "5:12"):
        assert complaint(changed("when: {mid_dim: [512]}", f"when: {{mid_dim: [{value}]}}")).endswith(
            ": must be values that mid_dim can have"
        )


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(SWEEPS)))
def test_every_sweep_that_ships_is_valid_at_every_scale_and_says_what_it_is(file: Path) -> None:
    Path("data").mkdir()
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "XSum-WebArxiveUrls.txt"):
        Path("data", name).touch()
    config = load_sweep(file)
    assert config.name == file.stem
    opening = file.read_text(encoding="utf-8").split("name:")[0]
    assert opening.startswith("# ") and f"python -m prefixray.sweep sweeps/{file.relative_to(SWEEPS)}" in opening
    for scale in scale_names(read_document(file)):
        assert load_sweep(file, scales=[scale]).name == f"{file.stem}-{scale}"
    assert file.parent == SWEEPS or "laptop" in scale_names(read_document(file))


# Messages


@pytest.mark.parametrize("key", ["preseqlen", "learning_rate", "train.learning_rate"])
def test_a_value_of_an_arm_that_is_set_without_the_arm_is_told_where_it_belongs(key: str) -> None:
    name = key.removeprefix("train.")
    assert complaint(VALID, f"{key}=1") == (
        f"--set {key}=1: is a value of an arm: --set arms.prefix.{name}=1, --set arms.finetune.{name}=1"
    )


def test_a_misspelt_key_is_named_with_its_nearest() -> None:
    problem = "x.yaml:9: arms.prefix.presqlen: no such key for a prefix (did you mean 'preseqlen'?)"
    assert complaint(changed("preseqlen:", "presqlen:")) == problem


def test_a_key_like_no_other_is_answered_with_all_keys() -> None:
    assert complaint(changed("{learning_rate: 5e-5}", "{learning_rate: 5e-5, zzz: 1}")) == (
        "x.yaml:14: arms.finetune.zzz: no such key for fine-tuning (the keys are: top_layers, tune_embeddings, "
        "learning_rate, batch_size, grad_accumulation, num_steps, warmup_steps, schedule, weight_decay, "
        "max_grad_norm, objective, label_smoothing, method, num_trials, first)"
    )


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = VALID.replace("num_steps: 40", "num_stps: 40").replace("num_dev: 64", "num_dev: none")
    text = text.replace("rungs: [10, 20]", "rungs: [10, 0], keep: 2").replace("5e-5", "fast")
    assert complaint(text, "final.num_beams=true").splitlines() == [
        "x.yaml:3: task.num_dev: 'none': must be a whole number above 0, or 'all'",
        "x.yaml:5: train.num_stps: no such key (did you mean 'num_steps'?)",
        "x.yaml:14: arms.finetune.learning_rate: 'fast': must be a number above 0",
        "x.yaml:15: search.rungs: [10, 0]: must be a list of whole numbers above 0",
        "x.yaml:15: search.keep: 2: must be a number above 0 and of at most 1",
        "--set final.num_beams=true: must be a whole number above 0",
    ]


MALFORMED = {
    "an adapter without a size": (
        "  finetune: {",
        "  adapter: {learning_rate: 1e-3}\n  finetune: {",
        "x.yaml:14: arms.adapter.percent: must be given where bottleneck is not, and only there",
    ),
    "an adapter of two sizes": (
        "  finetune: {",
        "  adapter: {bottleneck: 8, percent: 3, learning_rate: 1e-3}\n  finetune: {",
        "x.yaml:14: arms.adapter.percent: 3: must be given where bottleneck is not, and only there",
    ),
    "an infix of embeddings alone": (
        "preseqlen: {choice: [1, 5]}",
        "preseqlen: 5\n    prefix_mode: {choice: [activation, embedding]}\n    format_mode: infix",
        "x.yaml:11: arms.prefix.format_mode: 'infix': must be cat where prefix_mode is embedding (an infix has "
        "embeddings of its own)",
    ),
    "no such format": (
        "preseqlen: {choice: [1, 5]}",
        "preseqlen: 5\n    format_mode: nopeek",
        "x.yaml:10: arms.prefix.format_mode: 'nopeek': must be one of 'cat', 'infix'",
    ),
    "too few layers": (
        "{learning_rate: 5e-5}",
        "{learning_rate: 5e-5, top_layers: -1}",
        "x.yaml:14: arms.finetune.top_layers: -1: must be a whole number of at least 0, or null",
    ),
    "a missing key": ("  num_steps: 40\n", "", "x.yaml:4: train.num_steps: required, but missing"),
    "a missing section": ("search: {num_trials: 8, rungs: [10, 20]}\n", "", "x.yaml:1: search: required, but missing"),
    "a value out of range": (
        "num_steps: 40",
        "num_steps: 0",
        "x.yaml:5: train.num_steps: 0: must be a whole number above 0",
    ),
    "a section that is a value": (
        "task: {name: e2e, num_dev: 64}",
        "task: e2e",
        "x.yaml:3: task: 'e2e': must be a mapping of keys to values",
    ),
    "a name that leads out of runs/": (
        "name: small",
        "name: ../small",
        "x.yaml:1: name: '../small': must be letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "an unknown task": (
        "name: e2e",
        "name: e2",
        "x.yaml:3: task.name: 'e2': must be one of 'e2e', 'webnlg', 'dart', 'custom', 'xsum', 'xsum_news', "
        "'xsum_sport', 'cnn_dm', 'dialogsum', 'scitldr', 'summarization' (did you mean 'e2e'?)",
    ),
    "a task without its path": (
        "name: e2e",
        "name: webnlg",
        "x.yaml:3: task.path: required for task webnlg, but missing",
    ),
    "a key that the task does not use": (
        "num_dev: 64",
        "path: data",
        "x.yaml:3: task.path: is not used by task e2e: remove it",
    ),
    "a list of URLs for a task that needs none": (
        "name: e2e",
        "name: xsum, urls: urls.txt",
        "x.yaml:3: task.urls: is not used by task xsum: remove it",
    ),
    "a base that does not exist": (
        "a-hub-id",
        "./model.gguf",
        "x.yaml:2: base: './model.gguf': no such file or folder; paths are relative to the working directory",
    ),
    "a key twice": ("  warmup_steps: 4", "  num_steps: 4", "x.yaml:6: train.num_steps: is there twice"),
    "a warm-up beyond the end": (
        "  warmup_steps: 4",
        "  warmup_steps: 40",
        "x.yaml:6: train.warmup_steps: 40: must be below num_steps (40)",
    ),
    "rungs out of order": ("[10, 20]", "[20, 10]", "x.yaml:15: search.rungs: [20, 10]: must be ascending"),
    "a rung at the end": (
        "[10, 20]",
        "[10, 40]",
        "x.yaml:15: search.rungs: [10, 40]: must be below train.num_steps (40), at which every trial ends",
    ),
    "a rung within an arm's warm-up": (
        "5e-5",
        "5e-5, warmup_steps: 6",
        "x.yaml:15: search.rungs: [10, 20]: the first must be at least twice arms.finetune.warmup_steps (6): "
        "12 or more",
    ),
    "a reference that is no arm": (
        "reference: finetune",
        "reference: finetuned",
        "x.yaml:16: final.reference: 'finetuned': no such arm (did you mean 'finetune'?)",
    ),
    "a metric of another family": (
        "test/bleu",
        "test/accuracy",
        "x.yaml:16: final.metric: 'test/accuracy': must be one of test/bleu, test/nist, test/rouge_l_coco, "
        "test/cider, test/chrf, test/ter, test/meteor_1_5 for task e2e",
    ),
    "no room for text": (
        "max_new_tokens: 60",
        "max_new_tokens: 5, min_new_tokens: 9",
        "x.yaml:16: final.min_new_tokens: 9: min_new_tokens must be at most max_new_tokens (5)",
    ),
    "an arm that names no method": (
        "  finetune: {",
        "  finetuned: {",
        "x.yaml:14: arms.finetuned.method: required, because 'finetuned' is no method (did you mean 'finetune'?)\n"
        "x.yaml:16: final.reference: 'finetune': no such arm (did you mean 'finetuned'?)",
    ),
    "a reserved arm": (
        "search:",
        "  untuned: {method: finetune, learning_rate: 1e-5}\nsearch:",
        "x.yaml:15: arms.untuned: is a reserved name: call the arm otherwise",
    ),
    "an arm that is no folder's name": (
        "search:",
        "  a/b: {method: finetune, learning_rate: 1e-5}\nsearch:",
        "x.yaml:15: arms.'a/b': an arm's name must be letters, digits, '_' and '-', the first a letter or digit",
    ),
    "a budget with nothing to search": (
        "5e-5",
        "5e-5, num_trials: 8",
        "x.yaml:14: arms.finetune.num_trials: 8: must be 1, because nothing is searched in this arm "
        "(remove num_trials)",
    ),
    "a recipe that is shared": (
        "5e-5",
        "5e-5, eval_every: 5",
        "x.yaml:14: arms.finetune.eval_every: stands under train only, because it is the same for all arms",
    ),
    "a searched length of the schedule": (
        "5e-5",
        "5e-5, num_steps: {choice: [40, 80]}",
        "x.yaml:14: arms.finetune.num_steps: cannot be searched: trials of an arm are compared on one schedule",
    ),
    "rungs beyond an arm's own schedule": (
        "5e-5",
        "5e-5, num_steps: 20",
        "x.yaml:15: search.rungs: [10, 20]: must be below arms.finetune.num_steps (20), at which every trial ends",
    ),
    "a required value of a prefix": (
        "    preseqlen: {choice: [1, 5]}\n",
        "",
        "x.yaml:8: arms.prefix.preseqlen: required, but missing",
    ),
    "a list in place of a value": (
        "5e-5",
        "[5e-5, 1e-4]",
        "x.yaml:14: arms.finetune.learning_rate: [5e-05, 0.0001]: must be a single value; "
        "{choice: [...]} searches a list",
    ),
    "a kind of dimension that is none": (
        "{log_uniform: [1e-4, 1e-2]}",
        "{loguniform: [1e-4, 1e-2]}",
        "x.yaml:12: arms.prefix.learning_rate.loguniform: no such key for a searched value "
        "(did you mean 'log_uniform'?)",
    ),
    "two kinds at once": (
        "{log_uniform: [1e-4, 1e-2]}",
        "{log_uniform: [1e-4, 1e-2], choice: [1e-3]}",
        "x.yaml:12: arms.prefix.learning_rate: a searched value must have one of choice, uniform, log_uniform, int, "
        "not 2 of them",
    ),
    "a range upside down": (
        "[1e-4, 1e-2]",
        "[1e-2, 1e-4]",
        "x.yaml:12: arms.prefix.learning_rate.log_uniform: [0.01, 0.0001]: the low end must be below the high end",
    ),
    "a range of the logarithm from 0": (
        "[1e-4, 1e-2]",
        "[0, 1e-2]",
        "x.yaml:12: arms.prefix.learning_rate.log_uniform: [0, 0.01]: the low end must be above 0",
    ),
    "a range of three": (
        "[1e-4, 1e-2]",
        "[1e-4, 1e-3, 1e-2]",
        "x.yaml:12: arms.prefix.learning_rate.log_uniform: [0.0001, 0.001, 0.01]: must be two numbers, [low, high]",
    ),
    "a choice twice": (
        "[1, 5]",
        "[1, 5, 1]",
        "x.yaml:9: arms.prefix.preseqlen.choice: [1, 5, 1]: must not list a value twice",
    ),
    "a bad end, in its own line": (
        "{choice: [1, 5]}",
        "\n      choice:\n      - 1\n      - 0",
        "x.yaml:12: arms.prefix.preseqlen.choice[1]: 0: must be a whole number above 0, or null",
    ),
    "floats for whole numbers": (
        "{choice: [1, 5]}",
        "{uniform: [1, 5]}",
        "x.yaml:9: arms.prefix.preseqlen.uniform[0]: 1: must be a whole number above 0, or null\n"
        "x.yaml:9: arms.prefix.preseqlen.uniform[1]: 5: must be a whole number above 0, or null",
    ),
    "two good values that do not go together": (
        "[1, 5]",
        "[1, null]",
        "x.yaml:11: arms.prefix.init_token.choice[1]: null: must be words where preseqlen is null, which takes their "
        "number (or give preseqlen)",
    ),
    "empty words": (
        "[restaurant, null]",
        "['']",
        "x.yaml:11: arms.prefix.init_token.choice[0]: '': must be text that is not empty, or null",
    ),
    "a condition on what stands below": (
        "[1, 5]}",
        "[1, 5]}\n    weight_decay: {uniform: [0, 1], when: {mid_dim: [512]}}",
        "x.yaml:10: arms.prefix.weight_decay.when.mid_dim: mid_dim must stand above weight_decay",
    ),
    "a condition that is never met": (
        "when: {mid_dim: [512]}",
        "when: {mid_dim: [800]}",
        "x.yaml:13: arms.prefix.prefix_dropout.when.mid_dim: [800]: must be values that mid_dim can have",
    ),
    "a condition without a default": (
        "[restaurant, null]",
        "[restaurant, null], when: {mid_dim: [512]}",
        "x.yaml:11: arms.prefix.init_token.when: init_token has no default to fall back to: write a second arm instead",
    ),
    "a condition that is no list": (
        "when: {mid_dim: [512]}",
        "when: {mid_dim: 512}",
        'x.yaml:13: arms.prefix.prefix_dropout.when: {"mid_dim": 512}: must be a mapping of keys of this arm to lists '
        "of their values",
    ),
    "a first configuration with everything wrong": (
        "when: {mid_dim: [512]}}",
        "when: {mid_dim: [512]}}\n    first:\n    "
        "- {preseqlen: 7, mid_dim: null, init_token: null, prefix_dropout: 0.1, z: 1}",
        "x.yaml:15: arms.prefix.first[0].z: is not searched in this arm (the keys are: preseqlen, mid_dim, init_token, "
        "learning_rate, prefix_dropout)\n"
        "x.yaml:15: arms.prefix.first[0].preseqlen: 7: must be one of 1, 5\n"
        "x.yaml:15: arms.prefix.first[0].learning_rate: required, but missing: an entry gives every searched key\n"
        'x.yaml:15: arms.prefix.first[0].prefix_dropout: its condition is not met here ({"mid_dim": [512]})',
    ),
    "a full fine-tuning in 4 bits": (
        "num_steps: 40",
        "num_steps: 40\n  precision: 4bit",
        "x.yaml:15: arms.finetune: full fine-tuning trains the base's own weights, and train.precision 4bit stores "
        "them in 4 bits: remove the arm, or take another precision",
    ),
    "an anchor": (
        "5e-5}",
        "&x 5e-5}\n  other: {method: finetune, learning_rate: *x}",
        "x.yaml:15: cannot be read as YAML: anchors and aliases are not supported",
    ),
    "a tag": ("a-hub-id", "!!python/name:os.system", "x.yaml:2: base: !!python/name:os.system: tags are not supported"),
    "a number too large": (
        "num_steps: 40",
        "num_steps: 1e999",
        "x.yaml:5: train.num_steps: 1e999: is too large a number",
    ),
    "broken syntax": (
        "{log_uniform: [1e-4, 1e-2]}",
        "{log_uniform: [1e-4, 1e-2}",
        "x.yaml:12: cannot be read as YAML: expected ',' or ']', but got '}' (while parsing a flow sequence)",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_answered_with(old: str, new: str, message: str) -> None:
    assert complaint(changed(old, new)) == message


def test_a_users_own_files_must_exist() -> None:
    Path("train.jsonl").touch()
    assert complaint(changed("name: e2e", "name: custom, train: train.jsonl, dev: data/dev.jsonl")) == (
        "x.yaml:3: task.dev: 'data/dev.jsonl': no such file; paths are relative to the working directory\n"
        "x.yaml:3: task.test: required for task custom, but missing (or set task.path)"
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.yaml: is empty"),
        (b"# nothing\n", "x.yaml: is empty"),
        (b"# a list\n- a\n", "x.yaml:2: must be a mapping of keys, not a list"),
        (b"quickstart", "x.yaml:1: must be a mapping of keys, not 'quickstart'"),
        (b"name: a\nbase: \xff\n", "x.yaml:2: is not UTF-8 text"),
        (b"name: a\x01", "x.yaml:1: a character that is not allowed in YAML: '\\x01'"),
        (
            b"a: 1\n---\nb: 1",
            "x.yaml:2: cannot be read as YAML: but found another document (expected a single document in the stream)",
        ),
        (b"a: " + b"[" * 250 + b"]" * 250, "x.yaml:1: nested too deeply"),
        (b"[" * 1000, "x.yaml: cannot be read as YAML: nested too deeply"),
        (b'a: "\\UFFFFFFFF"', "x.yaml: cannot be read as YAML: an escape names no character"),
    ],
)
def test_what_is_no_sweep_file_is_answered_with_its_place(content: bytes, message: str) -> None:
    Path("x.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_sweep("x.yaml")
    assert str(caught.value) == message


def test_a_file_that_is_not_there_is_answered_with_the_nearest() -> None:
    Path("sweeps").mkdir()
    Path("sweeps/xsum.yaml").touch()
    with pytest.raises(UserError, match=r"^sweeps/xsun.yaml: no such file \(did you mean 'xsum.yaml'\?\)$"):
        load_sweep("sweeps/xsun.yaml")
    with pytest.raises(UserError, match=r"^sweeps: is a folder, not a YAML file$"):
        load_sweep("sweeps")


# Overrides


def test_an_override_replaces_a_dimension_by_a_constant_or_another() -> None:
    arm = load(VALID, "arms.prefix.preseqlen=20", "arms.prefix.mid_dim={choice: [512, 800]}").arm("prefix")
    assert arm.fixed["preseqlen"] == 20
    assert arm.dimensions["mid_dim"] == Choice(choice=(512, 800))


def test_an_override_may_add_keys_sections_and_arms() -> None:
    config = load(VALID, "train.batch_size=3", "tracking.mlflow=null", "arms.lora={rank: 4, learning_rate: 1e-3}")
    assert (config.train.batch_size, config.tracking.mlflow, config.arm("lora").fixed["rank"]) == (3, None, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms.prefix.presqlen=20", ": no such key for a prefix (did you mean 'preseqlen'?)"),
        ("trian.num_steps=3", ": trian: no such key (did you mean 'train'?)"),
        ("train={batch_size: 4}", ": train.num_steps: required, but missing"),
        ("train.num_steps.x=3", ": train.num_steps is 40, not a mapping: set it as a whole"),
        ("num_steps", ": must be dotted.key=value, as in --set train.num_steps=100"),
        ("train.batch_size=", ": must be a whole number above 0"),
        (
            "name=[a",
            ": cannot be read as YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
        ),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(override: str, message: str) -> None:
    assert complaint(VALID, override) == f"--set {override}{message}"


# Scales

SCALED = (
    VALID
    + """\
scale:
  laptop:
    base: a/small-one
    task.num_dev: 8
    train: {num_steps: 20}
    search.rungs: [10]
    arms.finetune.learning_rate: {choice: [1e-5, 1e-4]}
  short: {train.num_steps: 30, search.rungs: []}
"""
)


def at_scale(text: str, *scales: str, overrides: Sequence[str] = ()) -> SweepConfig:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_sweep("x.yaml", overrides, scales)


def scale_problem(text: str, *scales: str, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(UserError) as caught:
        at_scale(text, *scales, overrides=overrides)
    return str(caught.value)


def test_without_a_scale_a_file_is_what_it_is_without_the_block() -> None:
    assert at_scale(SCALED) == load(VALID)


def test_a_scale_takes_the_place_of_values_and_of_whole_sections_and_names_the_sweep() -> None:
    config = at_scale(SCALED, "laptop")
    assert (config.name, config.base, config.task.num_dev) == ("small-laptop", "a/small-one", 8)
    assert (config.train.num_steps, config.train.warmup_steps) == (20, 0)
    assert config.arm("finetune").dimensions["learning_rate"] == Choice(choice=(1e-5, 1e-4))
    assert config.arm("prefix").dimensions == load(VALID).arm("prefix").dimensions


def test_later_scales_and_then_overrides_have_the_last_word() -> None:
    both = at_scale(SCALED, "laptop", "short", overrides=["task.num_dev=9"])
    assert (both.name, both.train.num_steps, both.task.num_dev) == ("small-laptop-short", 30, 9)


def test_a_problem_of_a_scaled_value_is_told_with_the_line_of_the_scale() -> None:
    wrong = SCALED.replace("task.num_dev: 8", "task.num_dev: few").replace("a/small-one", "./nowhere")
    assert scale_problem(wrong, "laptop").splitlines() == [
        "x.yaml:19: base: './nowhere': no such file or folder; paths are relative to the working directory",
        "x.yaml:20: task.num_dev: 'few': must be a whole number above 0, or 'all'",
    ]
    assert at_scale(wrong) == load(VALID)  # a path that only a scale needs may be missing


def test_the_block_itself_is_checked_whatever_is_chosen() -> None:
    wrong = SCALED.replace("task.num_dev", "tsk.num_dev").replace("  short:", "  so-short:")
    problems = scale_problem(wrong).splitlines()
    assert problems[0].startswith("x.yaml:20: scale.laptop.'tsk.num_dev': must be a dotted key like train.num_steps")
    assert problems[0].endswith("(did you mean 'task'?)")
    assert problems[1] == "x.yaml:24: scale.so-short: a scale's name must be letters, digits and '_'"
    assert scale_problem(VALID + "scale: 3\n") == "x.yaml:17: scale: 3: must be a mapping of keys to values"


def test_a_scale_that_is_not_there_is_answered_with_those_that_are() -> None:
    assert scale_problem(SCALED, "tiny") == "x.yaml:1: --scale tiny: no such scale (the scales are: laptop, short)"
    assert scale_problem(SCALED, "latop") == "x.yaml:1: --scale latop: no such scale (did you mean 'laptop'?)"
    assert scale_problem(VALID, "laptop") == "x.yaml:1: --scale laptop: no such scale (the file has no scales)"


def test_a_metric_that_cannot_run_here_is_told_when_the_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    more = changed("{metric: test/bleu,", "{metric: test/bleu, more_metrics: [test/ter, test/meteor_1_5],")
    monkeypatch.setattr("prefixray.metrics.meteor.shutil.which", lambda name: None)
    assert complaint(more) == (
        "x.yaml:16: final.more_metrics[1]: 'test/meteor_1_5': METEOR 1.5 is a Java program, and there is no java on "
        "the PATH (apt-get install default-jre-headless)"
    )
    assert load(VALID, "final.more_metrics=[test/ter]").final.more_metrics == ("test/ter",)
    assert "final.more_metrics=[test/rouge_l]" in complaint(VALID, "final.more_metrics=[test/rouge_l]")


def test_a_training_set_is_measured_in_one_way() -> None:
    low = changed("task: {name: e2e, num_dev: 64}", "task: {name: e2e, num_train: 9, low_data: {size: 50}}")
    assert complaint(low) == "x.yaml:3: task.num_train: is not used beside task.low_data: remove one of them"
    share = changed("num_dev: 64", "num_dev: 64, fraction: 0.2, low_data: {size: 50}")
    assert complaint(share).splitlines() == [
        "x.yaml:3: task.low_data: is not used beside task.fraction: remove one of them",
        "x.yaml:3: task.num_dev: is not used beside task.low_data: remove one of them",
    ]
    assert load(changed("num_dev: 64", "num_dev: 64, fraction: 0.2")).task.fraction == 0.2


# The same sweep again


def test_a_configuration_survives_json() -> None:
    config = load(VALID, "arms.prefix.weight_decay={int: [0, 2]}")
    assert restore(json.loads(json.dumps(dump(config)))) == config


def test_a_sweep_of_an_earlier_version_goes_on_where_its_order_was_the_usual_one() -> None:
    config = load()
    earlier = json.loads(json.dumps(dump(config)))
    for recipe in (earlier["train"], earlier["arms"][0]["train"], earlier["arms"][0]["fixed"]):
        recipe["order"] = "pairs"
    assert restore(earlier) == config and differences(identity(restore(earlier)), identity(config)) == []
    earlier["train"]["order"] = "sources"
    with pytest.raises(ValueError, match=r"train\.order\s+Extra inputs"):
        restore(earlier)


def test_a_file_that_sets_an_order_is_told_that_there_is_no_such_key() -> None:
    in_train = complaint(changed("warmup_steps: 4", "warmup_steps: 4\n  order: pairs"))
    assert in_train.startswith("x.yaml:7: train.order: no such key (the keys are: batch_size, ")
    in_arm = complaint(changed("{learning_rate: 5e-5}", "{learning_rate: 5e-5, order: sources}"))
    assert in_arm.startswith("x.yaml:14: arms.finetune.order: no such key for fine-tuning (the keys are: ")


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
    ],
)
def test_budgets_tracking_and_the_final_stage_do_not_change_what_a_sweep_is(budget: str) -> None:
    assert identity(load()) == identity(load(VALID, budget))


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


def test_results_are_found_by_folder_name_or_file() -> None:
    load()
    with pytest.raises(UserError, match=r"^x.yaml: no results in runs/small yet \(python -m prefixray.sweep x.yaml\)$"):
        find_sweep("x.yaml")
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/sweep.json").touch()
    assert {find_sweep(where) for where in ("x.yaml", "small", "runs/small", "runs/small/")} == {Path("runs/small")}
    message = r"^smal: is no results folder, no name under runs/ and no sweep file \(did you mean 'small'\?\)$"
    with pytest.raises(UserError, match=message):
        find_sweep("smal")


# Speed and robustness


def test_a_typo_is_reported_within_a_second_and_imports_nothing_heavy() -> None:
    Path("x.yaml").write_text(changed("preseqlen:", "presqlen:"), encoding="utf-8")
    script = (
        "import sys\n"
        "from prefixray.errors import UserError\n"
        "from prefixray.config.load import load_sweep\n"
        "try: load_sweep('x.yaml')\n"
        "except UserError as error: print(error)\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'transformers', 'numpy'} & set(sys.modules)))\n"
    )
    seconds = []
    for _ in range(3):  # the best of three, since other work may have the cores
        start = time.perf_counter()
        command = [sys.executable, "-c", script]
        root = str(SWEEPS.parent)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": root})
        seconds.append(time.perf_counter() - start)
        assert done.stdout.splitlines()[1:] == ["[]"]
        assert "did you mean 'preseqlen'" in done.stdout
    assert min(seconds) < 1.0


_SETTINGS = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_NAMES = st.sampled_from(["choice", "int", "log_uniform", "when", "method", "first", "preseqlen", "train", "rungs"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=6
)


def _only_a_user_error(text: str, overrides: Sequence[str] = ()) -> None:
    try:
        load(text, *overrides)
    except UserError as error:
        assert all(problem.startswith(("x.yaml", "--set ")) for problem in error.problems)


@_SETTINGS
@given(st.data())
def test_a_file_with_random_edits_causes_nothing_but_a_user_error(data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text) - 1))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text = text[:start] + data.draw(st.text(alphabet=" \n:{}[],-'\"&*!#|>%019e.ax\t\\", max_size=4)) + text[end:]
    _only_a_user_error(text)


@_SETTINGS
@given(st.data())
def test_any_value_anywhere_causes_nothing_but_a_user_error(data: st.DataObject) -> None:
    keys = ["name", "base", "task", "task.num_dev", "train", "train.warmup_steps", "arms", "arms.prefix", "search"]
    keys += ["arms.prefix.preseqlen", "arms.prefix.first", "arms.prefix.learning_rate.log_uniform", "search.rungs"]
    keys += ["arms.prefix.prefix_dropout.when", "arms.finetune.method", "final", "final.metric", "tracking.mlflow"]
    overrides = [f"{data.draw(st.sampled_from(keys))}={json.dumps(data.draw(_VALUES))}" for _ in range(2)]
    _only_a_user_error(VALID, overrides)


def test_an_override_wins_over_what_is_to_be_tried_first() -> None:
    path = Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml"
    assert load_sweep(path).arm("prefix").first[0]["preseqlen"] == 20
    arm = load_sweep(path, ["arms.prefix.preseqlen=5"]).arm("prefix")
    assert arm.fixed["preseqlen"] == 5 and "preseqlen" not in arm.first[0]
    assert arm.trial(arm.first[0]).method.model_dump()["preseqlen"] == 5
