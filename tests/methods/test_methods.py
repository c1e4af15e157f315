"""What every method promises, on every architecture."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.built_methods import INFIXES, METHODS, build, ids_of, inputs_of, logits_of, train
from support.packs import MakeBase
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prefixray.artifacts.peft import export_peft
from prefixray.artifacts.store import artifact_meta, load_artifact, restore_method, save_artifact
from prefixray.batching.batches import collate, encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.methods.virtual_prefix import EmbeddingPrefix
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.uploads import Uploads
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

ARCHITECTURES = ("gpt2", "llama", "bart", "t5")
DECODER_ONLY = ("gpt2", "llama")
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


def _save(folder: Path, base: Base, name: str, method: Method) -> None:
    config = TrialConfig(arm="tested", learning_rate=1e-3, num_steps=3, method=METHODS[name])
    save_artifact(
        folder, method.artifact(), artifact_meta(base, config, task=TASK, template=make_template(base, TASK).record())
    )


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
    binder, ids = Binder.of(base.model), ids_of(base, " name : The Eagle | food : Chinese")
    with torch.no_grad():
        plain = base.model(**inputs_of(base, ids)).logits
        assert torch.equal(logits_of(base, binder, build(name, base, binder), ids), plain)


@every_case
def test_training_moves_the_methods_tensors_and_nothing_of_the_base(
    make_base: MakeBase, architecture: str, name: str
) -> None:
    base = make_base(architecture, torch.float32)
    binder = Binder.of(base.model)
    method = build(name, base, binder)
    initial = {key: p.detach().clone() for key, p in method.named_parameters()}
    trained = {key for key, p in method.named_parameters() if p.requires_grad}
    base_before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    assert sum(initial[key].numel() for key in trained) == method.trained_parameters() > 0
    train(base, binder, method)
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
    method = build(name, base, binder)
    train(base, binder, method)
    held = sum(tensor.numel() for tensor in method.artifact().values())
    if isinstance(method, EmbeddingPrefix):  # its artifact is what the base makes of what is counted
        held = method.num_positions * base.shape.hidden_size
    assert method.stored_parameters() == held
    _save(tmp_path / "artifact", base, name, method)
    restored = restore_method(base, binder.record, *load_artifact(tmp_path / "artifact"))
    ids = ids_of(base, " The Mill is cheap")
    with torch.no_grad():
        ours = logits_of(base, binder, method, ids)
        assert torch.equal(logits_of(base, binder, restored, ids), ours)
    if not name.startswith(EXPORTED) or (architecture not in DECODER_ONLY and not name.startswith("lora")):
        with pytest.raises(UserError, match=r"(PEFT has no|no PEFT adapter|PEFT's prefix tuning knows no)"):
            export_peft(tmp_path / "artifact", tmp_path / "peft")
        return
    export_peft(tmp_path / "artifact", tmp_path / "peft")
    kind = AutoModelForCausalLM if architecture in DECODER_ONLY else AutoModelForSeq2SeqLM
    model = PeftModel.from_pretrained(kind.from_pretrained(base.name), tmp_path / "peft").eval().to(base.device)
    inputs = {key: value for key, value in inputs_of(base, ids).items() if key != "position_ids"}
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
    one = build(name, base, binder, seed=1).artifact()
    torch.manual_seed(99)
    again = build(name, base, binder, seed=1).artifact()
    assert all(torch.equal(one[key], again[key]) for key in one)


def test_a_bottleneck_that_was_worked_out_is_said_in_the_log_and_in_reports(
    tiny_llama: Base, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        method = build("adapter of a size", tiny_llama, Binder.of(tiny_llama.model))
    share = method.trained_parameters() / tiny_llama.shape.num_parameters
    assert method.sizes()["bottleneck"] == 4 and share == pytest.approx(0.025, abs=0.003)
    assert "adapter: 2.5 percent of" in caplog.text and "bottleneck 4" in caplog.text


@pytest.mark.parametrize("name", ["network", "lora with dropout"])
def test_dropout_depends_on_the_seed_and_the_step_alone(any_base: Base, binder: Binder, name: str) -> None:
    ids = ids_of(any_base, " The Mill")
    method, other_seed = (build(name, any_base, binder, seed=seed) for seed in (1, 2))
    train(any_base, binder, method)
    other_seed.load_state_dict(method.state_dict())
    with torch.no_grad():
        first = logits_of(any_base, binder, method, ids, step=4)
        torch.manual_seed(99)
        torch.rand(7)
        assert torch.equal(logits_of(any_base, binder, method, ids, step=4), first)
        assert not torch.equal(logits_of(any_base, binder, method, ids, step=5), first)
        assert not torch.equal(logits_of(any_base, binder, other_seed, ids, step=4), first)
        without = logits_of(any_base, binder, method, ids)
        assert torch.equal(logits_of(any_base, binder, other_seed, ids), without)
        assert not torch.equal(first, without)
