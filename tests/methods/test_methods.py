"""What every method promises, on every architecture; and what a prefix is, against the base itself and against PEFT."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PegasusConfig,
    PegasusForConditionalGeneration,
)

from prefixray.artifacts.peft import export_peft
from prefixray.artifacts.store import artifact_meta, load_artifact, restore_method, save_artifact
from prefixray.batching.batches import collate, encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.methods.prefix import Prefix
from prefixray.methods.virtual_prefix import EmbeddingPrefix
from prefixray.model.base import Base, checkpointed, wrap_model
from prefixray.model.binding.binder import Binder
from prefixray.model.uploads import Uploads
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

WORDS = "table-to-text: restaurant"
METHODS: Mapping[str, AnyTrial] = {
    "flat": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    "flat of words": PrefixTrial(preseqlen=None, mid_dim=None, init_token=WORDS),
    "network": PrefixTrial(preseqlen=6, mid_dim=16, init_token=None, prefix_dropout=0.1),
    "network of words": PrefixTrial(preseqlen=6, mid_dim=16, init_token=WORDS),
    "embedding": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, prefix_mode="embedding"),
    "embedding network of words": PrefixTrial(preseqlen=6, mid_dim=16, init_token=WORDS, prefix_mode="embedding"),
    "infix": PrefixTrial(preseqlen=4, mid_dim=16, init_token=None, prefix_dropout=0.1, format_mode="infix"),
    "infix of words": PrefixTrial(preseqlen=4, mid_dim=None, init_token=WORDS, format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=7),
    "adapter of a size": AdapterTrial(percent=2.5),
    "adapters in sub-layers": AdapterTrial(bottleneck=7, design=2),
    "lora": LoraTrial(rank=3),
    "lora with dropout": LoraTrial(rank=3, alpha=5.0, dropout=0.2),
    "finetune": FinetuneTrial(),
    "finetune without words": FinetuneTrial(tune_embeddings=False),
    "finetune top": FinetuneTrial(top_layers=1, tune_embeddings=False),
    "finetune top and words": FinetuneTrial(top_layers=1),
}
ARCHITECTURES = ("gpt2", "llama", "bart", "t5")
DECODER_ONLY = ("gpt2", "llama")
INFIXES = ("infix", "infix of words")  # not for encoder-decoders
CASES = [(one, name) for one in ARCHITECTURES for name in METHODS if one in DECODER_ONLY or name not in INFIXES]
LEAVE_THE_BASE = [case for case in CASES if not isinstance(METHODS[case[1]], PrefixTrial)]
EXPORTED = ("flat", "network", "embedding", "lora")  # how the names of what PEFT can load begin
TASK = TaskConfig(name="e2e")
EXAMPLES = [
    Example("name : The Eagle | food : Chinese", "The Eagle serves Chinese food."),
    Example("name : The Mill", "The Mill is a restaurant."),
    Example("name : Aromi | food : French | area : riverside", "Aromi is by the river."),
]
every_case = pytest.mark.parametrize(("architecture", "name"), CASES, ids=[f"{name}-{one}" for one, name in CASES])


def _build(name: str, base: Base, binder: Binder, *, seed: int = 1) -> Method:
    return build_method(METHODS[name], base, binder.record, init_seed=seed, dropout_seed=seed)


def _ids(base: Base, text: str) -> Tensor:
    ids = base.tokenizer(text, add_special_tokens=False).input_ids
    return torch.tensor([ids], device=base.device)


def _logits(base: Base, binder: Binder, method: Method, ids: Tensor, step: int | None = None) -> Tensor:
    """The model's output (B, S, vocabulary) with the method in it; an infix stands behind the second token."""
    own, insert = method.own_model, method.insert(step)
    model, binder = (base.model, binder) if own is None else (own, Binder.of(own))
    room = ids.new_zeros(ids.shape[0], insert.infix_length)
    ids = torch.cat([ids[:, :2], room, ids[:, 2:]], dim=1)
    with binder.bind([insert], [0] * ids.shape[0], infix_starts=[2] * ids.shape[0]):
        logits: Tensor = model(**_inputs(base, ids), use_cache=False).logits
    return torch.cat([logits[:, :2], logits[:, 2 + insert.infix_length :]], dim=1)


def _inputs(base: Base, ids: Tensor) -> dict[str, Tensor]:
    """What a model is called with to read these tokens; an encoder-decoder on both sides."""
    if base.shape.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}


