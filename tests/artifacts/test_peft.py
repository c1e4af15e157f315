"""What is exported loads in stock PEFT, with the same logits and the same beams; what cannot be is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prefixray.artifacts.peft import prompt_lines
from prefixray.artifacts.store import artifact_meta, load_artifact, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.export import main
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.model.base import Base, load_base
from prefixray.model.binding.binder import Binder

TASK = TaskConfig(name="e2e")
SOURCES = ["name : The Eagle | food : Chinese", "name : The Mill"]


def _artifact(folder: Path, base: Base, binder: Binder, trial: AnyTrial) -> Method:
    method = build_method(trial, base, binder.record, init_seed=1, dropout_seed=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    config = TrialConfig(arm="tested", learning_rate=1e-3, num_steps=3, method=trial)
    meta = artifact_meta(base, config, task=TASK, template=make_template(base, TASK).record())
    save_artifact(folder, method.artifact(), meta)
    return method


def _export(artifact: Path, out: Path, form: str = "peft") -> int:
    return main([str(artifact), "--format", form, "--out", str(out)])


@pytest.mark.parametrize(
    ("trial", "form"),
    [
        (PrefixTrial(preseqlen=5, mid_dim=8, init_token="restaurant"), "peft"),
        (PrefixTrial(preseqlen=5, mid_dim=8, init_token="restaurant"), "cartridge"),
        (PrefixTrial(preseqlen=3, mid_dim=None, init_token=None), "peft"),
        (LoraTrial(rank=3, alpha=5.0, dropout=0.1), "peft"),
    ],
    ids=["network", "cartridge", "flat", "lora"],
)
def test_a_decoder_only_artifact_gives_the_same_logits_and_beams_in_peft(
    tiny_base: Base, tmp_path: Path, trial: AnyTrial, form: str
) -> None:
    binder = Binder.of(tiny_base.model)
    method = _artifact(tmp_path / "artifact", tiny_base, binder, trial)
    assert _export(tmp_path / "artifact", tmp_path / "peft", form) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base.name), tmp_path / "peft").eval()
    assert (model.peft_config["default"].peft_type == "CARTRIDGE") == (form == "cartridge")
    template, ids = make_template(tiny_base, TASK), torch.tensor([[5, 9, 40, 41, 42], [7, 8, 60, 61, 62]])
    positions = torch.arange(5).expand_as(ids)
    with torch.no_grad(), binder.bind([method.insert(None)], [0, 0]):
        ours = tiny_base.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert (ours - theirs).abs().max() < 1e-5
    decoding = DecodingSettings(num_beams=4, max_new_tokens=8)
    expected = []
    for source in SOURCES:
        prompt = torch.tensor([template.encode_source(source)])
        settings = {
            "num_beams": 4,
            "max_new_tokens": 8,
            "eos_token_id": template.eos_id,
            "pad_token_id": template.pad_id,
        }
        output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
        expected.append(_text(tiny_base, output[0, prompt.shape[1] :]))
    inserts = [method.insert(None)] * len(SOURCES)
    assert generate(tiny_base, template, SOURCES, inserts, decoding) == expected


def _text(base: Base, ids: Tensor) -> str:
    text = base.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return text.splitlines()[0].strip() if text else ""


def test_lora_of_an_encoder_decoder_gives_the_same_logits_in_peft(tiny_pair: Base, tmp_path: Path) -> None:
    binder = Binder.of(tiny_pair.model)
    method = _artifact(tmp_path / "artifact", tiny_pair, binder, LoraTrial(rank=2))
    assert _export(tmp_path / "artifact", tmp_path / "peft") == 0
    model = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(tiny_pair.name), tmp_path / "peft").eval()
    ids = torch.tensor([[5, 9, 40, 41, 42]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :3]}
    with torch.no_grad(), binder.bind([method.insert(None)], [0]):
        assert (tiny_pair.model(**inputs).logits - model(**inputs).logits).abs().max() < 1e-5
    given = list(make_template(tiny_pair, TASK).target_before)
    assert f"]\n# decoder_input_ids: [{given}], which are no new tokens\n" in (tmp_path / "peft/README.md").read_text()


def test_peft_finds_the_base_of_what_was_exported_from_any_folder(
    tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(tiny_gpt2.name).parent)
    relative = replace(tiny_gpt2, name=f"./{Path(tiny_gpt2.name).name}")
    method = _artifact(tmp_path / "artifact", relative, Binder.of(tiny_gpt2.model), LoraTrial(rank=2))
    assert _export(tmp_path / "artifact", tmp_path / "peft") == 0
    printed = capsys.readouterr().out.partition("\n\n")[2]
    assert printed.strip() in (tmp_path / "peft" / "README.md").read_text()
    template, names = make_template(tiny_gpt2, TASK), {"tokenizer": tiny_gpt2.tokenizer, "text": SOURCES[0]}
    assert eval(printed.rpartition("# ")[2], names) == template.encode_source(SOURCES[0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded: dict[str, AutoPeftModelForCausalLM] = {}
    exec(printed, loaded)
    ids = torch.tensor([[5, 9, 40]])
    with torch.no_grad(), Binder.of(tiny_gpt2.model).bind([method.insert(None)], [0]):
        ours = tiny_gpt2.model(input_ids=ids, use_cache=False).logits
        assert (ours - loaded["model"].eval()(input_ids=ids).logits).abs().max() < 1e-5


def test_the_base_is_loaded_in_the_precision_of_training_and_not_in_that_of_its_files(
    tiny_llama: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama.name, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "base")
    base = load_base(str(tmp_path / "base"))
    _artifact(tmp_path / "artifact", base, Binder.of(base.model), LoraTrial(rank=2))
    assert _export(tmp_path / "artifact", tmp_path / "peft") == 0
    loaded: dict[str, AutoPeftModelForCausalLM] = {}
    exec(capsys.readouterr().out.partition("\n\n")[2], loaded)
    assert loaded["model"].dtype == base.model.dtype == torch.float32
    meta = load_artifact(tmp_path / "artifact")[1]
    assert "4 bits" in prompt_lines({**meta, "precision": "4bit"}) and "4 bits" not in prompt_lines(meta)


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (
            PrefixTrial(preseqlen=2, mid_dim=None, init_token=None),
            "a prefix at cross, decoder, encoder of an encoder-decoder",
        ),
        (AdapterTrial(bottleneck=3), "PEFT has no bottleneck adapters"),
    ],
)
def test_what_peft_cannot_express_is_refused_with_the_reason(
    tiny_bart: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], trial: AnyTrial, reason: str
) -> None:
    _artifact(tmp_path / "artifact", tiny_bart, Binder.of(tiny_bart.model), trial)
    assert _export(tmp_path / "artifact", tmp_path / "peft") == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "peft").exists()


def test_a_cartridge_is_a_prefix_and_a_peft_that_knows_none_is_said(
    tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    binder = Binder.of(tiny_gpt2.model)
    _artifact(tmp_path / "lora", tiny_gpt2, binder, LoraTrial(rank=2))
    assert _export(tmp_path / "lora", tmp_path / "out", "cartridge") == 2
    assert "is of method lora; take --format peft" in capsys.readouterr().err
    _artifact(tmp_path / "prefix", tiny_gpt2, binder, PrefixTrial(preseqlen=2, mid_dim=None, init_token=None))
    assert _export(tmp_path / "prefix", tmp_path / "new", "cartridge") == 0
    assert "no CARTRIDGE" not in capsys.readouterr().out
    (tmp_path / "old" / "peft" / "tuners").mkdir(parents=True)
    (tmp_path / "old" / "peft" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "old")
    assert _export(tmp_path / "prefix", tmp_path / "still", "cartridge") == 0
    assert capsys.readouterr().out.endswith(
        "# The PEFT that is installed here has no CARTRIDGE: 0.19 and later have it.\n"
    )


def test_nothing_is_overwritten(tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _artifact(tmp_path / "artifact", tiny_gpt2, Binder.of(tiny_gpt2.model), LoraTrial(rank=2))
    assert _export(tmp_path / "artifact", tmp_path / "artifact") == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
