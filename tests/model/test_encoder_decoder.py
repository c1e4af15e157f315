"""Prefixes of an encoder-decoder model: each site against attention computed by hand, packed rows against rows alone.

By hand: the model's own forward, one row at a time and unpadded, with an attention function that writes the prefix's
part of the softmax out.
"""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import SITES, AdapterTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base, checkpointed
from prefixray.model.binding.attention import place_of
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # as in test_pack.py
ROUNDING = 1e-5  # of logits; T5's norm rounds to fp32 even in float64
LENGTHS = [
    {"encoder": 3, "decoder": 2, "cross": 4},
    {},
    {"encoder": 8},
    {"cross": 1, "decoder": 5},
]  # prefix positions of four trials
SOURCES = ("The Eagle serves Chinese food.", "A pub", "Near Café Rouge there is a restaurant : The Mill", "cheap")


def _inserts(base: Base) -> list[Insert]:
    draw = torch.Generator().manual_seed(1)

    def prefix(site: str, length: int) -> Tensor:
        sizes = base.shape.sites[site]
        shape = (2, sizes.num_layers, sizes.num_kv_heads, length, sizes.head_dim)
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(base.model.dtype)

    return [Insert({site: prefix(site, length) for site, length in own.items()}) for own in LENGTHS]


def _rows(base: Base) -> list[tuple[Tensor, Tensor]]:
    """Encoder and decoder ids of four rows of different lengths."""
    draw = torch.Generator().manual_seed(2)
    sizes = [(7, 5), (3, 6), (9, 2), (5, 5)]
    return [tuple(torch.randint(3, 300, (length,), generator=draw) for length in pair) for pair in sizes]  # type: ignore[misc]


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=1)
    return ids, nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)


