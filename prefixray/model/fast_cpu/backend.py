"""The backend of a CPU: what `fast_cpu` offers, where it was measured to be faster."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.model.fast_cpu import attention, onednn
from prefixray.model.fast_cpu.fused_activation import LayerPair, activated_layers, fused
from prefixray.model.fast_cpu.rms_norm import frozen_norms, rms_norms
from prefixray.model.plain import PlainBackend, Product, RowGroup


class CPUBackend(PlainBackend):
    """Products by oneDNN, RMS norms in blocks, activations inside products, attention in products."""

    @contextmanager
    def training(self, model: PreTrainedModel) -> Iterator[None]:
        """See `PlainBackend`."""
        norms = _modules(model).norms
        with onednn.frozen_layers(model), frozen_norms(norms):
            yield

    @contextmanager
    def evaluation(self, model: PreTrainedModel, *, has_hooks: bool) -> Iterator[None]:
        """See `PlainBackend`."""
        activated = () if has_hooks else _modules(model).activated
        with self.training(model), fused(activated):
            yield

    def decoding(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """See `PlainBackend`."""
        return onednn.rearranged(model)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        **options: Any,  # noqa: ANN401
    ) -> Tensor:
        """See `PlainBackend`."""
        if options.get("softcap") is not None:
            return super().attend(module, query, key, value, mask, **options)
        return attention.attend(query, key, value, mask, options.get("scaling"), options.get("dropout", 0.0))

    def has_long_prefix(self, num_positions: int, dtype: torch.dtype) -> bool:
        """See `PlainBackend`."""
        return attention.has_long_prefix(num_positions, dtype)

    def attend_to_long_prefix(
        self, groups: Sequence[RowGroup], prefix: Tensor, scaling: float | None
    ) -> Sequence[Tensor]:
        """See `PlainBackend`."""
        return attention.attend_to_long_prefix(groups, prefix, scaling)

    def head_products(self, weight: Tensor, bias: Tensor | None) -> tuple[Product, Product]:
        """See `PlainBackend`."""
        return onednn.through(weight, bias), onednn.back_through(weight)


@dataclass(frozen=True)
class _Modules:
    """The modules of a model that this backend can run in another way."""

    dtype: torch.dtype  # in which they were looked for
    norms: Sequence[nn.Module]
    activated: Sequence[LayerPair]


def _modules(model: PreTrainedModel) -> _Modules:
    """They are looked for once; the model keeps the answer."""
    known: _Modules | None = vars(model).get("_prefixray_fast_cpu")
    if known is None or known.dtype != model.dtype:
        known = _Modules(model.dtype, rms_norms(model), activated_layers(model))
        vars(model)["_prefixray_fast_cpu"] = known
    return known
