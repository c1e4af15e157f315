"""The contract of every method of tuning: what it puts into the base, how its gradients arrive, and its artifact."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.data.documents import Document
from prefixray.model.binding.insert import Insert
from prefixray.model.dropout.hashed_draws import draws_of, key_of, least_kept, scaled
from prefixray.model.dropout.row_dropout import RowDropout

Recorder = Callable[[Tensor], Mapping[str, Tensor]]
"""Token ids (1, S), or embeddings (1, S, width), -> each site's keys and values (2, L, K, S, D)."""


@dataclass(frozen=True)
class Start:
    """What a trial starts from, besides its values."""

    draw: torch.Generator
    dropout_seed: int
    document: Document | None = None  # that the trial is about, where the task has one


class Method(nn.Module, ABC):
    """One trial's trainable tensors."""

    dropout_seed: int = 0

    @property
    def own_model(self) -> PreTrainedModel | None:
        """The trial's own copy of the base, where the method cannot share it; else None."""
        return None

    @property
    def own_dropout(self) -> RowDropout | None:
        """The dropout of `own_model`, which is on in training."""
        return None

    @abstractmethod
    def insert(self, step: int | None) -> Insert:
        """What the trial puts into the base in training step `step`; None: in an evaluation, without dropout."""

    def push_gradients(self) -> None:
        """Carry gradients from the insert to the trainable tensors; nothing to do where these are in the insert."""
        return None

    def trained_parameters(self) -> int:
        """How many numbers the optimiser moves."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def stored_parameters(self) -> int:
        """How many numbers the artifact holds."""
        return self.trained_parameters()

    def sizes(self) -> dict[str, int]:
        """The sizes that every report gives, by name."""
        return {"trained": self.trained_parameters(), "stored": self.stored_parameters()}

    @abstractmethod
    def artifact(self) -> dict[str, Tensor]:
        """The tensors that decoding needs, on the CPU."""

    @abstractmethod
    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of an artifact. The method can then decode, but not train on."""


class Untuned(Method):
    """The base as it is, or behind a text whose keys and values are given: nothing is trained."""

    def __init__(self, text: Insert | None = None) -> None:
        super().__init__()
        self._insert = Insert() if text is None else text

    def insert(self, step: int | None) -> Insert:
        """The text's, or nothing."""
        return self._insert

    def artifact(self) -> dict[str, Tensor]:
        """Nothing: nobody has trained it."""
        return {}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to take over."""


def seeded_dropout(x: Tensor, p: float, *, seed: int, step: int | None) -> Tensor:
    """Dropout whose mask depends on the trial's seed and the step alone, not on other draws of random numbers."""
    if p == 0.0 or step is None:
        return x
    drawn = draws_of(key_of(seed, step), (x.shape[:-1].numel(), x.shape[-1]), device=x.device)
    return scaled(x, (drawn >= least_kept(p)).view(x.shape), p)
