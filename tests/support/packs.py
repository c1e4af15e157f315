"""Packs of a few trials on a copy of a tiny base, and what tests compare of them."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base
from prefixray.training.member import Member, Seeds
from prefixray.training.pack import Pack, StepResult
from prefixray.training.trainer import Trainer
from prefixray.trial import Report

MakeBase = Callable[[str, torch.dtype], Base]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of every parameter after all steps
NUM_STEPS = 25
SEEDS = Seeds.derive(1, 0)
EXAMPLES = tuple(
    Example(f"name : {name} | food : {food}" + " | area : riverside" * (i % 3), f"{name} serves {food}." + " Go." * i)
    for i, (name, food) in enumerate(
        [("The Eagle", "Chinese"), ("The Mill", "French"), ("Aromi", "English food and wine"), ("The Vaults", "tea")]
        * 3
    )
)
NETWORK = PrefixTrial(preseqlen=7, mid_dim=12, init_token=None, prefix_dropout=0.1)
INFIX = PrefixTrial(preseqlen=4, mid_dim=6, init_token=None, prefix_dropout=0.1, format_mode="infix")


def trial_of(method: AnyTrial, learning_rate: float, *, batch_size: int = 2, **recipe: object) -> TrialConfig:
    """A trial of this method."""
    whole = {
        "arm": "tested",
        "num_steps": NUM_STEPS,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        **recipe,
    }
    return TrialConfig(method=method, **whole)  # type: ignore[arg-type]


FLAT = trial_of(PrefixTrial(preseqlen=3, mid_dim=None, init_token="restaurant"), 1e-2, batch_size=2, warmup_steps=4)
THREE = {
    "flat": FLAT,
    "network": trial_of(NETWORK, 3e-3, batch_size=5, schedule="cosine", objective="sentence_sum", weight_decay=0.1),
    "words": trial_of(
        PrefixTrial(preseqlen=None, mid_dim=8, init_token="table-to-text: food"),
        1e-3,
        batch_size=3,
        grad_accumulation=2,
    ),
}
MIXED = {
    "prefix": FLAT,
    "adapter": trial_of(AdapterTrial(bottleneck=5), 3e-3, batch_size=4),
    "lora": trial_of(LoraTrial(rank=3), 1e-3, batch_size=3, schedule="constant", max_grad_norm=None),
    "lora with dropout": trial_of(LoraTrial(rank=2, alpha=3.0, dropout=0.3), 3e-3, batch_size=5),
    "infix": trial_of(INFIX, 3e-3, batch_size=2),
    "infix of words": trial_of(INFIX.model_copy(update={"mid_dim": None, "init_token": "food"}), 1e-2, batch_size=3),
    "embedding": trial_of(NETWORK.model_copy(update={"prefix_mode": "embedding"}), 1e-3, batch_size=3),
    "adapters in sub-layers": trial_of(AdapterTrial(bottleneck=4, design=2), 3e-3, batch_size=2),
}


def rows_of(base: Base) -> list[Row]:
    """The examples' rows for a base."""
    return encode(EXAMPLES, make_template(base, TaskConfig(name="e2e")))


def pack_of(base: Base, trials: Mapping[str, TrialConfig], *, token_budget: int | None = None) -> Pack:
    """A pack with these members, on a copy of the base: the base itself stays as it is loaded."""
    own = replace(base, model=copy.deepcopy(base.model))
    pack = Pack(own, rows_of(base), pad_id=0, token_budget=token_budget)
    for key, config in trials.items():
        pack.admit(key, config, SEEDS)
    return pack


def run_steps(pack: Pack, keys: Iterable[str], count: int) -> list[dict[str, StepResult]]:
    """Several steps of these members."""
    names = list(keys)
    return [pack.step(names) for _ in range(count)]


def parameters_of(member: Member) -> dict[str, Tensor]:
    """Copies of a member's parameters."""
    return {name: p.detach().clone() for name, p in member.method.named_parameters()}


def state_of(member: Member) -> dict[str, bytes]:
    """Every bit of a member's parameters and optimiser."""
    state = {}
    for name, parameter in member.method.named_parameters():
        state[name] = parameter.detach().cpu().numpy().tobytes()
        for kind, value in member.optimizer.state[parameter].items():
            state[f"{name} {kind}"] = value.cpu().numpy().tobytes()
    return state


def assert_same(one: Member, other: Member, tolerance: float) -> None:
    """Two members have the same parameters after as many steps."""
    ours, theirs = parameters_of(one), parameters_of(other)
    assert list(ours) == list(theirs) and one.step == other.step
    differences = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    assert max(differences.values()) < tolerance, differences


def count_forwards(pack: Pack) -> list[None]:
    """A list that grows with each forward of the base."""
    calls: list[None] = []
    pack.base.blocks()[-1][1].register_forward_pre_hook(lambda module, args: calls.append(None))
    return calls


def run_trainer(trainer: Trainer, num_steps: int = 100) -> list[Report]:
    """Train on, with every verdict to go on, until all trials have ended or for so many steps."""
    reports = []
    for _ in range(num_steps):
        reports += trainer.run()
        for key in trainer.parked():
            trainer.go_on(key)
    return reports
