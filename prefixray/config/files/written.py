"""A sweep file for a user's own data, written with comments, as `prefixray init` makes it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA_NAME = "sweep.schema.json"
"""The file beside a sweep file that an editor checks it with."""


@dataclass(frozen=True)
class Choices:
    """What of a sweep file depends on the base and the data."""

    name: str
    base: str
    task: Mapping[str, object]
    """The section `task`, without what has its default."""
    metric: str
    max_new_tokens: int
    init_words: str
    """Words that a prefix may begin as."""


def sweep_text(choices: Choices, *, opening: str) -> str:
    """The file's text: a prefix beside LoRA, with a small budget; `opening` is its first comment, one line."""
    task = "".join(f"  {key}: {_flow(value)}\n" for key, value in choices.task.items())
    return f"""\
# yaml-language-server: $schema={SCHEMA_NAME}
# {opening}
#   prefixray plan {choices.name}.yaml      # what it would do and take; starts nothing
#   prefixray sweep {choices.name}.yaml     # run it, or go on with it
name: {_flow(choices.name)}   # results in runs/{choices.name}
base: {_flow(choices.base)}   # or a hub id, a folder, a GGUF file
task:   # paths are relative to where the command runs
{task}train: {{batch_size: 8, num_steps: 100, warmup_steps: 10}}   # more steps for more than a first look
arms:
  prefix:
    preseqlen: {{choice: [5, 10, 20]}}   # prefix positions
    mid_dim: {{choice: [null, 512]}}     # null: flat; else through a network of this width, as in the paper
    init_token: {{choice: [{_flow(choices.init_words)}, null]}}   # words that it begins as; null: random
    learning_rate:   # through the network one step moves keys hundreds of times as far
      - {{log_uniform: [2e-2, 2e-1], when: {{mid_dim: [null]}}}}
      - {{log_uniform: [2e-4, 1.5e-3], when: {{mid_dim: [512]}}}}
  lora: {{rank: {{choice: [4, 16]}}, learning_rate: {{log_uniform: [1e-3, 1e-2]}}}}
search: {{num_trials: 8, rungs: [25, 50], keep: 0.5}}   # at a rung the worse half stops
final: {{metric: {choices.metric}, reference: lora, num_beams: 5, max_new_tokens: {choices.max_new_tokens}}}
"""


def _flow(value: object) -> str:
    """A value in YAML's flow style: JSON, which is YAML, with keys as they are and YAML's own line breaks escaped."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)
