"""Whatever way attention takes, a row sees its trial's prefix and its own tokens, and nothing else."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert

TOLERANCE = 1e-5  # of logits of some tens; transformers' RMSNorm rounds to fp32 even in float64
LENGTHS = (3, 0, 8)  # prefix positions of three trials


@pytest.fixture
def inserts(exact_base: Base) -> list[Insert]:
    """A trial each: two with prefixes, one without."""
    site, draw = exact_base.shape.sites["decoder"], torch.Generator().manual_seed(1)
    sizes = [(2, site.num_layers, site.num_kv_heads, length, site.head_dim) for length in LENGTHS]
    prefixes = [torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes]
    return [Insert({"decoder": prefix} if prefix.shape[3] else {}) for prefix in prefixes]


def _tokens(base: Base, num_rows: int) -> Tensor:
    return torch.randint(len(base.tokenizer), (num_rows, 7), generator=torch.Generator().manual_seed(2))


def _stock(base: Base, insert: Insert, ids: Tensor) -> Tensor:
    """Logits (S, V) of one row by the model's own attention, the prefix as its past."""
    base.model.set_attn_implementation("eager")
    past = DynamicCache()
    for prefix in insert.prefixes.values():
        for layer, (key, value) in enumerate(zip(*prefix, strict=True)):
            past.update(key[None], value[None], layer)
    with torch.no_grad():
        logits: Tensor = base.model(input_ids=ids[None], past_key_values=past).logits[0]
    base.model.set_attn_implementation("prefixray")
    return logits


@pytest.mark.parametrize("row_trial", [(0, 0, 1, 1, 2, 2), (2, 2, 0, 1, 1, 1), (2, 2), (0, 1, 2)])
def test_rows_see_their_own_prefix_at_once_and_token_by_token(
    exact_base: Base, inserts: list[Insert], row_trial: Sequence[int]
) -> None:
    binder, ids = Binder.of(exact_base.model), _tokens(exact_base, len(row_trial))
    expected = torch.stack([_stock(exact_base, inserts[trial], row) for trial, row in zip(row_trial, ids, strict=True)])
    past, steps = DynamicCache(), []
    with torch.no_grad(), binder.bind(inserts, row_trial):
        at_once = exact_base.model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits
        for column in ids.split(1, dim=1):
            positions = torch.tensor([[past.get_seq_length()]])
            steps.append(exact_base.model(input_ids=column, position_ids=positions, past_key_values=past).logits)
    assert (at_once - expected).abs().max() < TOLERANCE
    assert (torch.cat(steps, dim=1) - expected).abs().max() < TOLERANCE


def test_beams_of_a_row_see_its_prefix(exact_base: Base, inserts: list[Insert]) -> None:
    binder, ids = Binder.of(exact_base.model), _tokens(exact_base, 3)
    with torch.no_grad(), binder.bind(inserts, (0, 1, 2)):
        beams = exact_base.model(input_ids=ids[:, :1].repeat_interleave(4, dim=0), position_ids=torch.tensor([[0]]))
    for row in range(12):
        alone = _stock(exact_base, inserts[row // 4], ids[row // 4, :1])
        assert (beams.logits[row] - alone).abs().max() < TOLERANCE


def test_gradients_of_a_prefix_are_those_of_its_rows_alone(exact_base: Base, inserts: list[Insert]) -> None:
    binder, ids = Binder.of(exact_base.model), _tokens(exact_base, 5)
    together = _gradients(exact_base, binder, inserts, (0, 0, 1, 2, 2), ids)
    for trial, rows in ((0, ids[:2]), (2, ids[3:])):
        alone = _gradients(exact_base, binder, inserts, (trial, trial), rows)
        scale = alone[trial].abs().max()
        assert scale > 0 and (together[trial] - alone[trial]).abs().max() < TOLERANCE * scale


def _gradients(
    base: Base, binder: Binder, inserts: Sequence[Insert], row_trial: Sequence[int], ids: Tensor
) -> dict[int, Tensor]:
    """Of a sum over all positions, at the prefix of each trial that has rows."""
    leaves = [{site: p.clone().requires_grad_() for site, p in insert.prefixes.items()} for insert in inserts]
    with binder.bind([Insert(own) for own in leaves], row_trial):
        logits = base.model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).logits
        logits.logsumexp(-1).sum().backward()
    gradients = {trial: leaf.grad for trial, own in enumerate(leaves) for leaf in own.values()}
    return {trial: gradient for trial, gradient in gradients.items() if gradient is not None}


def test_what_is_recorded_under_a_binding_continues_it(exact_base: Base, inserts: list[Insert]) -> None:
    binder, ids = Binder.of(exact_base.model), _tokens(exact_base, 3)
    with binder.bind(inserts, (0, 1, 2)):
        recorded = binder.record_rows(ids[:, :4])["decoder"]
    for row, insert in enumerate(inserts):
        longer = Insert({"decoder": torch.cat([*insert.prefixes.values(), recorded[row]], dim=3)})
        rest = ids[row : row + 1, 4:]
        with torch.no_grad(), binder.bind([longer], [0]):
            logits = exact_base.model(input_ids=rest, position_ids=torch.arange(3)[None]).logits[0]
        assert (logits - _stock(exact_base, insert, ids[row])[4:]).abs().max() < TOLERANCE