def _by_hand(base: Base, insert: Insert, source: Tensor, target: Tensor) -> Tensor:
    """Logits (S, V) of one row."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: object
    ) -> tuple[Tensor, None]:
        place = place_of(module)
        scale, bias = options["scaling"], options.get("position_bias")
        scores = query @ key.transpose(2, 3) * scale
        scores = scores if bias is None else scores + bias
        scores = scores if mask is None else scores + mask
        if place.site in insert.prefixes:
            prefix_key, prefix_value = insert.prefixes[place.site][:, place.layer, None]
            scores = torch.cat([query @ prefix_key.transpose(2, 3) * scale, scores], dim=3)
            value = torch.cat([prefix_value, value], dim=2)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("by_hand", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("by_hand", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    base.model.set_attn_implementation("by_hand")
    with torch.no_grad():
        logits: Tensor = base.model(input_ids=source[None], decoder_input_ids=target[None]).logits[0]
    base.model.set_attn_implementation("prefixray")
    return logits


@pytest.mark.parametrize("row_trial", [(0, 0, 1, 1), (2, 2, 3, 1), (3, 0, 1, 2), (0, 0, 0, 0)])
def test_packed_rows_equal_attention_written_out_for_each_alone(exact_pair: Base, row_trial: Sequence[int]) -> None:
    binder, inserts, rows = Binder.of(exact_pair.model), _inserts(exact_pair), _rows(exact_pair)
    (source, mask), (target, _) = (_padded([row[side] for row in rows]) for side in (0, 1))
    with torch.no_grad(), binder.bind(inserts, row_trial):
        logits = exact_pair.model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    for own, row, trial in zip(logits, rows, row_trial, strict=True):
        expected = _by_hand(exact_pair, inserts[trial], *row)
        assert (own[: len(expected)] - expected).abs().max() < ROUNDING


def test_each_site_makes_a_difference_of_its_own(exact_pair: Base) -> None:
    Binder.of(exact_pair.model)
    whole, (source, target) = _inserts(exact_pair)[0], _rows(exact_pair)[0]
    outputs = [_by_hand(exact_pair, Insert({site: whole.prefixes[site]}), source, target) for site in SITES]
    outputs += [_by_hand(exact_pair, insert, source, target) for insert in (whole, Insert())]
    differences = [(a - b).abs().max() for i, a in enumerate(outputs) for b in outputs[:i]]
    assert min(differences) > 1e-3


def test_token_by_token_equals_at_once(exact_pair: Base) -> None:
    binder, inserts, rows = Binder.of(exact_pair.model), _inserts(exact_pair), _rows(exact_pair)
    source, mask = _padded([row[0] for row in rows])
    target = torch.stack([row[1][:2] for row in rows])
    with torch.no_grad(), binder.bind(inserts, (0, 1, 2, 3)):
        at_once = exact_pair.model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        first = exact_pair.model(input_ids=source, attention_mask=mask, decoder_input_ids=target[:, :1], use_cache=True)
        inputs = {"encoder_outputs": (first.encoder_last_hidden_state,), "past_key_values": first.past_key_values}
        second = exact_pair.model(attention_mask=mask, decoder_input_ids=target[:, 1:], use_cache=True, **inputs)
    assert (torch.cat([first.logits, second.logits], dim=1) - at_once).abs().max() < ROUNDING


def test_no_prefix_is_the_stock_model_exactly(make_base: MakeBase) -> None:
    for architecture in ("bart", "t5"):
        base = make_base(architecture, torch.float32)
        (source, mask), (target, _) = (_padded([row[side] for row in _rows(base)]) for side in (0, 1))
        inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
        empty = Insert({site: prefix[:, :, :, :0] for site, prefix in _inserts(base)[0].prefixes.items()})
        with torch.no_grad():
            stock = base.model(**inputs).logits
            binder = Binder.of(base.model)
            assert torch.equal(base.model(**inputs).logits, stock)
            for insert in (Insert(), empty):
                with binder.bind([insert], [0] * 4):
                    assert torch.equal(base.model(**inputs).logits, stock)


def test_gradients_of_a_trial_are_those_of_its_rows_alone(exact_pair: Base) -> None:
    binder, rows, row_trial = Binder.of(exact_pair.model), _rows(exact_pair), (0, 2, 3, 3)
    leaves = [{site: p.clone().requires_grad_() for site, p in i.prefixes.items()} for i in _inserts(exact_pair)]

    def backward(picked: Sequence[int]) -> None:
        (source, mask), (target, kept) = (_padded([rows[i][side] for i in picked]) for side in (0, 1))
        inserts = [Insert(own) for own in leaves]
        with binder.bind(inserts, [row_trial[i] for i in picked]):
            logits = exact_pair.model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
            (logits.logsumexp(-1) * kept).sum().backward()

    backward([0, 1, 2, 3])
    together = [{site: leaf.grad.clone() for site, leaf in own.items() if leaf.grad is not None} for own in leaves]
    for trial, picked in ((0, [0]), (2, [1]), (3, [2, 3])):
        for leaf in leaves[trial].values():
            leaf.grad = None
        backward(picked)
        for site, leaf in leaves[trial].items():
            assert leaf.grad is not None and (scale := leaf.grad.abs().max()) > 0
            assert (together[trial][site] - leaf.grad).abs().max() < ROUNDING * scale


def test_words_initialise_all_three_sites_in_one_forward(tiny_pair: Base) -> None:
    calls = []
    tiny_pair.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    binder = Binder.of(tiny_pair.model)
    flat = PrefixTrial(preseqlen=5, mid_dim=None, init_token="summarize")
    method = build_method(flat, tiny_pair, binder.record, init_seed=1, dropout_seed=1)
    assert len(calls) == 1
    ids = torch.tensor([tiny_pair.tokenizer(" summarize", add_special_tokens=False).input_ids * 5])[:, :5]
    states = tiny_pair.model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    crossing = states.past_key_values.cross_attention_cache
    for layer, (key, value, *_) in enumerate(crossing):
        prefix = method.insert(None).prefixes["cross"][:, layer]
        assert (prefix - torch.cat([key, value])).abs().max() < 1e-5
    solved = build_method(
        flat.model_copy(update={"mid_dim": 16}), tiny_pair, binder.record, init_seed=1, dropout_seed=1
    )
    assert isinstance(solved, Prefix)
    for site, prefix in solved.fold().items():
        wanted = method.insert(None).prefixes[site]
        assert (prefix - wanted).norm() < 1e-5 * wanted.norm()


def test_sites_can_be_switched_off(tiny_bart: Base, tiny_gpt2: Base) -> None:
    binder = Binder.of(tiny_bart.model)
    some = PrefixTrial(preseqlen=2, mid_dim=None, init_token=None, sites="cross+encoder")
    method = build_method(some, tiny_bart, binder.record, init_seed=1, dropout_seed=1)
    assert list(method.insert(None).prefixes) == ["encoder", "cross"]
    assert set(method.artifact()) == {"encoder.key", "encoder.value", "cross.key", "cross.value"}
    with pytest.raises(UserError, match=r"sites: cross, encoder: .* has decoder only"):
        build_method(some, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)


EXAMPLES = [Example(source, " ".join(reversed(source.split()))) for source in SOURCES] * 3
TRIALS: Mapping[str, TrialConfig] = {
    "three sites": TrialConfig(
        arm="a",
        num_steps=25,
        learning_rate=1e-2,
        batch_size=3,
        method=PrefixTrial(preseqlen=4, mid_dim=6, init_token="food", prefix_dropout=0.1),
    ),
    "cross alone": TrialConfig(
        arm="b",
        num_steps=25,
        learning_rate=3e-3,
        batch_size=2,
        label_smoothing=0.1,
        method=PrefixTrial(preseqlen=9, mid_dim=None, init_token=None, sites="cross"),
    ),
    "adapter": TrialConfig(arm="c", num_steps=25, learning_rate=3e-3, batch_size=4, method=AdapterTrial(bottleneck=5)),
    "lora": TrialConfig(arm="d", num_steps=25, learning_rate=3e-3, method=LoraTrial(rank=3, dropout=0.2), batch_size=2),
}


def _examples(base: Base) -> list[Row]:
    return encode(EXAMPLES, make_template(base, TaskConfig(name="custom")))


def _pack(base: Base, trials: Mapping[str, TrialConfig]) -> Pack:
    pack = Pack(base, _examples(base), pad_id=base.tokenizer.pad_token_id, token_budget=90)
    for key, config in trials.items():
        pack.admit(key, config, Seeds.derive(1, 0))
    return pack


def _parameters(pack: Pack, key: str) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pack.members[key].method.named_parameters()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_packed_and_alone_agree_in_every_parameter(make_base: MakeBase, architecture: str, dtype: torch.dtype) -> None:
    base = make_base(architecture, dtype)
    packed = _pack(base, TRIALS)
    for _ in range(25):
        together = packed.step(TRIALS)
    assert all(outcome.failed is None for outcome in together.values())
    scores = packed.evaluate(TRIALS, _examples(base))
    for key, config in TRIALS.items():
        lone = _pack(base, {key: config})
        for _ in range(25):
            alone = lone.step([key])
        assert alone[key].loss == pytest.approx(together[key].loss, abs=TOLERANCE[dtype])
        ours = _parameters(packed, key)
        for name, parameter in _parameters(lone, key).items():
            assert (ours[name] - parameter).abs().max() < TOLERANCE[dtype], (key, name)
        assert lone.evaluate([key], _examples(base))[key] == pytest.approx(scores[key], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bart", "t5"])
def test_checkpointed_blocks_give_the_same_numbers(make_base: MakeBase, architecture: str) -> None:
    plain, kept = (make_base(architecture, torch.float64) for _ in range(2))
    sharing = {key: config for key, config in TRIALS.items() if plain.shape.is_encoder_decoder or key != "cross alone"}
    finetune = TrialConfig(arm="f", num_steps=25, learning_rate=1e-4, batch_size=2, method=FinetuneTrial())
    trials = {**sharing, "finetune": finetune}
    pad = plain.tokenizer.pad_token_id or plain.tokenizer.eos_token_id
    packs = []
    for base in (plain, checkpointed(kept)):
        pack = Pack(base, _examples(base), pad_id=pad, token_budget=90)
        for key, config in trials.items():
            pack.admit(key, config, Seeds.derive(1, 0))
        for _ in range(4):
            pack.step(trials)
        packs.append(pack)
    for key in trials:
        ours = _parameters(packs[1], key)
        assert all((ours[n] - p).abs().max() < 1e-12 for n, p in _parameters(packs[0], key).items()), key


def test_smoothing_is_torchs_and_the_reported_loss_is_without_it(tiny_bart: Base) -> None:
    rows = _examples(tiny_bart)[:1]
    config = TRIALS["cross alone"].model_copy(update={"batch_size": 1, "max_grad_norm": None})
    pack = Pack(tiny_bart, rows, pad_id=1)
    member = pack.admit("one", config, Seeds.derive(1, 0))
    prefix = member.method.insert(None).prefixes["cross"].clone().requires_grad_()
    with pack.binder.bind([Insert({"cross": prefix})], [0]):
        (row,) = rows
        ids, target = torch.tensor([row.ids]), torch.tensor(row.ids[row.num_prompt :])
        logits = tiny_bart.model(input_ids=torch.tensor([row.encoder_ids]), decoder_input_ids=ids[:, :-1]).logits[0]
        logits = logits[row.num_prompt - 1 :]
        nn.functional.cross_entropy(logits, target, label_smoothing=0.1).backward()
    outcome = pack.step(["one"])["one"]
    assert prefix.grad is not None and outcome.grad_norm == pytest.approx(prefix.grad.norm().item(), rel=1e-4)
    assert outcome.loss == pytest.approx(nn.functional.cross_entropy(logits, target).item(), rel=1e-5)


def test_beam_search_in_a_mixed_batch_equals_beam_search_alone(exact_pair: Base) -> None:
    template = make_template(exact_pair, TaskConfig(name="custom"))
    decoding = DecodingSettings(num_beams=4, max_new_tokens=10, length_penalty=0.8, no_repeat_ngram_size=3)
    sources = [source for source in SOURCES for _ in LENGTHS]
    inserts = _inserts(exact_pair) * len(SOURCES)
    together = generate(exact_pair, template, sources, inserts, decoding)
    one = decoding.model_copy(update={"batch_size": 1})
    pairs = zip(sources, inserts, strict=True)
    alone = [generate(exact_pair, template, [source], [insert], one)[0] for source, insert in pairs]
    assert together == alone and len(set(alone)) > len(SOURCES)


def test_without_an_insert_the_stock_model_decodes(tiny_bart: Base) -> None:
    template = make_template(tiny_bart, TaskConfig(name="custom"))
    expected = []
    for source in SOURCES:
        ids = tiny_bart.tokenizer(source, return_tensors="pt").input_ids
        output = tiny_bart.model.generate(
            ids, num_beams=4, max_new_tokens=11, forced_bos_token_id=0, forced_eos_token_id=None
        )
        text = tiny_bart.tokenizer.decode(output[0], skip_special_tokens=True).strip()
        expected.append(text.splitlines()[0].strip() if text else "")
    decoding = DecodingSettings(num_beams=4, max_new_tokens=10)
    ours = generate(tiny_bart, template, SOURCES, [Insert()] * len(SOURCES), decoding)
    assert ours == expected
