"""An infix among other trials' rows is what a plain, unpacked forward over a cache gives, in training and decoding."""

from collections.abc import Callable, Sequence

import pytest
import torch
from support.tiny_bases import stock_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.model.base import Base, checkpointed
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

TOLERANCE = 1e-5  # of logits of some tens; transformers' RMSNorm rounds to fp32 even in float64
SOURCES = ("name : The Eagle | food : Chinese", "The Mill", "name : Aromi | Type : restaurant | area : city centre")
TRIALS = (3, 0, 5, -4)  # positions of an infix, of none, of another infix; of a prefix
ROWS = ((0, 4), (0, 2), (1, 3), (2, 5), (2, 1), (3, 2))  # (trial, tokens of its source)
NUM_TOKENS = 8  # of a row without its infix


@pytest.fixture
def inserts(exact_base: Base) -> list[Insert]:
    """What each trial has, as leaves where gradients arrive."""
    site, draw = exact_base.shape.sites["decoder"], torch.Generator().manual_seed(1)
    made = []
    for length in TRIALS:
        size = (2, site.num_layers, site.num_kv_heads, abs(length), site.head_dim)
        prefix = torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_()
        embeddings = torch.randn(abs(length), exact_base.shape.hidden_size, generator=draw, dtype=torch.float64)
        infix = embeddings.requires_grad_() if length > 0 else None
        made.append(Insert({"decoder": prefix} if length else {}, infix=infix))
    return made


def _tokens(base: Base) -> Tensor:
    size = (len(ROWS), NUM_TOKENS)
    return torch.randint(len(base.tokenizer), size, generator=torch.Generator().manual_seed(2))


