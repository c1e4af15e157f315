"""The backend of a CPU: what `fast_cpu` offers, where it was measured to be faster (`tests/bench/ablation.py`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.model.fast_cpu import attention, onednn
from prefixray.model.fast_cpu.fused_activation import activated_layers, fused
from prefixray.model.fast_cpu.rms_norm import frozen_norms, rms_norms
from prefixray.model.plain import PlainBackend, Product, RowGroup

Found = TypeVar("Found")


class CPUBackend(PlainBackend):
    """Products by oneDNN, RMS norms in blocks, GELU inside products, attention in products."""

    reads_at_once = True

    @contextmanager
    def frozen(self, model: PreTrainedModel) -> Iterator[None]:
        """See `PlainBackend`."""
        with onednn.frozen_layers(model), frozen_norms(_known(model, rms_norms)):
            yield

    @contextmanager
    def evaluation(self, model: PreTrainedModel, *, has_hooks: bool) -> Iterator[None]:
        """See `PlainBackend`."""
        with_gelu = [] if has_hooks else _known(model, activated_layers)
        with self.frozen(model), fused(with_gelu):
            yield

    def decoding(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """See `PlainBackend`."""
        return onednn.rearranged(model)

    def serving(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """See `PlainBackend`.

        In fp32 on an Intel Xeon rearranged weights make a step of one row slower: with SmolLM2-135M it takes 143 ms on
        them and 81 ms without, a step of 16 rows 180 and 172 ms.
        """
        return onednn.rearranged(model) if onednn.is_faster(model.device, model.dtype) else nullcontext()

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


def _known(model: PreTrainedModel, look_for: Callable[[PreTrainedModel], list[Found]]) -> list[Found]:
    """Modules of the model that run in another way. They are looked for once per dtype; the model keeps the answer."""
    answers: dict[tuple[str, torch.dtype], list[Found]] = vars(model).setdefault("_prefixray_modules", {})
    key = look_for.__name__, model.dtype
    if key not in answers:
        answers[key] = look_for(model)
    return answers[key]
