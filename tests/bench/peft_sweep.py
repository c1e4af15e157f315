"""A search of prefix tuning as one would write it today from PEFT, transformers' Trainer, Ray Tune, Optuna and MLflow.

    python tests/bench/peft_sweep.py SPEC.json     # whole_sweep.py writes the file and starts this

One process per trial, stock TPE, ASHA, Ray's MLflow callback on sqlite. Besides what such a script has, it notes when a
trial was proposed, took its first step and ended. Trials must live in a module that can be imported, so what starts
this as a script imports it again under its name.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from peft import PrefixTuningConfig, get_peft_model
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

Encoded = list[dict[str, list[int]]]


@dataclass(frozen=True)
class Spec:
    """What a search is about; ours is given the same."""

    base: str  # a folder
    train: str  # JSONL of source and target
    dev: str
    separator: str  # text between the two
    precision: str  # "fp32" or "bf16"
    num_trials: int
    at_once: int
    num_steps: int
    rungs: tuple[int, ...]  # grace period times powers of 2; evaluated there and at the end
    warmup_steps: int
    batch_size: int
    preseqlen: tuple[int, ...]
    mid_dim: tuple[int | None, ...]
    learning_rate: tuple[float, float]
    max_source_tokens: int = 512
    max_target_tokens: int = 128
    seed: int = 1
    reuses_actors: bool = False
    """Tune's own default."""

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations."""
        return self.rungs[0] if self.rungs else self.num_steps

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Spec":
        """Read what `save` wrote."""
        content = json.loads(file.read_text(encoding="utf-8"))
        lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
        return cls(**{**content, **lists})


@dataclass
class TrialTimes:
    """What came of a trial, and when; UNIX times."""

    proposed: float
    first_step: float | None = None
    ended: float | None = None
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    state: str = "running"


def tokenise(file: Path, tokenizer: PreTrainedTokenizerBase, spec: Spec) -> Encoded:
    """Rows of source, separator, target and end token; the loss is on the last two."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    sources = tokenizer([f" {row['source']} " for row in rows], add_special_tokens=False).input_ids
    targets = tokenizer([f" {row['target']} " for row in rows], add_special_tokens=False).input_ids
    separator = tokenizer(spec.separator, add_special_tokens=False).input_ids
    encoded = []
    for source, target in zip(sources, targets, strict=True):
        prompt = [*source[: spec.max_source_tokens], *separator]
        answer = [*target[: spec.max_target_tokens], tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + answer
        encoded.append({"input_ids": prompt + answer, "attention_mask": [1] * len(labels), "labels": labels})
    return encoded


def train_trial(config: Mapping[str, Any], spec: Spec) -> None:
    """One trial, in a process of its own."""
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(spec.base, dtype=dtype),
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=config["preseqlen"],
            prefix_projection=config["mid_dim"] is not None,
            encoder_hidden_size=config["mid_dim"],
        ),
    )
    folder = tune.get_context().get_trial_dir()
    recipe = TrainingArguments(
        output_dir=folder,
        max_steps=spec.num_steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        learning_rate=config["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=spec.warmup_steps,
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=spec.precision == "bf16",
        use_cpu=True,
        seed=spec.seed,
        eval_strategy="steps",
        eval_steps=spec.eval_every,
        prediction_loss_only=True,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(
        model=model,
        args=recipe,
        train_dataset=tokenise(Path(spec.train), tokenizer, spec),
        eval_dataset=tokenise(Path(spec.dev), tokenizer, spec),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[_Reports()],
    ).train()


class _Reports(TrainerCallback):
    """Hands every evaluation to Tune, and keeps the adapter where it is the best so far."""

    def __init__(self) -> None:
        self._first_step, self._best = 0.0, float("inf")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Note the first one."""
        self._first_step = self._first_step or time.time()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:  # noqa: ANN401
        """Report."""
        loss = more["metrics"]["eval_loss"]
        if loss < self._best:
            self._best = loss
            more["model"].save_pretrained(Path(str(args.output_dir), "adapter"))
        tune.report({"dev_loss": loss, "step": state.global_step, "first_step": self._first_step})


class _TimedSearch(OptunaSearch):
    """Stock, but that it notes when it is asked."""

    def __init__(self, times: dict[str, TrialTimes], seed: int) -> None:
        super().__init__(metric="dev_loss", mode="min", seed=seed)
        self._times = times

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        asked = time.time()
        config: dict[str, Any] | None = super().suggest(trial_id)
        if config is not None:
            self._times[trial_id] = TrialTimes(asked)
        return config

    def __getstate__(self) -> dict[str, Any]:
        """Without the notes: Tune saves its searcher, and they are not the search's."""
        state: Any = super().__getstate__()
        return {key: value for key, value in state.items() if key != "_times"}


class _Times(tune.Callback):
    """Notes what the trials report."""

    def __init__(self, times: dict[str, TrialTimes]) -> None:
        self._times = times

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ANN401
        own = self._times[trial.trial_id]
        own.first_step, own.steps = result["first_step"], result["step"]
        own.losses.append(result["dev_loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401
        self._times[trial.trial_id].ended, self._times[trial.trial_id].state = time.time(), "ended"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ANN401
        self._times[trial.trial_id].ended, self._times[trial.trial_id].state = time.time(), "failed"


def search(spec: Spec, folder: Path) -> dict[str, TrialTimes]:
    """Run it all; what came of each trial."""
    times: dict[str, TrialTimes] = {}
    rungs = ASHAScheduler(time_attr="step", max_t=spec.num_steps, grace_period=spec.eval_every, reduction_factor=2)
    trainable: Callable[[Mapping[str, Any]], None] = tune.with_parameters(train_trial, spec=spec)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "preseqlen": tune.choice(list(spec.preseqlen)),
            "mid_dim": tune.choice(list(spec.mid_dim)),
            "learning_rate": tune.loguniform(*spec.learning_rate),
        },
        tune_config=tune.TuneConfig(
            metric="dev_loss",
            mode="min",
            search_alg=_TimedSearch(times, spec.seed),
            scheduler=rungs if spec.rungs else None,
            num_samples=spec.num_trials,
            max_concurrent_trials=spec.at_once,
            reuse_actors=spec.reuses_actors,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder / "tune"),
            callbacks=[
                MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name="search"),
                _Times(times),
            ],
            verbose=1,
        ),
    ).fit()
    return times


def main() -> None:
    """Run the search of a file, and write what came of it beside that."""
    file = Path(sys.argv[1]).absolute()
    spec = Spec.load(file)
    ray.init(address="local", num_cpus=max(2, spec.at_once), include_dashboard=False)
    times = search(spec, file.parent)
    (file.parent / "trials.json").write_text(json.dumps([asdict(one) for one in times.values()], indent=1) + "\n")


if __name__ == "__main__":
    import peft_sweep

    peft_sweep.main()
