"""Every message that an arm of a sweep file can cause."""

import pytest
from support.sweep_files import changed, complaint

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
        "x.yaml:9: arms.prefix.preseqlen.uniform: [1, 5]: draws fractions, and preseqlen takes whole numbers: write "
        "{int: [...]}",
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
