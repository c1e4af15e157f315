"""A trial inside a pack."""

import math
from dataclasses import dataclass

import torch

from prefixray.config.trials import TrialConfig
from prefixray.errors import UserError
from prefixray.methods import Method, build_method
from prefixray.model.attention import Binder
from prefixray.model.base import Base
from prefixray.system.seeds import derive_seed


class Member:
    """A trial inside a pack: its method, its optimiser, its place in its data."""

    def __init__(self, key: str, config: TrialConfig, base: Base, binder: Binder, seeds: "Seeds") -> None:
        self.key, self.config = key, config
        self.step = 0
        self.method: Method = build_method(
            config.method, base, binder.record, init_seed=seeds.init, dropout_seed=seeds.dropout
        )
        if base.model.dtype == torch.float64:
            self.method.double()
        own = self.method.own_model
        self.binder = binder if own is None else Binder(own)
        self.order_seed = seeds.data
        matrices = [p for p in self.method.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.method.parameters() if p.requires_grad and p.ndim <= 1]
        if not matrices and not others:
            raise UserError(f"arm {config.arm}: nothing of {base.name} would be trained with these values")
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)

    @property
    def rows_per_step(self) -> int:
        """Examples that one step of the optimiser sees."""
        return self.config.batch_size * self.config.grad_accumulation

    def update(self) -> float:
        """Clip, step the optimiser at this step's learning rate, and return the norm before clipping.

        Leaves everything as it was when the norm is not finite.
        """
        self.method.push_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.config.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, self.step)
            self.optimizer.step()
            self.step += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm


@dataclass(frozen=True)
class Seeds:
    """The seeds of one trial, each for one purpose."""

    data: int
    init: int
    dropout: int

    @classmethod
    def derive(cls, seed: int, replicate: int) -> "Seeds":
        """The seeds of a replicate of a sweep."""
        return cls(*(derive_seed(seed, replicate, purpose) for purpose in ("data", "init", "dropout")))


def learning_rate(config: TrialConfig, step: int) -> float:
    """The learning rate of update `step` (from 0): a linear warm-up, then the schedule over the rest of `num_steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = (config.num_steps - step) / max(1, config.num_steps - config.warmup_steps)
    match config.schedule:
        case "linear":
            return config.learning_rate * left
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))
        case "constant":
            return config.learning_rate
