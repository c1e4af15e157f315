"""YAML as sweep files use it: its values, what it refuses and where, and `--set`."""

from pathlib import Path

import pytest
from support.sweep_files import VALID, changed, complaint, load

from prefixray.config.load import load_sweep
from prefixray.config.space import Choice
from prefixray.errors import UserError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".5", 0.5), ("1_0", 10), ("+3", 3), ("010", 10), ("2", 2)],
)
def test_numbers_are_numbers(written: str, read: float) -> None:
    assert load(VALID, f"arms.finetune.learning_rate={written}").arm("finetune").fixed["learning_rate"] == read


@pytest.mark.parametrize("word", ["yes", "on", "1:30", "2024-01-01", ".inf"])
def test_words_that_only_older_yaml_takes_for_values_are_words(word: str) -> None:
    assert load(VALID, f"arms.prefix.init_token={word}").arm("prefix").fixed["init_token"] == word


def test_the_none_of_python_is_no_word_unless_it_is_in_quotes() -> None:
    problem = "None: write null where nothing is meant, and 'None' in quotes for the word"
    assert complaint(VALID, "arms.prefix.init_token=None") == f"--set arms.prefix.init_token=None: {problem}"
    choice = "arms.prefix.init_token={choice: [restaurant, None]}"
    assert complaint(VALID, choice) == f"--set {choice}: arms.prefix.init_token.choice[1]: {problem}"
    assert load(VALID, "arms.prefix.init_token='None'").arm("prefix").fixed["init_token"] == "None"


MALFORMED = {
    "a key twice": ("  warmup_steps: 4", "  num_steps: 4", "x.yaml:6: train.num_steps: is there twice"),
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
