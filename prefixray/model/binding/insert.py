"""What one trial puts into the model, and the prefixes of several trials as tensors."""

# T trials, L layers of a site, K key/value heads, P prefix positions, D head dim

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

RowFunction = Callable[[Tensor, Tensor], Tensor]  # (input of the module, output of the module) -> new output


@dataclass(frozen=True)
class Insert:
    """Prefixes, or functions on the outputs of named modules, or nothing."""

    prefixes: Mapping[str, Tensor] = field(default_factory=dict)  # site -> (2, L, K, P, D): keys, values of each layer
    functions: Mapping[str, RowFunction] = field(default_factory=dict)
    infix: Tensor | None = None  # (P, width): virtual embeddings inside the row, to whose K/V the prefix is added

    def num_seen(self, site: str) -> int:
        """How many positions of the prefix rows see at a site, wherever these stand."""
        return self.prefixes[site].shape[3] if site in self.prefixes else 0

    def num_positions(self, site: str = "decoder") -> int:
        """How many prefix positions come before the row's first token at a site."""
        return self.num_seen(site) if self.infix is None else 0

    @property
    def infix_length(self) -> int:
        """How many columns of a row the infix takes."""
        return 0 if self.infix is None else self.infix.shape[0]


@dataclass(frozen=True)
class SitePrefix:
    """The prefixes of several trials at one site."""

    lengths: Tensor  # (T,) prefix positions of each trial
    layers: tuple[Tensor, ...]  # per layer (T, 2, K, P, D), padded on the right of P


def stack_prefixes(inserts: Sequence[Insert], *, dtype: torch.dtype, device: torch.device) -> dict[str, SitePrefix]:
    """The prefixes of trials, by site; a site where no trial has a prefix is left out."""
    stacked = {}
    for site in dict.fromkeys(site for insert in inserts for site in insert.prefixes):
        lengths = [insert.num_seen(site) for insert in inserts]
        if max(lengths) > 0:
            stacked[site] = SitePrefix(torch.tensor(lengths, device=device), _layers(inserts, site, dtype))
    return stacked


def _layers(inserts: Sequence[Insert], site: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All trials' prefixes of a site, zeros behind a shorter one, layer by layer: (T, 2, K, P, D).

    One `unbind` makes the layers: the gradient of a slice per layer would be as large as all layers, each time.
    """
    longest = max(insert.num_seen(site) for insert in inserts)
    example = next(insert.prefixes[site] for insert in inserts if site in insert.prefixes)
    empty = example.new_zeros(example.shape).narrow(3, 0, 0)
    prefixes = [insert.prefixes.get(site, empty).to(dtype) for insert in inserts]
    missing = [longest - prefix.shape[3] for prefix in prefixes]
    padded = [functional.pad(p, (0, 0, 0, n)) if n else p for p, n in zip(prefixes, missing, strict=True)]
    return (torch.stack(padded) if len(padded) > 1 else padded[0][None]).unbind(2)
