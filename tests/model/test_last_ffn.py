"""The last block's feed-forward network runs on targets alone; losses and gradients are those of all positions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prefixray.model.backend import padded_count
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.last_ffn import ENDS

MakeBase = Callable[[str, torch.dtype], Base]

NUM_ROWS, LENGTH, NUM_POSITIONS = 3, 30, 4
TARGETS = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 6, 29, 0])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "t5"])
def test_logits_and_gradients_are_those_of_all_positions(make_base: MakeBase, name: str) -> None:
    base = make_base(name, torch.float64)
    binder, seen = Binder.of(base.model), _inputs_seen(base)
    logits, gradient = _run(base, binder, {})
    full_logits, full_gradient = _run(base, binder, {base.blocks()[0][0]: lambda given, output: output})
    assert seen == [(1, padded_count(len(TARGETS[0]))), (NUM_ROWS, LENGTH)]
    assert torch.allclose(logits, full_logits, atol=1e-10)
    assert torch.allclose(gradient, full_gradient, atol=1e-10)
    assert gradient.abs().max() > 0.01


def test_where_about_every_position_is_a_target_or_nothing_is_bound_it_runs_on_all(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float32)
    binder, seen = Binder.of(base.model), _inputs_seen(base)
    ids = torch.ones(2, 40, dtype=torch.long)
    inputs = {"input_ids": ids, "position_ids": torch.arange(40).expand(2, 40)}
    for count in (80, 65, 64):  # 65 would be rounded up to more than there are
        rows, columns = torch.arange(count) // 40, torch.arange(count) % 40
        with binder.bind([Insert()], [0, 0], targets=(rows, columns)):
            base.model(**inputs, use_cache=False)
    base.model(**inputs, use_cache=False)
    assert seen == [(2, 40), (2, 40), (1, 64), (2, 40)]


def _run(base: Base, binder: Binder, functions: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits at the targets, and the gradient of a prefix."""
    draw, site = torch.Generator().manual_seed(1), base.shape.sites["decoder"]
    size = (2, site.num_layers, site.num_kv_heads, NUM_POSITIONS, site.head_dim)
    prefix = torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_()
    ids = torch.randint(5, 50, (NUM_ROWS, LENGTH), generator=draw)
    places = torch.arange(LENGTH).expand(NUM_ROWS, LENGTH)
    inputs = {"decoder_input_ids": ids} if base.shape.is_encoder_decoder else {"position_ids": places}
    with binder.bind([Insert({"decoder": prefix}, functions)], [0] * NUM_ROWS, targets=TARGETS):
        logits = base.model(input_ids=ids, use_cache=False, **inputs).logits
        torch.log_softmax(logits, dim=1)[:, 7].sum().backward()
    assert prefix.grad is not None
    return logits.detach(), prefix.grad


def _inputs_seen(base: Base) -> list[tuple[int, ...]]:
    """The shapes, but for the width, of what the last block's network is given from here on."""
    decoder = base.model.get_decoder()  # type: ignore[no-untyped-call]
    last = [name for name, _ in decoder.named_modules() if name.endswith(tuple(f".{first}" for first, _ in ENDS))][-1]
    seen: list[tuple[int, ...]] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(tuple(args[0].shape[:-1]))

    decoder.get_submodule(last).register_forward_pre_hook(look)
    return seen
