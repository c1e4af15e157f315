"""A trial inside a pack, and the formulas of its recipe.

The defaults are those of transformers' trainer, which Li & Liang (2021, section 5.3) used: AdamW, a linear learning
rate, weight decay on matrices alone, gradients clipped to the norm 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prefixray.batching.order import example_indices
from prefixray.batching.rows import Row
from prefixray.config.seeds import derive_seed
from prefixray.config.trials import TrialConfig
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder


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


class Member:
    """A trial inside a pack: its method, its optimiser, its rows and its step among them."""

    def __init__(
        self, key: str, config: TrialConfig, base: Base, binder: Binder, seeds: Seeds, rows: Sequence[Row]
    ) -> None:
        self.key, self.config = key, config
        self.step = 0
        self._rows, self._order_seed = rows, seeds.data
        self.dropout_seed = seeds.dropout
        self.method: Method = build_method(
            config.method, base, binder.record, init_seed=seeds.init, dropout_seed=seeds.dropout
        )
        if base.model.dtype == torch.float64:
            self.method.double()
        own_model = self.method.own_model
        self.binder = binder if own_model is None else Binder.of(own_model)
        trained = [p for p in self.method.parameters() if p.requires_grad]
        if not trained:
            raise UserError(f"arm {config.arm}: nothing of {base.name} would be trained with these values")
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)

    @property
    def drops_in_base(self) -> bool:
        """Whether it trains with the dropout of the base that it shares."""
        return self.config.base_dropout and self.method.own_model is None

    def next_rows(self) -> list[Row]:
        """The rows of the coming step: the batches of all its accumulated gradients."""
        count = self.config.batch_size * self.config.grad_accumulation
        order = example_indices(self.step * count, count, num_examples=len(self._rows), seed=self._order_seed)
        return [self._rows[index] for index in order]

    def update(self) -> float:
        """Clip, step the optimiser at this step's learning rate, and return the norm before clipping.

        Leaves everything as it was when the norm is not finite. Where memory runs out, the parameters are as they were
        and the gradients are of no use.
        """
        self.method.push_gradients()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.config.max_grad_norm
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit))
        if math.isfinite(norm):
            self._make_room_for_moments()
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, self.step)
            self.optimizer.step()
            self.step += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _make_room_for_moments(self) -> None:
        """Make AdamW's state as its first step would, but of all parameters before any of them is moved."""
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            if parameter.grad is not None and not self.optimizer.state.get(parameter):
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": step, **moments}


def learning_rate(config: TrialConfig, step: int) -> float:
    """The learning rate of update `step` (from 0): a linear warm-up, then the schedule over the rest of `num_steps`.

    The schedules are transformers', of which the original uses the linear one. A warm-up starts at the rate 0, so its
    first update moves nothing, and the first update after it has the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    left = (config.num_steps - step) / max(1, config.num_steps - config.warmup_steps)
    match config.schedule:
        case "linear":
            return config.learning_rate * left
        case "cosine":
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))
        case "constant":
            return config.learning_rate


def row_weight(config: TrialConfig, rows: Sequence[Row]) -> float:
    """The factor of each row's summed negative log-likelihood in the objective of a step over `rows`.

    The objectives are 0 and 1 of the original's `--objective_mode` (its `train_e2e.py`, where 1 is the default).
    """
    match config.objective:
        case "token_mean":
            return 1.0 / sum(row.num_targets for row in rows)
        case "sentence_sum":
            return 1.0 / len(rows)
