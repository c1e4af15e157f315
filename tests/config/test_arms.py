"""Arms: what they become."""

import json
from pathlib import Path

import pytest
from support.sweep_files import VALID, changed, complaint, load

from prefixray.config.identity import dump, identity, restore
from prefixray.config.load import load_sweep
from prefixray.config.space import Choice, LogUniform
from prefixray.config.trials import PrefixTrial

SWEEPS = Path(__file__).parents[2] / "sweeps"


def test_an_arm_without_a_search_has_one_trial() -> None:
    assert load().arm("finetune").num_trials == 1


def test_an_arm_has_no_more_trials_than_its_space_has_points() -> None:
    # preseqlen x init_token x (flat, or 512 with either dropout)
    assert load(VALID, "arms.prefix.learning_rate=1e-3", "search.num_trials=50").arm("prefix").num_trials == 2 * 2 * 3


def test_an_arm_may_have_its_own_budget_recipe_and_name() -> None:
    arm = "  wide: {method: lora, rank: {choice: [64, 128]}, learning_rate: 1e-3, batch_size: 16, num_trials: 2}\n"
    wide = load(changed("search:", f"{arm}search:")).arm("wide")
    assert (wide.method, wide.num_trials, wide.trial({"rank": 64}).batch_size) == ("lora", 2, 16)


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


CASES = "[{log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}, {log_uniform: [3e-5, 1e-3], when: {mid_dim: [512]}}]"


def test_a_key_may_have_a_range_for_each_case() -> None:
    config = load(VALID, f"arms.prefix.learning_rate={CASES}")
    arm = config.arm("prefix")
    rates = arm.distribution("learning_rate", {"mid_dim": 512})
    assert rates == LogUniform(log_uniform=(3e-5, 1e-3), when={"mid_dim": (512,)})
    assert {(v["mid_dim"], v["learning_rate"]) for v in arm.corners()} == {
        *((None, rate) for rate in (1e-3, 4e-2)),
        *((512, rate) for rate in (3e-5, 1e-3)),
    }
    assert restore(json.loads(json.dumps(dump(config)))) == config
    written = identity(config)["arms"]["prefix"]["learning_rate"]
    assert written == [
        {"log_uniform": [1e-3, 4e-2], "when": {"mid_dim": [None]}},
        {"log_uniform": [3e-5, 1e-3], "when": {"mid_dim": [512]}},
    ]


def test_a_case_may_depend_on_a_number_and_on_a_key_that_is_itself_conditional() -> None:
    lengths = "arms.prefix.preseqlen={int: [1, 40]}"
    few = "{log_uniform: [1e-3, 1e-2], when: {preseqlen: [1, 2]}}"
    assert complaint(VALID, lengths, f"arms.prefix.learning_rate=[{few}]").endswith(
        "no case holds where preseqlen is 3: add one"
    )
    dropout = "{learning_rate: [{choice: [1e-3], when: {prefix_dropout: [0.0, 0.1]}}]}"
    text = changed("    learning_rate: {log_uniform: [1e-4, 1e-2]}\n", "").replace(
        "  finetune:", f"    learning_rate: {dropout[len('{learning_rate: ') : -1]}\n  finetune:"
    )
    assert complaint(text).endswith("arms.prefix.learning_rate: no case holds where mid_dim is null: add one")


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
        "max_grad_norm, objective, temperature, label_smoothing, base_dropout, method, num_trials, first)"
    )


def test_an_override_wins_over_what_is_to_be_tried_first() -> None:
    path = Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml"
    assert load_sweep(path).arm("prefix").first[0]["preseqlen"] == 20
    arm = load_sweep(path, ["arms.prefix.preseqlen=5"]).arm("prefix")
    assert arm.fixed["preseqlen"] == 5 and "preseqlen" not in arm.first[0]
    assert arm.trial(arm.first[0]).method.model_dump()["preseqlen"] == 5


def test_a_key_that_cases_are_about_may_be_fixed_from_outside() -> None:
    """What `--set` or a scale fixes leaves some of the cases, and of the configurations to be tried first."""
    text = (SWEEPS / "quickstart.yaml").read_text() + "scale: {flat: {arms.prefix.mid_dim: null}}\n"
    Path("x.yaml").write_text(text, encoding="utf-8")
    for config in (load_sweep("x.yaml", ["arms.prefix.mid_dim=null"]), load_sweep("x.yaml", scales=["flat"])):
        arm = config.arm("prefix")
        assert arm.fixed["mid_dim"] is None and all("mid_dim" not in first for first in arm.first)
        assert {values["learning_rate"] for values in arm.corners()} == {2e-2, 2e-1}
    assert "must be values that mid_dim can have" in complaint(
        VALID.replace("[null, 512]", "[512]").replace("mid_dim: [512]", "mid_dim: [null]")
    )


def test_the_largest_value_of_a_key_is_its_default_where_its_condition_is_not_met() -> None:
    warmup = "arms.prefix.warmup_steps={choice: [0, 2], when: {mid_dim: [null]}}"
    assert load(VALID, warmup).arm("prefix").largest("warmup_steps") == 4
    assert load(VALID, warmup.replace(", when: {mid_dim: [null]}", "")).arm("prefix").largest("warmup_steps") == 2


def test_a_word_may_be_searched_where_words_are_what_a_prefix_starts_from() -> None:
    text = VALID.replace("{name: e2e, num_dev: 64}", "{name: document, path: manual.md}").replace("bleu", "token_f1")
    text = text.replace(
        "    init_token: {choice: [restaurant, null]}\n",
        "    init_from: {choice: [words, document]}\n    init_token: {choice: [a, null], when: {init_from: [words]}}\n",
    )
    Path("manual.md").write_text("The Eagle is a pub.\n")
    arm = load(text).arm("prefix")
    assert arm.trial({"preseqlen": 5, "mid_dim": None, "init_from": "document", "learning_rate": 1e-3})
    for when in ("init_from: [document]}", "init_from: [words], mid_dim: [null]}"):
        assert "init_token has no default" in complaint(text.replace("init_from: [words]}", when))
