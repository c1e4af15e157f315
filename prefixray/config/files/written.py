"""Sweep files that the program writes: with comments for a user's own data, and of a configuration in memory."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from prefixray.config.identity import arm_values
from prefixray.config.schema import ArmConfig, SweepConfig
from prefixray.data.catalog import CATALOG
from prefixray.data.entries import DataConfig
from prefixray.data.task_config import TaskConfig

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
#   prefixray sweep {choices.name}.yaml --scale small     # a first try, results in runs/{choices.name}-small
name: {_flow(choices.name)}   # results in runs/{choices.name}
base: {_flow(choices.base)}   # or a hub id, a folder, a GGUF file
task:   # paths are relative to where the command runs
{task}train: {{batch_size: 8, num_steps: 100, warmup_steps: 10}}   # more steps for more than a first look
arms:   # learning rates measured on a base 576 wide; for another one, widen them
  prefix:
    preseqlen: {{choice: [5, 10, 20]}}   # prefix positions
    mid_dim: {{choice: [null, 512]}}     # null: flat; else through a network of this width, as in the paper
    init_token: {{choice: [{_flow(choices.init_words)}, null]}}   # words that it begins as; null: random
    learning_rate:   # through the network one step moves keys hundreds of times as far
      - {{log_uniform: [2e-2, 2e-1], when: {{mid_dim: [null]}}}}
      - {{log_uniform: [2e-4, 1.5e-3], when: {{mid_dim: [512]}}}}
  lora: {{rank: {{choice: [4, 16]}}, learning_rate: {{log_uniform: [1e-3, 1e-2]}}}}
search: {{num_trials: 8}}   # the worse ones pause on the way
final: {{metric: {choices.metric}, reference: lora, num_beams: 5, max_new_tokens: {choices.max_new_tokens}}}
scale:   # with --scale small, these values stand in place of those above
  small: {{train.num_steps: 20, train.warmup_steps: 2, search.num_trials: 2}}
"""


def as_yaml(config: SweepConfig) -> str:
    """A sweep file that `load_sweep` reads as this configuration: the values that differ from their defaults."""
    values = config.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"arms"})
    facts = CATALOG[config.task.name]
    used = {*facts.keys, *facts.form_keys, *TaskConfig.model_fields.keys() - DataConfig.model_fields.keys(), "name"}
    values["task"] = {key: value for key, value in values["task"].items() if key in used}
    values["arms"] = {arm.name: _arm(arm, config.search.num_trials) for arm in config.arms}
    order = [name for name in SweepConfig.model_fields if name in values]
    return "".join(f"{key}:{_block(values[key], depth=1 if key != 'arms' else 2)}" for key in order)


def _arm(arm: ArmConfig, num_trials: int) -> dict[str, object]:
    count = {"num_trials": arm.num_trials} if arm.dimensions and arm.num_trials != num_trials else {}
    return {**arm_values(arm), **count}


def _block(value: object, depth: int) -> str:
    """What stands behind a key's colon: a mapping as lines, down to this depth, anything else in flow style."""
    if not isinstance(value, Mapping) or not value or depth == 0:
        return f" {_flow(value)}\n"
    lines = "".join(f"{key}:{_block(inner, depth - 1)}" for key, inner in value.items())
    return "\n" + "".join(f"  {line}\n" for line in lines.splitlines())


def _flow(value: object) -> str:
    """A value in YAML's flow style: JSON, which is YAML, with keys as they are and YAML's own line breaks escaped."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)
