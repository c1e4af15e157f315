"""Prefixes that start as a document or as chunks of it, and positions that stay as they start."""

from typing import Any

import pytest
import torch
from support.packs import SEEDS, MakeBase, pack_of, rows_of, run_steps, trial_of
from support.taught import DOCUMENT
from support.tiny_bases import stock_model
from torch import Tensor

from prefixray.batching.batches import collate, collate_line
from prefixray.batching.rows import Row
from prefixray.config.trials import PrefixTrial
from prefixray.data.documents import Document
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.catalog import trained_parameters
from prefixray.methods.prefix import CHUNK, Prefix, document_tokens
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.ragged import Ragged
from prefixray.model.uploads import Uploads
from prefixray.training.pack import Pack

LONG = " ".join(f"Table {number} serves {7 * number} guests ." for number in range(60))


def _prefix(base: Base, *, seed: int = 1, document: str | None = DOCUMENT, **values: object) -> Prefix:
    config = PrefixTrial(**{"preseqlen": 8, "mid_dim": None, "init_token": None, **values})  # type: ignore[arg-type]
    record = Binder.of(base.model).record
    about = None if document is None else Document("page", document)
    method = build_method(config, base, record, init_seed=seed, dropout_seed=1, document=about)
    assert isinstance(method, Prefix)
    return method.double() if base.model.dtype == torch.float64 else method


def _logits(base: Base, method: Prefix, rows: list[Row], *, in_line: bool) -> list[Tensor]:
    """Those of each row's target tokens behind the prefix, rows side by side or in a line."""
    uploads = Uploads(base.device)
    line = Ragged([row.num_inputs for row in rows], [range(len(rows))], uploads) if in_line else None
    batch = collate_line(rows, to=uploads) if in_line else collate(rows, pad_id=0, to=uploads)
    binding = Binder.of(base.model).bind([method.insert(None)], [0] * len(rows), targets=batch.targets, line=line)
    with binding, torch.no_grad():
        logits = base.model(**batch.inputs, use_cache=False).logits
    return list(logits.split([row.num_targets for row in rows]))


@pytest.mark.parametrize("in_line", [False, True], ids=["side by side", "in a line"])
@pytest.mark.parametrize("values", [{}, {"mid_dim": 70}, {"prefix_mode": "embedding"}], ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_untrained_prefix_of_the_whole_document_is_the_document_in_context(
    make_base: MakeBase, architecture: str, values: dict[str, Any], in_line: bool
) -> None:
    """Positions, rotary ones too: the prefix keeps those that it was recorded at, and text goes on behind them."""
    base = make_base(architecture, torch.float64)
    ids, rows, stock = document_tokens(DOCUMENT, base), rows_of(base)[:3], stock_model(base)
    assert 8 < len(ids) < 70
    method = _prefix(base, preseqlen=len(ids), init_from="document", **values)
    for found, row in zip(_logits(base, method, rows, in_line=in_line), rows, strict=True):
        with torch.no_grad():
            whole = stock(input_ids=torch.tensor([[*ids, *row.ids[:-1]]])).logits[0]
        tolerance = 1e-3 if "mid_dim" in values else 1e-10  # a network is solved in fp64 and kept in fp32
        assert (found - whole[-row.num_targets :]).abs().max() < tolerance


def test_the_documents_start_token_is_the_bases(tiny_llama: Base) -> None:
    assert document_tokens(DOCUMENT, tiny_llama) == tiny_llama.tokenizer(DOCUMENT).input_ids


def test_chunks_are_parts_of_the_document_in_their_order(tiny_llama: Base) -> None:
    tokens = document_tokens(LONG, tiny_llama)
    length = 2 * CHUNK + 5
    assert len(tokens) > 3 * length
    starts = [_prefix(tiny_llama, seed=seed, document=LONG, preseqlen=length, init_from="chunks") for seed in range(8)]
    found = [start.tokens for start in starts]
    pieces = [tuple(tokens[first : first + CHUNK]) for first in range(0, len(tokens), CHUNK)]
    for own in found:
        assert own is not None and len(own) == length
        whole = [pieces.index(tuple(own[first : first + CHUNK])) for first in range(0, 2 * CHUNK, CHUNK)]
        assert whole == sorted(whole)
    assert len({tuple(own or ()) for own in found}) > 1
    assert _prefix(tiny_llama, seed=3, document=LONG, preseqlen=length, init_from="chunks").tokens == found[3]


@pytest.mark.parametrize("which", ["document", "chunks"])
def test_a_document_that_does_not_suffice_is_refused(tiny_gpt2: Base, which: str) -> None:
    count = len(document_tokens(DOCUMENT, tiny_gpt2))
    assert _prefix(tiny_gpt2, preseqlen=count, init_from=which).num_positions == count
    needs = f"preseqlen: {count + 1}: init_from {which} needs as many tokens, and the document page has {count}; "
    with pytest.raises(UserError, match=needs):
        _prefix(tiny_gpt2, preseqlen=count + 1, init_from=which)
    with pytest.raises(UserError, match=f"init_from: {which}: the task has no document; take words"):
        _prefix(tiny_gpt2, document=None, init_from=which)


@pytest.mark.parametrize(
    "values",
    [
        {"init_from": "document"},
        {"init_from": "document", "mid_dim": 6},
        {"init_token": "food", "prefix_mode": "embedding"},
        {"prefix_dropout": 0.4},
    ],
    ids=str,
)
def test_frozen_positions_stay_and_the_others_are_trained(make_base: MakeBase, values: dict[str, Any]) -> None:
    base = make_base("llama", torch.float64)
    config = PrefixTrial(**{"preseqlen": 5, "mid_dim": None, "init_token": None, "frozen_positions": 2, **values})
    pack = Pack(base, rows_of(base), pad_id=0)
    trial = trial_of(config, 1e-2, weight_decay=0.1)
    member = pack.admit("frozen", trial, SEEDS, document=Document("page", DOCUMENT))
    method = member.method
    assert isinstance(method, Prefix)
    before = method.fold()["decoder"].detach().clone()
    assert torch.equal(method.insert(0).prefixes["decoder"][..., :2, :], before[..., :2, :])  # no dropout there
    run_steps(pack, ["frozen"], 3)
    after = method.fold()["decoder"].detach()
    assert torch.equal(after[..., :2, :], before[..., :2, :])
    assert all((after - before)[..., position, :].abs().max() > 1e-3 for position in (2, 3, 4))
    assert method.trained_parameters() == trained_parameters(config, base.shape)
    assert before.shape[3] == 5 and method.artifact()["decoder.key"].shape[2] == 5

    loaded = build_method(config.without_start(), base, pack.binder.record, init_seed=9, dropout_seed=9)
    loaded.load_artifact(method.artifact())
    assert torch.equal(loaded.insert(None).prefixes["decoder"], after)


def test_a_base_has_its_words_and_its_random_tokens_as_before(make_base: MakeBase) -> None:
    """A start from no document draws nothing more than it did."""
    base = make_base("gpt2", torch.float32)
    pack = pack_of(base, {"random": trial_of(PrefixTrial(preseqlen=4, mid_dim=None, init_token=None), 1e-2)})
    method = pack.members["random"].method
    draw = torch.Generator().manual_seed(SEEDS.init)
    assert isinstance(method, Prefix)
    assert method.tokens == torch.randint(base.shape.vocab_size, (4,), generator=draw).tolist()