def _train(base: Base, binder: Binder, method: Method, num_steps: int = 3) -> None:
    """A few plain steps, so that every tensor has moved."""
    ids = _ids(base, " name : The Eagle | food : Chinese")
    trained = [p for p in method.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.05)
    for step in range(num_steps):
        logits = _logits(base, binder, method, ids, step)
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        method.push_gradients()
        optimiser.step()
        optimiser.zero_grad()


def _save(folder: Path, base: Base, name: str, method: Method) -> None:
    config = TrialConfig(arm="tested", learning_rate=1e-3, num_steps=3, method=METHODS[name])
    save_artifact(folder, method.artifact(), artifact_meta(base, config, task=TASK, template={}))


def _pack(base: Base, names: Sequence[str], learning_rate: float) -> Pack:
    """A pack of these methods, on a copy of the base."""
    own = replace(base, model=copy.deepcopy(base.model))
    pack = Pack(own, encode(EXAMPLES, make_template(base, TASK)), pad_id=0)
    for name in names:
        config = TrialConfig(
            arm="tested",
            learning_rate=learning_rate,
            num_steps=9,
            schedule="constant",
            batch_size=len(EXAMPLES),
            method=METHODS[name],
        )
        pack.admit(name, config, Seeds.derive(1, 0))
    return pack


@pytest.mark.parametrize(("architecture", "name"), LEAVE_THE_BASE)
def test_an_untrained_method_leaves_the_base_exactly_as_it_is(
    make_base: MakeBase, architecture: str, name: str
) -> None:
    base = make_base(architecture, torch.float32)
    binder, ids = Binder.of(base.model), _ids(base, " name : The Eagle | food : Chinese")
    with torch.no_grad():
        plain = base.model(**_inputs(base, ids)).logits
        assert torch.equal(_logits(base, binder, _build(name, base, binder), ids), plain)


