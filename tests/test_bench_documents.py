"""The benchmarks of documents show what they say: numbers of real runs on tiny bases."""

import json
import re
import shlex
from pathlib import Path

import pytest

from prefixray.model.base import Base

BENCH = Path(__file__).parent / "bench"

PAGES = {
    "mill": "The Mill is a cheap pub in the riverside area. It serves Italian food to families near Burger King.",
    "eagle": "The Eagle is a coffee shop with a low rating. It serves Chinese food. Its prices are high. No one sits.",
}
TASK = {"separator": "\n", "chunk_tokens": 40, "max_source_tokens": 24, "max_target_tokens": 12}


def _documents(base: Base, folder: Path, part: str, *options: str) -> None:
    """Run a part of the benchmark of documents on two tiny pages."""
    import documents

    for name, text in PAGES.items():
        (folder / f"{name}.md").write_text(text)
    task = {**TASK, "prompts": ["Ask about {passage} What is", "Ask How is"]}
    small = shlex.split("--preseqlen 4 --batch-size 2 --train 4 --dev 2 --steps 3 --rate 0.3")
    pages = ["--pages", *(str(folder / f"{name}.md") for name in PAGES)]
    documents.main(["--part", part, "--base", base.name, *pages, "--task", json.dumps(task), *small, *options])


@pytest.mark.sweeps
def test_pages_train_in_one_pack_as_one_after_the_other(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    _documents(tiny_llama, tmp_path, "pack", "--precision", "fp32", "--exchanges", str(tmp_path / "exchanges"))
    _, _, alone, packed, apart = capsys.readouterr().out.splitlines()
    assert alone.startswith("one after the other") and packed.startswith("in one pack of 2")
    assert float(alone.split()[-1]) < float(alone.split()[-2]), "three steps have taught something"
    assert all(float(word.strip(",")) < 1e-5 for word in re.findall(r"\S+e-\d+,?", apart)), apart
    assert len(list((tmp_path / "exchanges").iterdir())) == 2


@pytest.mark.sweeps
def test_pefts_cartridge_trains_to_our_losses_where_it_has_our_loss(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    _documents(tiny_llama, tmp_path, "peft", "--packs", "2")
    lines = capsys.readouterr().out.splitlines()
    checked = [re.findall(r"PEFT (\S+), ours (\S+),", line)[0] for line in lines if line.startswith("step ")]
    assert len(checked) == 3 and len(set(checked)) == 3
    assert all(float(one) == pytest.approx(float(other), abs=1e-4) for one, other in checked)
    rows = {line[:22].strip(): line[22:].split() for line in lines if line[:22].strip().endswith(("fp32", "bf16"))}
    arms = ("PEFT's example", "ours, pack of 1", "ours, pack of 2")
    assert list(rows) == [f"{arm} {precision}" for precision in ("fp32", "bf16") for arm in arms]
    theirs, ours = rows["PEFT's example fp32"], rows["ours, pack of 1 fp32"]
    assert theirs[-3] == ours[-3], "the two start from the same prefix"
    assert float(theirs[-1]) < float(theirs[-3]) and float(ours[-1]) < float(ours[-3])


def test_a_teacher_of_more_tokens_is_nearer_to_that_of_the_vocabulary(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    whole = tiny_llama.shape.vocab_size - 1
    _documents(tiny_llama, tmp_path, "topk", "--precision", "fp32", "--kept", "5", "50", str(whole - 1))
    lines = capsys.readouterr().out.splitlines()
    few, some, nearly = (line[22:].split() for line in lines[3:6])
    short, cosine = (lambda row: float(row[3])), (lambda row: float(row[4]))
    assert short(few) > short(some) > 0 and abs(short(nearly)) < 0.01
    assert cosine(few) < cosine(some) < 1 and cosine(nearly) == 1.0
    (_, loss, after), (other,) = (line[22:].split() for line in lines[6:8])
    assert nearly[2] == loss and float(nearly[5]) == pytest.approx(float(after), abs=2e-4)
    assert float(other) == pytest.approx(float(after), rel=0.1)


def test_answers_behind_a_page_and_behind_prefixes_are_timed_on_as_many_tokens(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from prefixray.decoding import in_context

    monkeypatch.setattr(in_context, "_MOST_POSITIONS", 40)
    _documents(tiny_llama, tmp_path, "decode", "--precision", "fp32", "--prefixes", "8", "16")
    about, _, *lines = capsys.readouterr().out.splitlines()
    num_tokens = int(re.findall(r"mill, (\d+) tokens; 4 questions, 1 of them alone, 3 new", about)[0])
    rows = {line[:12].strip(): line[12:].split() for line in lines}
    assert list(rows) == ["untuned", "in_context", "prefix 8", "prefix 16", "LoRA 8"]
    assert [row[4] for row in rows.values()] == ["2", "1", "2", "2", "2"]
    assert num_tokens > 20 and [name for name, row in rows.items() if row[0] != "-"] == ["in_context"]
    assert all(re.fullmatch(r"-?[0-9]+[.][0-9]+", row[at]) for row in rows.values() for at in (2, 3, 5, 6)), "measured"
    none, whole, few, more, lora = (float(row[1]) for row in rows.values())
    assert none == lora == 0 < few < more < whole
    assert rows["in_context"][-1] == "1.00"
