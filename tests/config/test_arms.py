"""Arms: what they become, and every message that they can cause."""

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
    "two starts": (
        "learning_rate: {log",
        "init_from: document\n    learning_rate: {log",
        "x.yaml:12: arms.prefix.init_from: 'document': must be words where init_token is given (remove init_token)\n"
        "x.yaml:12: arms.prefix.init_from: document needs a document, and task e2e has none: take words",
    ),
    "nothing left to train": (
        "learning_rate: {log",
        "frozen_positions: 1\n    learning_rate: {log",
        "x.yaml:12: arms.prefix.frozen_positions: 1: must be below preseqlen (1)",
    ),
    "a network that starts as nothing": (
        "finetune: {learning_rate: 5e-5}",
        "finetune: {method: prefix, preseqlen: 3, mid_dim: 8, init_token: null, frozen_positions: 1, "
        "learning_rate: 5e-5}",
        "x.yaml:14: arms.finetune.frozen_positions: 1: must be 0 where a network starts as it is drawn (give "
        "init_token or init_from)",
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
        "x.yaml:11: arms.prefix.init_token.when: init_token has no default to fall back to: give it a list, with "
        "a case for every other value",
    ),
    "cases that leave a gap": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}",
        "x.yaml:12: arms.prefix.learning_rate: no case holds where mid_dim is 512: add one",
    ),
    "cases that leave a gap for two keys together": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}"
        "\n      - {log_uniform: [1e-4, 1e-3], when: {mid_dim: [512], preseqlen: [1]}}",
        "x.yaml:12: arms.prefix.learning_rate: no case holds where preseqlen is 5 and mid_dim is 512: add one",
    ),
    "cases that overlap": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}"
        "\n      - {log_uniform: [1e-4, 1e-3], when: {mid_dim: [512]}}"
        "\n      - {log_uniform: [1e-5, 1e-4], when: {init_token: [null]}}",
        "x.yaml:15: arms.prefix.learning_rate[2]: holds beside learning_rate[0] where mid_dim is null and init_token "
        "is null: exactly one case may (see when)",
    ),
    "a case without a condition beside others": (
        "{log_uniform: [1e-4, 1e-2]}",
        "[{log_uniform: [1e-4, 1e-2]}, {log_uniform: [1e-4, 1e-3], when: {mid_dim: [512]}}]",
        "x.yaml:12: arms.prefix.learning_rate[1]: holds beside learning_rate[0] where mid_dim is 512: exactly one case "
        "may (see when)",
    ),
    "a case for a value that the other key cannot have": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}"
        "\n      - {log_uniform: [1e-4, 1e-3], when: {mid_dim: [800]}}",
        "x.yaml:12: arms.prefix.learning_rate: no case holds where mid_dim is 512: add one\n"
        "x.yaml:14: arms.prefix.learning_rate[1].when.mid_dim: [800]: must be values that mid_dim can have",
    ),
    "a case for a key below": (
        "preseqlen: {choice: [1, 5]}",
        "preseqlen: [{choice: [1, 5], when: {mid_dim: [null]}}, {choice: [10], when: {mid_dim: [512]}}]",
        "x.yaml:9: arms.prefix.preseqlen[0].when.mid_dim: mid_dim must stand above preseqlen\n"
        "x.yaml:9: arms.prefix.preseqlen[1].when.mid_dim: mid_dim must stand above preseqlen",
    ),
    "a case that is a single value": (
        "{log_uniform: [1e-4, 1e-2]}",
        "[{log_uniform: [1e-4, 1e-2], when: {mid_dim: [null]}}, 1e-3]",
        "x.yaml:12: arms.prefix.learning_rate[1]: 0.001: must be a mapping like the other cases; {choice: [...]} holds "
        "a single value",
    ),
    "a case whose range is upside down": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}"
        "\n      - {log_uniform: [1e-3, 1e-4], when: {mid_dim: [512]}}",
        "x.yaml:14: arms.prefix.learning_rate[1].log_uniform: [0.001, 0.0001]: the low end must be below the high end",
    ),
    "a case whose value no trial can have": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {choice: [1e-3], when: {mid_dim: [null]}}\n      - {choice: [1e-4, -1e-4], when: {mid_dim: [512]}}",
        "x.yaml:14: arms.prefix.learning_rate[1].choice[1]: -0.0001: must be a number above 0",
    ),
    "a first entry from the other case": (
        "{log_uniform: [1e-4, 1e-2]}",
        "\n      - {log_uniform: [1e-3, 4e-2], when: {mid_dim: [null]}}"
        "\n      - {log_uniform: [1e-5, 5e-4], when: {mid_dim: [512]}}"
        "\n    first: [{preseqlen: 5, mid_dim: 512, init_token: null, learning_rate: 1e-2, prefix_dropout: 0.0}]",
        "x.yaml:15: arms.prefix.first[0].learning_rate: 0.01: must be within [1e-05, 0.0005] where mid_dim is 512",
    ),
    "a range beside a choice of words": (
        "init_token: {choice: [restaurant, null]}",
        "init_token: [{choice: [restaurant, null], when: {mid_dim: [512]}}, {int: [1, 2], when: {mid_dim: [null]}}]",
        "x.yaml:11: arms.prefix.init_token: has a range in one case and a choice that is no number in another: write a "
        "second arm\n"
        "x.yaml:11: arms.prefix.init_token[1].int[0]: 1: must be text that is not empty, or null\n"
        "x.yaml:11: arms.prefix.init_token[1].int[1]: 2: must be text that is not empty, or null",
    ),
    "conditions that refer to each other": (
        "mid_dim: {choice: [null, 512]}\n    init_token: {choice: [restaurant, null]}",
        "mid_dim: {choice: [null, 512], when: {prefix_mode: [activation]}}\n    init_token: restaurant\n"
        "    prefix_mode: {choice: [activation, embedding], when: {mid_dim: [512]}}",
        "x.yaml:10: arms.prefix.mid_dim.when: mid_dim has no default to fall back to: give it a list, with a case for "
        "every other value\n"
        "x.yaml:10: arms.prefix.mid_dim.when.prefix_mode: prefix_mode must stand above mid_dim",
    ),
    "a condition on itself": (
        "prefix_dropout: {choice: [0.0, 0.1], when: {mid_dim: [512]}}",
        "prefix_dropout: {choice: [0.0, 0.1], when: {prefix_dropout: [0.1]}}",
        "x.yaml:13: arms.prefix.prefix_dropout.when.prefix_dropout: prefix_dropout must stand above prefix_dropout",
    ),
    "a value that only one of two cases could have": (
        "prefix_dropout: {choice: [0.0, 0.1], when: {mid_dim: [512]}}",
        "warmup_steps: [{int: [1, 50], when: {mid_dim: [null]}}, {int: [1, 60], when: {mid_dim: [512]}}]",
        "x.yaml:13: arms.prefix.warmup_steps[0].int[1]: 50: must be below num_steps (40)\n"
        "x.yaml:13: arms.prefix.warmup_steps[1].int[1]: 60: must be below num_steps (40)\n"
        "x.yaml:15: search.rungs: [10, 20]: the first must be at least arms.prefix.warmup_steps (60)",
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
}


@pytest.mark.parametrize(("old", "new", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_answered_with(old: str, new: str, message: str) -> None:
    assert complaint(changed(old, new)) == message


def test_an_override_wins_over_what_is_to_be_tried_first() -> None:
    path = Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml"
    assert load_sweep(path).arm("prefix").first[0]["preseqlen"] == 20
    arm = load_sweep(path, ["arms.prefix.preseqlen=5"]).arm("prefix")
    assert arm.fixed["preseqlen"] == 5 and "preseqlen" not in arm.first[0]
    assert arm.trial(arm.first[0]).method.model_dump()["preseqlen"] == 5
