"""The backend of a CPU: what `fast_cpu` offers, where it was measured to be faster (`tests/bench/ablation.py`)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.model.fast_cpu import attention, onednn
from prefixray.model.fast_cpu.rms_norm import frozen_norms, rms_norms
from prefixray.model.plain import PlainBackend, Product, RowGroup


class CPUBackend(PlainBackend):
    """Products by oneDNN, RMS norms in blocks, attention in products."""

    @contextmanager
    def frozen(self, model: PreTrainedModel) -> Iterator[None]:
        """See `PlainBackend`."""
        with onednn.frozen_layers(model), frozen_norms(_norms(model)):
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
        return onednn.head_product(weight, bias), onednn.head_gradient(weight)


def _norms(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The model's RMS norms that can run in blocks. They are looked for once per dtype; the model keeps the answer."""
    by_dtype: dict[torch.dtype, Sequence[nn.Module]] = vars(model).setdefault("_prefixray_norms", {})
    if model.dtype not in by_dtype:
        by_dtype[model.dtype] = rms_norms(model)
    return by_dtype[model.dtype]
