"""The flagship sweep dry: what it says without the hub, and one packed step and one decoding from local copies."""

import json
from pathlib import Path

import pytest
from support.tiny_bases import SENTENCES
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from prefixray.config.load import load_sweep
from prefixray.config.schema import SweepConfig
from prefixray.decoding.evaluate import decode_for_sweep
from prefixray.errors import UserError
from prefixray.results.hypotheses import read_hypotheses
from prefixray.training.trainer import Trainer, load_trainer
from prefixray.trial import TrialSpec

XSUM = Path(__file__).resolve().parents[1] / "sweeps" / "xsum.yaml"


def _load(config: SweepConfig) -> Trainer:
    decoded = config.final.max_new_tokens
    return load_trainer(config.base, config.task, config.train, device="cpu", num_threads=2, max_new_tokens=decoded)


def test_without_the_hub_the_model_and_the_data_are_named_with_what_to_do() -> None:
    with pytest.raises(UserError) as raised:
        _load(load_sweep(XSUM))
    base, data = raised.value.problems
    assert base.startswith("base: facebook/bart-large: cannot be loaded: ")
    assert "; give a local copy as base: a folder with config.json, the weights as safetensors" in base
    assert "EdinburghNLP/xsum" in data and "task.path" in data and "train.jsonl" in data


def _local_copies(folder: Path, tokenizer_from: Path, config: BartConfig) -> list[str]:
    """Overrides that point the sweep to a model with random weights and to a few documents."""
    AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder / "bart")
    BartForConditionalGeneration(config).save_pretrained(folder / "bart")
    rows = [{"id": str(i), "document": " ".join(SENTENCES[i:] * 4), "summary": SENTENCES[i]} for i in range(5)]
    (folder / "data").mkdir()
    for split in ("train", "dev", "test"):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    counts = ("task.num_dev=2", "task.num_test=2", "train.batch_size=1", "train.precision=fp32")
    return [f"base={folder / 'bart'}", f"task.path={folder / 'data'}", *counts]


def _step_and_decode(config: SweepConfig, folder: Path) -> list[str]:
    """One step of two prefixes in a pack, and the hypotheses of the first."""
    trainer, arm = _load(config), config.arm("prefix")
    for number, preseqlen in enumerate((200, 10)):
        values = {"preseqlen": preseqlen, "mid_dim": 800, "init_token": "summarize", "learning_rate": 5e-5}
        trial = arm.trial(values).model_copy(update={"num_steps": 1, "warmup_steps": 0})
        trainer.admit(TrialSpec(f"prefix/{number}", trial, 1, 0, rungs=(), folder=str(folder / str(number))))
    reports = trainer.run()
    assert [report.state for report in reports] == ["done", "done"]
    assert all(report.metrics["train/grad_norm"] > 0 for report in reports)
    settings = config.final.decoding.model_dump() | {"max_new_tokens": 12}
    decode_for_sweep(trainer, str(folder / "0" / "artifact"), folder / "0", "test", settings)
    meta = json.loads((folder / "0" / "artifact" / "prefix_config.json").read_text())
    assert meta["positions"] == "unshifted" and len(meta["base"]["shape"]["sites"]) == 3
    return read_hypotheses(folder / "0", "test")


def test_from_local_copies_of_a_small_shape_it_takes_a_packed_step_and_decodes(
    tmp_path: Path, base_folders: dict[str, Path]
) -> None:
    small = BartConfig.from_pretrained(base_folders["bart"])
    overrides = _local_copies(tmp_path, base_folders["bart"], small)
    assert len(_step_and_decode(load_sweep(XSUM, overrides), tmp_path)) == 2


@pytest.mark.slow
def test_from_local_copies_of_bart_larges_shape_it_takes_a_packed_step_and_decodes(
    tmp_path: Path, base_folders: dict[str, Path]
) -> None:
    overrides = _local_copies(tmp_path, base_folders["bart"], BartConfig())
    assert len(_step_and_decode(load_sweep(XSUM, overrides), tmp_path)) == 2