@every_case
def test_training_moves_the_methods_tensors_and_nothing_of_the_base(
    make_base: MakeBase, architecture: str, name: str
) -> None:
    base = make_base(architecture, torch.float32)
    binder = Binder.of(base.model)
    method = _build(name, base, binder)
    initial = {key: p.detach().clone() for key, p in method.named_parameters()}
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    base_before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    assert sum(initial[key].numel() for key in trained) == method.trained_parameters() > 0
    _train(base, binder, method)
    moved = {key for key, p in method.named_parameters() if not torch.equal(initial[key], p)}
    assert moved == trained
    assert all(torch.equal(base_before[key], tensor) for key, tensor in base.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


@every_case
def test_an_artifact_gives_the_same_logits_and_peft_loads_it_or_the_reason_is_said(
    make_base: MakeBase, tmp_path: Path, architecture: str, name: str
) -> None:
    base = make_base(architecture, torch.float32)
    binder = Binder.of(base.model)
    method = _build(name, base, binder)
    _train(base, binder, method)
    held = sum(tensor.numel() for tensor in method.artifact().values())
    if isinstance(method, EmbeddingPrefix):  # its artifact is what the base makes of what is counted
        held = method.num_positions * base.shape.hidden_size
    assert method.stored_parameters() == held
    _save(tmp_path / "artifact", base, name, method)
    restored = restore_method(base, binder.record, *load_artifact(tmp_path / "artifact"))
    ids = _ids(base, " The Mill is cheap")
    with torch.no_grad():
        ours = _logits(base, binder, method, ids)
        assert torch.equal(_logits(base, binder, restored, ids), ours)
    if not name.startswith(EXPORTED) or (architecture not in DECODER_ONLY and not name.startswith("lora")):
        with pytest.raises(UserError, match=r"(PEFT has no|no PEFT adapter|PEFT's prefix tuning knows no)"):
            export_peft(tmp_path / "artifact", tmp_path / "peft")
        return
    export_peft(tmp_path / "artifact", tmp_path / "peft")
    kind = AutoModelForCausalLM if architecture in DECODER_ONLY else AutoModelForSeq2SeqLM
    model = PeftModel.from_pretrained(kind.from_pretrained(base.name), tmp_path / "peft").eval().to(base.device)
    inputs = {key: value for key, value in _inputs(base, ids).items() if key != "position_ids"}
    with torch.no_grad():
        theirs = model(**{"attention_mask": torch.ones_like(ids), **inputs}).logits
    assert (theirs - ours).abs().max() < 1e-5


@every_case
def test_a_packed_method_trains_as_alone_and_a_step_lowers_its_loss(
    make_base: MakeBase, architecture: str, name: str
) -> None:
    base = make_base(architecture, torch.float64)
    beside = ["network of words", "adapter", "infix" if architecture in DECODER_ONLY else "lora"]
    packed, alone = (_pack(base, names, 1e-4) for names in (dict.fromkeys([*beside, name]), [name]))
    rows, losses = encode(EXAMPLES, make_template(base, TASK)), []
    for _ in range(3):
        losses.append(alone.evaluate([name], rows)[name])
        alone.step([name])
        packed.step(packed.members)
    assert losses[1] < losses[0]
    ours, theirs = (dict(pack.members[name].method.named_parameters()) for pack in (packed, alone))
    assert max(float((ours[key] - theirs[key]).detach().abs().max()) for key in ours) < 1e-10


@every_case
def test_decoding_finds_what_whole_forwards_find(make_base: MakeBase, architecture: str, name: str) -> None:
    base = make_base(architecture, torch.float64)
    pack = _pack(base, [name], 1e-2)
    for _ in range(3):
        pack.step([name])
    method, template = pack.members[name].method, make_template(base, TASK)
    running = replace(pack.base, model=method.own_model or pack.base.model)
    binder, insert = pack.members[name].binder, method.insert(None)
    sources = [example.source for example in EXAMPLES]
    decoding = DecodingSettings(num_beams=1, max_new_tokens=6)
    found = generate(running, template, sources, [insert] * len(sources), decoding)
    for source, hypothesis in zip(sources, found, strict=True):
        rows = encode([Example(source, "")], template)[0].with_room(insert.infix_length, template.pad_id)
        ids, new = rows.ids[: rows.num_prompt], list[int]()
        while len(new) < decoding.max_new_tokens and template.eos_id not in new:
            whole = replace(rows, ids=(*ids, *new, 0))
            inputs = collate([whole], pad_id=template.pad_id, to=Uploads(base.device)).inputs
            with torch.no_grad(), binder.bind([insert], [0], infix_starts=[rows.infix_start]):
                new.append(int(running.model(**inputs, use_cache=False).logits[0, whole.num_inputs - 1].argmax()))
        text = base.tokenizer.decode([token for token in new if token != template.eos_id], skip_special_tokens=True)
        assert hypothesis == (text.strip().splitlines()[0].strip() if text.strip() else "")


@every_case
def test_a_method_depends_on_its_seed_alone(make_base: MakeBase, architecture: str, name: str) -> None:
    base = make_base(architecture, torch.float32)
    binder = Binder.of(base.model)
    one = _build(name, base, binder, seed=1).artifact()
    torch.manual_seed(99)
    again = _build(name, base, binder, seed=1).artifact()
    assert all(torch.equal(one[key], again[key]) for key in one)


def test_a_bottleneck_that_was_worked_out_is_said_in_the_log_and_in_reports(
    tiny_llama: Base, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        method = _build("adapter of a size", tiny_llama, Binder.of(tiny_llama.model))
    share = method.trained_parameters() / tiny_llama.shape.num_parameters
    assert method.sizes()["bottleneck"] == 4 and share == pytest.approx(0.025, abs=0.003)
    assert "adapter: 2.5 percent of" in caplog.text and "bottleneck 4" in caplog.text


def test_nothing_below_the_last_blocks_is_differentiated(tiny_base: Base) -> None:
    trial = FinetuneTrial(top_layers=1, tune_embeddings=False)
    method = build_method(trial, tiny_base, Binder.of(tiny_base.model).record, init_seed=1, dropout_seed=1)
    model = method.own_model
    assert model is not None
    Binder.of(model)
    outputs: list[bool] = []
    for _, block in replace(tiny_base, model=model).blocks():
        block.register_forward_hook(
            lambda module, args, output: outputs.append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    model(**_inputs(tiny_base, _ids(tiny_base, " The Mill")), use_cache=False)
    assert outputs == [False, True]


def test_layers_that_a_base_does_not_have_are_refused(any_base: Base, binder: Binder) -> None:
    with pytest.raises(UserError, match=r"top_layers: 9: .* has [25] blocks"):
        build_method(FinetuneTrial(top_layers=9), any_base, binder.record, init_seed=1, dropout_seed=1)


@pytest.mark.parametrize("name", INFIXES)
def test_an_infix_in_an_encoder_decoder_is_refused(tiny_pair: Base, name: str) -> None:
    with pytest.raises(UserError, match=r"format_mode: infix: .* is an encoder-decoder.*; take cat"):
        _build(name, tiny_pair, Binder.of(tiny_pair.model))


@pytest.fixture
def binder(any_base: Base) -> Binder:
    return Binder.of(any_base.model)


@pytest.mark.parametrize("name", ["network", "lora with dropout"])
def test_dropout_depends_on_the_seed_and_the_step_alone(any_base: Base, binder: Binder, name: str) -> None:
    ids = _ids(any_base, " The Mill")
    method, other_seed = (_build(name, any_base, binder, seed=seed) for seed in (1, 2))
    _train(any_base, binder, method)
    other_seed.load_state_dict(method.state_dict())
    with torch.no_grad():
        first = _logits(any_base, binder, method, ids, step=4)
        torch.manual_seed(99)
        torch.rand(7)
        assert torch.equal(_logits(any_base, binder, method, ids, step=4), first)
        assert not torch.equal(_logits(any_base, binder, method, ids, step=5), first)
        assert not torch.equal(_logits(any_base, binder, other_seed, ids, step=4), first)
        without = _logits(any_base, binder, method, ids)
        assert torch.equal(_logits(any_base, binder, other_seed, ids), without)
        assert not torch.equal(first, without)


def test_dropout_keeps_the_prefix_on_average(tiny_gpt2: Base) -> None:
    config = PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, prefix_dropout=0.25)
    binder = Binder.of(tiny_gpt2.model)
    method = build_method(config, tiny_gpt2, binder.record, init_seed=1, dropout_seed=1)
    whole = method.insert(None).prefixes["decoder"]
    dropped = torch.stack([method.insert(step).prefixes["decoder"] for step in range(400)])
    assert dropped.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (dropped.mean(0) - whole).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["flat of words", "network of words", "embedding network of words"])
def test_a_prefix_of_words_equals_the_model_run_on_the_words_and_the_input(tiny_base: Base, name: str) -> None:
    binder = Binder.of(tiny_base.model)
    method = _build(name, tiny_base, binder)
    assert isinstance(method, Prefix)
    ids = _ids(tiny_base, " name : The Eagle | food : Chinese")
    words = _ids(tiny_base, f" {WORDS}")
    repeated = words.repeat(1, 2)[:, : method.num_positions]
    with torch.no_grad():
        whole = tiny_base.model(input_ids=torch.cat([repeated, ids], dim=1)).logits[:, repeated.shape[1] :]
        assert (_logits(tiny_base, binder, method, ids) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("wrap", [lambda base: base, checkpointed], ids=["kept", "checkpointed"])
def test_embeddings_have_the_gradients_of_the_plain_model_that_reads_them_before_the_row(
    exact_base: Base, wrap: Callable[[Base], Base]
) -> None:
    base, ids = wrap(exact_base), _ids(exact_base, " name : The Eagle")
    stock = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float64).eval().to(base.device)
    binder = Binder.of(base.model)
    method = _build("embedding", base, binder).double()
    assert isinstance(method, EmbeddingPrefix)
    with binder.bind([method.insert(0)], [0]):
        base.model(**_inputs(base, ids), use_cache=False).logits.logsumexp(-1).sum().backward()
    method.push_gradients()
    embeddings = method.embedding.flat.detach().clone().requires_grad_()
    whole = torch.cat([embeddings, stock.get_input_embeddings()(ids[0])])
    stock(inputs_embeds=whole[None]).logits[:, len(embeddings) :].logsumexp(-1).sum().backward()
    ours, plain = method.embedding.flat.grad, embeddings.grad
    assert ours is not None and plain is not None and (ours - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("mode", ["activation", "embedding", "infix"])
def test_a_flat_random_start_is_what_the_base_makes_of_random_tokens(any_base: Base, binder: Binder, mode: str) -> None:
    if mode == "infix" and any_base.shape.is_encoder_decoder:
        return
    form = {"format_mode": mode} if mode == "infix" else {"prefix_mode": mode}
    config = PrefixTrial(preseqlen=7, mid_dim=None, init_token=None, **form)  # type: ignore[arg-type]
    one, again, other = (
        build_method(config, any_base, binder.record, init_seed=seed, dropout_seed=1) for seed in (1, 1, 2)
    )
    assert isinstance(one, Prefix) and isinstance(again, Prefix) and isinstance(other, Prefix)
    assert one.tokens is not None and len(set(one.tokens)) > 1
    assert one.tokens == again.tokens != other.tokens
    recorded, insert = binder.record(torch.tensor([one.tokens], device=any_base.device)), one.insert(None)
    for site, prefix in insert.prefixes.items():
        wanted = torch.zeros_like(prefix) if mode == "infix" else recorded[site]
        assert torch.allclose(prefix, wanted, atol=1e-6)
    if mode == "infix":
        embeddings = any_base.model.get_input_embeddings()(torch.tensor(one.tokens, device=any_base.device))
        assert insert.infix is not None and torch.equal(insert.infix, embeddings)


def test_words_are_repeated_to_preseqlen(any_base: Base, binder: Binder) -> None:
    words = _ids(any_base, f" {WORDS}")
    length = 2 * words.shape[1] + 1
    config = PrefixTrial(preseqlen=length, mid_dim=None, init_token=WORDS)
    method = build_method(config, any_base, binder.record, init_seed=1, dropout_seed=1)
    recorded = binder.record(torch.cat([words, words, words[:, :1]], dim=1))
    prefixes = method.insert(None).prefixes
    assert set(prefixes) == set(recorded) and all(torch.equal(prefixes[site], recorded[site]) for site in recorded)


@pytest.mark.parametrize("preseqlen", [1, 6, 17])
def test_the_solved_network_reproduces_the_words_keys_and_values(
    any_base: Base, binder: Binder, preseqlen: int
) -> None:
    config = PrefixTrial(preseqlen=preseqlen, mid_dim=16, init_token=WORDS)
    method = build_method(config, any_base, binder.record, init_seed=1, dropout_seed=1)
    assert isinstance(method, Prefix) and (residual := method.residual()) is not None
    assert residual < 1e-10  # of the solve itself, in float64
    words = _ids(any_base, f" {WORDS}")
    wanted = binder.record(words.repeat(1, preseqlen)[:, :preseqlen])
    for site, prefix in method.fold().items():
        assert (prefix - wanted[site]).norm() / wanted[site].norm() < 1e-5  # of the network, in float32


def test_what_the_network_cannot_reach_is_said(tiny_gpt2: Base, caplog: pytest.LogCaptureFixture) -> None:
    config = PrefixTrial(preseqlen=12, mid_dim=2, init_token="The Golden Palace serves French food")
    with caplog.at_level("INFO"):
        method = build_method(config, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)
    assert isinstance(method, Prefix) and 0.01 < (method.residual() or 0) < 1
    assert "start: the networks reach all but" in caplog.text


def test_a_network_stores_only_what_it_folds_to(any_base: Base, binder: Binder) -> None:
    method = _build("network", any_base, binder)
    widths = [2 * site.num_layers * site.num_kv_heads * site.head_dim for site in any_base.shape.sites.values()]
    assert method.stored_parameters() == 6 * sum(widths)
    assert method.trained_parameters() == sum(6 * 32 + (32 + 1) * 16 + (16 + 1) * width for width in widths)


@pytest.mark.parametrize("name", ["network", "flat of words"])
def test_a_folded_prefix_gives_the_same_logits_in_peft(tiny_base: Base, name: str) -> None:
    binder = Binder.of(tiny_base.model)
    method = _build(name, tiny_base, binder)
    _train(tiny_base, binder, method)
    tensors = method.artifact()
    ids = _ids(tiny_base, " name : The Eagle | food : Chinese")[:, :16].view(2, 8)
    with torch.no_grad():
        ours = _logits(tiny_base, binder, method, ids)
        assert (_in_peft(tiny_base, tensors, ids) - ours).abs().max() < 1e-5


def test_a_prefix_as_long_as_the_base_is_refused(tiny_gpt2: Base) -> None:
    config = PrefixTrial(preseqlen=256, mid_dim=None, init_token=None)
    with pytest.raises(UserError, match=r"preseqlen: 256: .* has 256 positions"):
        build_method(config, tiny_gpt2, Binder.of(tiny_gpt2.model).record, init_seed=1, dropout_seed=1)


def _in_peft(base: Base, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Logits of PEFT's own prefix tuning with an artifact's keys and values in it."""
    num_positions = tensors["decoder.key"].shape[2]
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_positions, inference_mode=False)
    model = get_peft_model(base.model, config)
    both = torch.stack([tensors["decoder.key"], tensors["decoder.value"]])  # (2, L, K, P, D)
    rows = both.permute(3, 1, 0, 2, 4).reshape(num_positions, -1)  # per position: layers, key and value, heads
    model.prompt_encoder["default"].load_prompt_embeddings(rows.to(base.device))
    model.eval()
    logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def test_fine_tuning_leaves_computed_position_tables_alone() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40, "pad_token_id": 0}
    config = PegasusConfig(max_position_embeddings=32, **sizes, **heads)
    model = PegasusForConditionalGeneration(config)
    natural = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = wrap_model(model, None, name="pegasus", digest="")  # type: ignore[arg-type]
    method = build_method(FinetuneTrial(), base, Binder.of(model).record, init_seed=1, dropout_seed=1)
    trained = {name.removeprefix("model.") for name, p in method.named_parameters() if p.requires_grad}
    assert trained == natural
    assert not any("embed_positions" in name for name in trained)
