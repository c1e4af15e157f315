"""Scales: the values that they replace, and every message that they can cause."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.sweep_files import VALID, load

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.config.space import Choice
from prefixray.errors import UserError

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


@pytest.mark.parametrize("file", ["lowdata_e2e", "lowdata_xsum"])
def test_the_data_size_of_figure_3_stays_on_a_laptop(file: str) -> None:
    config = load_sweep(Path(__file__).parents[2] / f"sweeps/paper/{file}.yaml", scales=["n100", "laptop"])
    assert config.name == f"{file}-n100-laptop" and config.task.low_data is not None
    assert config.task.low_data.size == 100


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


def test_the_papers_way_of_measuring_sets_the_keys_that_the_file_does_not_name() -> None:
    def values(*overrides: str) -> tuple[bool, bool, bool]:
        config = load(VALID, *overrides)
        return config.task.tokenised, config.final.length_with_prompt, config.final.ban_line_breaks

    assert load().evaluation == "own" and values() == (False, False, False)
    assert values("evaluation=paper") == (True, True, True)
    assert values("evaluation=paper", "task.tokenised=false", "final.ban_line_breaks=false") == (False, True, False)
    webnlg = load(VALID, "evaluation=paper", "task={name: webnlg, path: .}")
    assert not webnlg.task.tokenised and webnlg.word_form == "ascii_words" and load().word_form is None
    Path("manual.md").write_text("The Eagle is a pub.\n")
    document = load(VALID, "evaluation=paper", "task={name: document, path: manual.md}", "final.metric=test/token_f1")
    assert document.final.ban_line_breaks and document.task.prompts is None, "no key of a document is the paper's"
    summaries = load(VALID, "evaluation=paper", "task={name: xsum}")
    assert not summaries.final.length_with_prompt and not summaries.final.ban_line_breaks
    assert "must be one of 'own', 'paper'" in scale_problem(VALID, overrides=["evaluation=papers"])


def test_targets_are_tokenised_for_e2e_alone() -> None:
    own_data = ["task={name: custom, train: x.yaml, dev: x.yaml, test: x.yaml, tokenised: true}"]
    assert "task.tokenised: is not used by task custom: remove it" in scale_problem(VALID, overrides=own_data)
