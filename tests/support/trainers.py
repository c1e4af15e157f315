"""A trainer on a tiny base and a task of its own, trials for it, and what tests look at."""

from collections.abc import Sequence
from pathlib import Path

import torch

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example, Sourced, Task
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.trainer import Trainer
from prefixray.trial import TrialSpec

NAMES = ("The Eagle", "The Mill", "Aromi", "The Vaults", "The Golden Palace", "Zizzi", "The Rice Boat")
EXAMPLES = tuple(Example(f"name : {name} | food : French", f"{name} serves French food.") for name in NAMES)
TASK = Task(
    name="custom",
    train=EXAMPLES,
    dev=EXAMPLES[:2],
    dev_sources=(Sourced(EXAMPLES[0].source, (EXAMPLES[0].target,)),),
    test_sources=(Sourced(EXAMPLES[1].source, (EXAMPLES[1].target,)),),
    num_test_total=1,
    metrics=("bleu",),
)
FLAT = PrefixTrial(preseqlen=3, mid_dim=None, init_token=None)
METHODS: dict[str, AnyTrial] = {
    "network": PrefixTrial(preseqlen=4, mid_dim=8, init_token="restaurant", prefix_dropout=0.2),
    "adapter": AdapterTrial(bottleneck=3),
    "lora": LoraTrial(rank=2, dropout=0.2),
    "finetune": FinetuneTrial(),
}


def trainer_on(base: Base) -> Trainer:
    """A trainer of the task."""
    return Trainer(base, TASK, TaskConfig(name="custom"))


def config_of(method: AnyTrial = FLAT, *, arm: str = "prefix", num_steps: int = 6, **recipe: object) -> TrialConfig:
    """A trial of this method."""
    whole = {"arm": arm, "num_steps": num_steps, "batch_size": 2, "learning_rate": 1e-2, **recipe}
    return TrialConfig(method=method, **whole)  # type: ignore[arg-type]


def overshooting() -> TrialConfig:
    """A recipe whose dev loss rises in its last step."""
    return config_of(num_steps=4, eval_every=1, learning_rate=3.0, schedule="constant", max_grad_norm=None)


def spec_of(
    folder: Path, key: str, config: TrialConfig, rungs: Sequence[int] = (), *, replicate: int = 0, subset: int = 0
) -> TrialSpec:
    """The spec of a trial, in a folder of its own."""
    where = str(folder / key)
    return TrialSpec(key, config, 1, replicate, rungs=tuple(rungs), folder=where, subsets=(subset,))


def tensors_of(trainer: Trainer, key: str) -> dict[str, torch.Tensor]:
    """A copy of what a trial trains."""
    return {name: p.detach().clone() for name, p in trainer.pack.members[key].method.named_parameters()}
