"""The lines that an exported cache comes with, run as they are printed, give what the prefix gives in prefixray."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import AnyTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import open_base
from prefixray.export import main
from prefixray.methods import build_method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder

NETWORK = PrefixTrial(preseqlen=5, mid_dim=8, init_token="restaurant")
INFIX = PrefixTrial(preseqlen=3, mid_dim=None, init_token="pub", format_mode="infix")


def _save(folder: Path, base: Base, trial: AnyTrial, num_beams: int = 1, **settings: object) -> None:
    """An artifact of this method, moved from its start."""
    method = build_method(trial, base, Binder.of(base.model).record, init_seed=1, dropout_seed=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    task, config = TaskConfig(name="e2e"), TrialConfig(arm="tested", learning_rate=1e-3, num_steps=3, method=trial)
    decoding = {"num_beams": num_beams, "max_new_tokens": 8, **settings}
    template = make_template(base, task).record()
    save_artifact(
        folder, method.artifact(), artifact_meta(base, config, task=task, template=template, decoding=decoding)
    )


def _printed_by(lines: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines, {})
    text = printed.getvalue().strip()
    return text.splitlines()[0].strip() if text else ""


@pytest.mark.parametrize(
    ("trial", "num_beams"),
    [(NETWORK, 1), (NETWORK, 3), (PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, prefix_mode="embedding"), 3)],
    ids=["greedy", "beams", "embedding"],
)
def test_the_printed_lines_and_those_of_the_readme_generate_what_prefixray_does(
    tiny_base: Base,
    tmp_path: Path,
    trial: PrefixTrial,
    num_beams: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact, out = tmp_path / "artifact", tmp_path / "cache"
    _save(artifact, tiny_base, trial, num_beams)
    assert main([str(artifact), "--format", "cache", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[2]
    saved = load_file(out / "cache.safetensors")
    assert saved["keys"].shape == saved["values"].shape and saved["keys"].shape[1] == 1
    base = open_base(tiny_base.name)
    (expected,) = base.bind(artifact).generate(["..."])
    assert expected and _printed_by(lines) == expected
    monkeypatch.chdir(out)
    readme = Path("README.md").read_text(encoding="utf-8")
    assert _printed_by(readme.partition("```python\n")[2].partition("```")[0]) == expected


@pytest.mark.parametrize("settings", [{}, {"length_penalty": 3.0, "min_new_tokens": 3, "early_stopping": True}])
def test_the_lines_have_the_sweeps_settings_and_none_of_the_bases_own(
    tiny_llama: Base, tmp_path: Path, settings: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, artifact = tmp_path / "base", tmp_path / "artifact"
    shutil.copytree(tiny_llama.name, folder)
    own = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 50.0, "min_new_tokens": 8}
    (folder / "generation_config.json").write_text(json.dumps(own))
    base = open_base(str(folder))
    _save(artifact, base.base, NETWORK, 3, **settings)
    assert main([str(artifact), "--format", "cache", "--out", str(tmp_path / "cache")]) == 0
    (expected,) = base.bind(artifact).generate(["..."])
    lines = capsys.readouterr().out.partition("\n\n")[2]
    assert _printed_by(lines) == expected and "may differ" not in lines


def test_the_lines_say_what_stock_generate_lacks(
    tiny_llama: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path / "artifact", tiny_llama, NETWORK, length_with_prompt=True, ban_line_breaks=True)
    assert main([str(tmp_path / "artifact"), "--format", "cache", "--out", str(tmp_path / "cache")]) == 0
    told = "# Texts may differ from prefixray's: it decodes with length_with_prompt and ban_line_breaks, which stock"
    assert told in capsys.readouterr().out and told in (tmp_path / "cache" / "README.md").read_text()


def test_what_is_no_prefix_in_front_of_rows_is_refused(
    tiny_gpt2: Base, tiny_bart: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (base, trial, told) in enumerate(
        (
            (tiny_gpt2, LoraTrial(rank=2), "is of method lora"),
            (tiny_gpt2, INFIX, "is an infix"),
            (tiny_bart, PrefixTrial(preseqlen=2, mid_dim=None, init_token=None), "its base is an encoder-decoder"),
        )
    ):
        _save(tmp_path / str(number), base, trial)
        assert main([str(tmp_path / str(number)), "--format", "cache", "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
