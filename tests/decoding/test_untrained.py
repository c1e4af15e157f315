"""The base that sees the document in front of each source: what stock transformers writes, and what the teacher saw."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_bases import MakeBase, stock_model

from prefixray.batching.batches import Batch
from prefixray.batching.rows import Row
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.data import Example, load_task
from prefixray.data.documents.exchanges import TEACHERS, Exchange, write_exchanges
from prefixray.data.task_config import TaskConfig
from prefixray.data.teacher import write_teachers
from prefixray.decoding import forced, in_context, untrained
from prefixray.decoding.evaluate import decode_for_sweep
from prefixray.decoding.generate import generation_config
from prefixray.decoding.in_context import read_context
from prefixray.decoding.likelihoods import read_references
from prefixray.model.base import Base
from prefixray.results.hypotheses import read_hypotheses, read_split_record
from prefixray.results.likelihoods import read_likelihoods
from prefixray.self_study.teacher import predict
from prefixray.training.trainer import Trainer

SENTENCE = "The Eagle is a cheap coffee shop in the riverside area near Burger King. "
QUESTIONS = ("Where is The Eagle?", "Is The Eagle cheap, and what does it serve?", "Who?", "What is it?")
METRICS = ("divergence", "perplexity", "rouge_l")
DECODING = DecodingSettings(num_beams=1, max_new_tokens=12, batch_size=4)
SETTINGS = DECODING.model_dump()


def trainer_of(base: Base, folder: Path, num_sentences: int) -> Trainer:
    """A document of so many sentences whose answers are taught by the base that sees the first of them."""
    (folder / "manual.md").write_text(SENTENCE * num_sentences)
    (folder / "made" / "manual").mkdir(parents=True)
    config = TaskConfig(
        name="document",
        path=str(folder / "manual.md"),
        exchanges=str(folder / "made"),
        separator="\n",
        max_target_tokens=10,
    )
    splits = ("train", "dev", "test", "test")
    exchanges = [
        Exchange(split, "question", 0, 9, question, f"It is near The Mill {index}.")
        for index, (split, question) in enumerate(zip(splits, QUESTIONS, strict=True))
    ]
    write_exchanges(folder / "made" / "manual", exchanges)
    context = read_context(base, make_template(base, config), base.text_ids(SENTENCE))
    examples = [Example(exchange.question, exchange.answer) for exchange in exchanges]
    write_teachers(folder / "made" / "manual" / TEACHERS, predict(base, context, examples))
    return Trainer(base, load_task(config), config, max_new_tokens=12)


def by_transformers(trainer: Trainer, num_seen: int) -> list[str]:
    """The greedy answers of the stock model, the document's first tokens in each prompt."""
    base, template, task = trainer.base, trainer.template, trainer.task
    assert task.document is not None
    stock, answers = stock_model(base), []
    between = base.tokenizer("\n\n", add_special_tokens=False).input_ids
    for sourced in task.test_sources:
        prompt = template.encode_source(sourced.source)[len(template.before) :]
        row = [*template.before, *base.text_ids(task.document.text)[:num_seen], *between, *prompt]
        ids = torch.tensor([row], device=base.device)
        config = generation_config(DECODING, template)
        written = stock.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        text = base.tokenizer.decode(written[0, len(row) :], skip_special_tokens=True)
        answers.append(" ".join(text.strip().split("\n")[0].split()))
    return answers


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_document_in_front_gives_what_stock_transformers_gives_and_what_the_teacher_saw(
    make_base: MakeBase, tmp_path: Path, architecture: str
) -> None:
    base = make_base(architecture, torch.float32)
    trainer = trainer_of(base, tmp_path, 1)
    for arm in ("untuned", "in_context"):
        decode_for_sweep(trainer, arm, tmp_path / arm, "test", SETTINGS, METRICS)
    length = len(base.text_ids(SENTENCE))
    answers = read_hypotheses(tmp_path / "in_context", "test")
    assert [" ".join(answer.split()) for answer in answers] == by_transformers(trainer, length)
    assert any(answers) and answers != read_hypotheses(tmp_path / "untuned", "test")
    scores = {
        arm: {metric: read_likelihoods(tmp_path / arm, "test").scored(metric).corpus() for metric in METRICS[:2]}
        for arm in ("untuned", "in_context")
    }
    assert abs(scores["in_context"]["divergence"]) < 1e-5 < 0.05 < scores["untuned"]["divergence"]
    record, site = read_split_record(tmp_path / "in_context", "test"), base.shape.sites["decoder"]
    around = len(trainer.template.before) + len(base.tokenizer("\n\n", add_special_tokens=False).input_ids)
    numbers = 2 * site.num_layers * site.num_kv_heads * (length + around) * site.head_dim
    assert record["kv"] == {"numbers": numbers, "bytes": 4 * numbers}
    assert record["text"] == {"num_tokens": length, "num_seen": length}
    assert read_split_record(tmp_path / "untuned", "test")["kv"] == {"numbers": 0, "bytes": 0}


def test_a_document_beyond_the_positions_is_cut_at_its_end_and_fewer_sources_run_at_once(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tiny_llama, tmp_path, 20)
    monkeypatch.setattr(in_context, "_MOST_POSITIONS", 300)
    tuned, about = untrained.load_untrained(trainer, "in_context", DECODING)
    assert tuned.decoding.batch_size == 1
    seen, total = about["text"]["num_seen"], about["text"]["num_tokens"]
    assert 150 < seen < 256 < total == len(tiny_llama.text_ids(SENTENCE * 20))
    decode_for_sweep(trainer, "in_context", tmp_path / "out", "test", SETTINGS, METRICS)
    answers = read_hypotheses(tmp_path / "out", "test")
    assert [" ".join(answer.split()) for answer in answers] == by_transformers(trainer, seen)


def test_references_are_read_by_as_few_rows_at_once_as_a_document_leaves_room_for(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sizes = trainer_of(tiny_llama, tmp_path, 4), list[int]()
    collate = forced.collate

    def counted(rows: Sequence[Row], **more: Any) -> Batch:  # noqa: ANN401
        sizes.append(len(rows))
        return collate(rows, **more)

    monkeypatch.setattr(forced, "collate", counted)
    tuned, _ = untrained.load_untrained(trainer, "in_context", DECODING)
    sources, length = trainer.task.test_sources * 3, tuned.insert.num_positions()
    together = read_references(tuned, sources)
    assert sizes == [6]
    monkeypatch.setattr(in_context, "_MOST_POSITIONS", 2 * length + 1)
    assert read_references(tuned, sources).nll == pytest.approx(together.nll, rel=1e-5)
    assert sizes[1:] == [2, 2, 2], "a row more has no room"


def test_what_was_decoded_from_the_same_document_is_not_decoded_again(tiny_llama: Base, tmp_path: Path) -> None:
    trainer, out = trainer_of(tiny_llama, tmp_path, 1), tmp_path / "out"
    decode_for_sweep(trainer, "in_context", out, "test", SETTINGS)
    (out / "test.hyp").write_text("kept\n")
    decode_for_sweep(trainer, "in_context", out, "test", SETTINGS)
    assert (out / "test.hyp").read_text() == "kept\n"
    record = json.loads((out / "test.json").read_text())
    record["made_from"]["artifact"]["text"] = "another's"
    (out / "test.json").write_text(json.dumps(record))
    decode_for_sweep(trainer, "in_context", out, "test", SETTINGS)
    assert (out / "test.hyp").read_text() != "kept\n"