def _cached(keys_and_values: Tensor) -> DynamicCache:
    """(2, L, K, S, D) as a cache of one row."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(keys_and_values.unbind(1)):
        cache.update(keys[None], values[None], layer)
    return cache


def _past(stock: PreTrainedModel, insert: Insert, source: Tensor) -> DynamicCache:
    """The base over source and virtual embeddings, then the sums: what the rest of a row looks at."""
    prefix = insert.prefixes.get("decoder")
    if insert.infix is None:
        cache = DynamicCache() if prefix is None else _cached(prefix)
        stock(input_ids=source[None], past_key_values=cache, use_cache=True)
        return cache
    embedded = torch.cat([stock.get_input_embeddings()(source), insert.infix])
    cache = DynamicCache()
    stock(inputs_embeds=embedded[None], past_key_values=cache, use_cache=True)
    plain = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers], dim=1)
    assert prefix is not None
    before, infix = plain[..., : len(source), :], plain[..., len(source) :, :]
    return _cached(torch.cat([before, infix + prefix], dim=3))


def _by_hand(stock: PreTrainedModel, inserts: Sequence[Insert], ids: Tensor) -> list[Tensor]:
    """Row by row, the logits of what stands behind the source."""
    return [
        stock(input_ids=row[None, start:], past_key_values=_past(stock, inserts[trial], row[:start])).logits[0]
        for (trial, start), row in zip(ROWS, ids, strict=True)
    ]


def _packed(base: Base, binder: Binder, inserts: Sequence[Insert], ids: Tensor) -> list[Tensor]:
    """The same from one forward of all rows, padded on the right."""
    room = [inserts[trial].infix_length for trial, _ in ROWS]
    whole = torch.zeros(len(ROWS), NUM_TOKENS + max(room), dtype=torch.long)
    for index, ((_, start), extra, row) in enumerate(zip(ROWS, room, ids, strict=True)):
        whole[index, :start], whole[index, start + extra : extra + NUM_TOKENS] = row[:start], row[start:]
    positions = torch.arange(whole.shape[1]).expand_as(whole)
    starts = [start for _, start in ROWS]
    with binder.bind(inserts, [trial for trial, _ in ROWS], infix_starts=starts):
        logits = base.model(input_ids=whole, position_ids=positions, use_cache=False).logits
        rest = [
            row[start + extra : extra + NUM_TOKENS] for (_, start), extra, row in zip(ROWS, room, logits, strict=True)
        ]
        if logits.requires_grad:
            torch.cat(rest).logsumexp(1).sum().backward()
    return rest


def _gradients(inserts: Sequence[Insert]) -> list[Tensor]:
    """What has arrived at all leaves, which are empty again afterwards."""
    leaves = [leaf for insert in inserts for leaf in (*insert.prefixes.values(), insert.infix) if leaf is not None]
    gradients = []
    for leaf in leaves:
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        leaf.grad = None
    return gradients


@pytest.mark.parametrize("wrap", [lambda base: base, checkpointed], ids=["kept", "checkpointed"])
def test_rows_of_a_mixed_batch_and_their_gradients_are_the_plain_ones(
    exact_base: Base, inserts: list[Insert], wrap: Callable[[Base], Base]
) -> None:
    base, ids = wrap(exact_base), _tokens(exact_base)
    expected = _by_hand(stock_model(exact_base), inserts, ids)
    torch.cat(expected).logsumexp(1).sum().backward()
    wanted = _gradients(inserts)
    rows = _packed(base, Binder.of(base.model), inserts, ids)
    found = _gradients(inserts)
    assert max(float((a - b).detach().abs().max()) for a, b in zip(rows, expected, strict=True)) < TOLERANCE
    for ours, plain in zip(found, wanted, strict=True):
        assert (ours - plain).abs().max() < TOLERANCE * plain.abs().max()


def test_nothing_added_to_words_is_the_base_reading_them(exact_base: Base) -> None:
    site, stock = exact_base.shape.sites["decoder"], stock_model(exact_base)
    words = torch.tensor([5, 9, 40])
    added = torch.zeros(2, site.num_layers, site.num_kv_heads, 3, site.head_dim, dtype=torch.float64)
    insert = Insert({"decoder": added}, infix=stock.get_input_embeddings()(words))
    ids = torch.tensor([[7, 8, 0, 0, 0, 60, 61, 62]])
    with torch.no_grad():
        whole = stock(input_ids=torch.cat([ids[:, :2], words[None], ids[:, 5:]], dim=1)).logits
        with Binder.of(exact_base.model).bind([insert], [0], infix_starts=[2]):
            ours = exact_base.model(input_ids=ids, position_ids=torch.arange(8)[None], use_cache=False).logits
    assert (ours - whole).abs().max() < TOLERANCE


def test_losses_of_a_pack_are_the_plain_ones_in_training_and_evaluation(exact_base: Base) -> None:
    template, stock = make_template(exact_base, TaskConfig(name="e2e")), stock_model(exact_base)
    examples = [
        Example(source, f"{source} is {end}") for source in SOURCES for end in ("cheap.", "a pub by the river.")
    ]
    rows = encode(examples, template)
    pack = Pack(exact_base, rows, pad_id=template.pad_id)
    for name, trial in {"infix": {"format_mode": "infix"}, "prefix": {}}.items():
        method = PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, **trial)
        recipe = {"learning_rate": 1e-3, "num_steps": 2, "batch_size": len(rows)}
        pack.admit(name, TrialConfig(arm=name, method=method, **recipe), Seeds.derive(1, 0))
    total = 0.0
    with torch.no_grad():
        insert = pack.members["infix"].method.insert(None)
        for row in rows:
            start = row.num_prompt - template.num_after
            ids = torch.tensor(row.ids)
            past = _past(stock, insert, ids[:start])
            log_p = stock(input_ids=ids[None, start:], past_key_values=past).logits[0].log_softmax(1)
            total -= sum(float(log_p[i - start - 1, row.ids[i]]) for i in range(row.num_prompt, len(row.ids)))
    expected = total / sum(row.num_targets for row in rows)
    assert pack.evaluate(pack.members, rows)["infix"] == pytest.approx(expected, abs=TOLERANCE)
    assert pack.step(pack.members)["infix"].loss == pytest.approx(expected, abs=TOLERANCE)


def test_greedy_decoding_is_the_plain_one(exact_base: Base, inserts: list[Insert]) -> None:
    template, stock = make_template(exact_base, TaskConfig(name="e2e")), stock_model(exact_base)
    decoding = DecodingSettings(num_beams=1, max_new_tokens=9)
    given = [inserts[trial] for trial in (0, 2, 0)]
    found = generate(exact_base, template, SOURCES, given, decoding)
    for source, insert, hypothesis in zip(SOURCES, given, found, strict=True):
        prompt = torch.tensor(template.encode_source(source))
        before, last = prompt[: -template.num_after], prompt[-template.num_after :]
        new: list[int] = []
        with torch.no_grad():
            cache, tokens = _past(stock, insert, before), last[None]
            while len(new) < 9 and template.eos_id not in new:
                new.append(int(stock(input_ids=tokens, past_key_values=cache).logits[0, -1].argmax()))
                tokens = torch.tensor([new[-1:]])
        text = exact_base.tokenizer.decode([token for token in new if token != template.eos_id]).strip()
        assert hypothesis == (text.splitlines()[0].strip() if text else "")


def test_beam_search_in_a_mixed_batch_equals_beam_search_alone(exact_base: Base, inserts: list[Insert]) -> None:
    template = make_template(exact_base, TaskConfig(name="e2e"))
    sources = [source for source in SOURCES for _ in inserts]
    given = [*inserts] * len(SOURCES)
    decoding = DecodingSettings(num_beams=4, max_new_tokens=10)
    with torch.no_grad():
        together = generate(exact_base, template, sources, given, decoding)
        alone = [
            generate(exact_base, template, [source], [insert], decoding)[0]
            for source, insert in zip(sources, given, strict=True)
        ]
    assert together == alone and len(set(together)) > len(SOURCES)
