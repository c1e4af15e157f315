"""A search of prefix tuning as one would write it today from PEFT, transformers' Trainer, Ray Tune, Optuna and MLflow.

    python tests/bench/peft_sweep.py SPEC.json     # whole_sweep.py writes the file and starts this

One process per trial, stock TPE, ASHA, Ray's MLflow callback on sqlite. It is made so that its search can be compared:
it notes when a trial was proposed, took its first step and ended; a dev loss is a mean over all target tokens; a flat
prefix starts as the base's keys and values over random tokens, by PEFT's own function. Trials must live in a module
that can be imported, so what starts this as a script imports it again under its name.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from peft import PrefixTuningConfig, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from sweep_spec import Spec, TrialTimes
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

EVAL_BATCH_SIZE = 8
Encoded = list[dict[str, list[int]]]


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
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    recipe = TrainingArguments(
        output_dir=tune.get_context().get_trial_dir(),
        max_steps=spec.num_steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        learning_rate=config["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=spec.warmup_steps,
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=spec.precision == "bf16",
        use_cpu=True,
        seed=spec.seed,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    TokenMeanTrainer(
        model=with_prefix(AutoModelForCausalLM.from_pretrained(spec.base, dtype=dtype), config),
        args=recipe,
        train_dataset=tokenise(Path(spec.train), tokenizer, spec),
        eval_dataset=tokenise(Path(spec.dev), tokenizer, spec),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[_Reports(spec.rungs)],
    ).train()


def with_prefix(base: PreTrainedModel, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The base with a prefix at a random start: a network's weights, or keys and values over random tokens."""
    model = get_peft_model(
        base,
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=config["preseqlen"],
            prefix_projection=config["mid_dim"] is not None,
            encoder_hidden_size=config["mid_dim"],
        ),
    )
    if config["mid_dim"] is None:
        ids = torch.randint(base.config.vocab_size, (1, config["preseqlen"]))
        with torch.no_grad(), model.disable_adapter():
            cache = model(input_ids=ids, use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    return model


class TokenMeanTrainer(Trainer):
    """Stock, but that a dev loss is the mean over all target tokens, as ours is, and not one of batches' means."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:  # noqa: ANN401
        """The dev loss, which callbacks are told as well."""
        self.model.eval()
        total, num_tokens = 0.0, 0
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader():
                num = int((batch["labels"][:, 1:] != -100).sum())
                total += num * float(self.compute_loss(self.model, self._prepare_inputs(batch)))
                num_tokens += num
        metrics = {"eval_loss": total / num_tokens}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Reports(TrainerCallback):
    """Has the trial evaluated at rungs and at its end, tells Tune, and keeps the adapter where it is the best."""

    def __init__(self, rungs: Sequence[int]) -> None:
        self._rungs, self._first_step, self._best = rungs, 0.0, float("inf")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Note the first one."""
        self._first_step = self._first_step or time.time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Have it evaluated."""
        control.should_evaluate = state.global_step in (*self._rungs, state.max_steps)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:  # noqa: ANN401
        """Report."""
        loss = more["metrics"]["eval_loss"]
        if loss < self._best:
            self._best = loss
            more["model"].save_pretrained(Path(str(args.output_dir), "adapter"))
        tune.report({"dev_loss": loss, "step": state.global_step, "first_step": self._first_step})


def propose(trial: optuna.Trial, spec: Spec) -> dict[str, Any]:
    """A configuration; each mid_dim has a range of rates of its own, which is a parameter of its own."""
    preseqlen = trial.suggest_categorical("preseqlen", spec.preseqlen)
    mid_dim = trial.suggest_categorical("mid_dim", spec.mid_dim)
    range_ = spec.learning_rate[spec.mid_dim.index(mid_dim)]
    rate = trial.suggest_float(f"learning_rate_{mid_dim}", *range_, log=True)
    return {"preseqlen": preseqlen, "mid_dim": mid_dim, "learning_rate": rate}


class _TimedSearch(OptunaSearch):
    """Stock, but that it notes when it is asked."""

    def __init__(self, times: dict[str, TrialTimes], spec: Spec) -> None:
        super().__init__(functools.partial(propose, spec=spec), metric="dev_loss", mode="min", seed=spec.seed)
        self._times = times

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        asked = time.time()
        config: dict[str, Any] | None = super().suggest(trial_id)
        if config is not None:
            drawn = {key: config[key] for key in ("preseqlen", "mid_dim", "learning_rate")}
            self._times[trial_id] = TrialTimes(asked, config=drawn)
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
    first = spec.first_rung
    asha = first and ASHAScheduler(time_attr="step", max_t=spec.num_steps, grace_period=first, reduction_factor=2)
    trainable: Callable[[Mapping[str, Any]], None] = tune.with_parameters(train_trial, spec=spec)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="dev_loss",
            mode="min",
            search_alg=_TimedSearch(times, spec),
            scheduler=asha or None,
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
