"""A base studies a document: different questions in each split, answers, and what it predicts at them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from prefixray.batching.template import Template, make_template
from prefixray.data import Example, load_task
from prefixray.data.documents import Document
from prefixray.data.documents.exchanges import Exchange, read_exchanges
from prefixray.data.task_config import TaskConfig
from prefixray.data.teacher import read_teachers
from prefixray.decoding.in_context import read_context
from prefixray.decoding.streaming import NOBODY, Watched
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.self_study import questions
from prefixray.self_study.study import study
from prefixray.self_study.teacher import TOP_K

TEXT = "The Eagle is a cheap coffee shop in the riverside area. It serves Chinese food to families. " * 2
DOCUMENT = Document("manual", TEXT + "The Mill has a low rating near Burger King.\n")


def task_of(**values: object) -> TaskConfig:
    """A task that the tiny bases' 256 positions have room for."""
    counts = {"train": 8, "dev": 3, "test": 2}
    prompts = ["Ask about {passage} What is", "Ask How is"]
    small = {"chunk_tokens": 40, "num_questions": counts, "prompts": prompts, "max_target_tokens": 12}
    return TaskConfig.model_validate({"name": "document", "path": "manual.md", "separator": "\n", **small, **values})


def studied(base: Base, folder: Path, *, seed: int = 1, document: Document = DOCUMENT, **values: object) -> Path:
    study(base, task_of(**values), document, folder / "manual", made={}, seed=seed)
    return folder / "manual"


def test_no_question_is_in_two_splits_and_the_same_seed_makes_the_same_files(tiny_llama: Base, tmp_path: Path) -> None:
    folder = studied(tiny_llama, tmp_path / "first")
    exchanges = read_exchanges(folder)
    assert [exchange.split for exchange in exchanges] == ["train"] * 8 + ["dev"] * 3 + ["test"] * 2
    assert len({exchange.question.lower() for exchange in exchanges}) == 13
    assert all(exchange.answer and "\n" not in exchange.answer for exchange in exchanges)
    assert len({exchange.start for exchange in exchanges}) > 1, "several chunks are asked about"
    again, other = studied(tiny_llama, tmp_path / "again"), studied(tiny_llama, tmp_path / "other", seed=2)
    assert read_exchanges(again) == exchanges != read_exchanges(other)
    for name in ("exchanges.jsonl", "teacher.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("repeats, sees", [(1, "document"), (5, "chunk")])
def test_the_teachers_predictions_are_those_of_the_text_in_front_of_the_question(
    exact_base: Base, tmp_path: Path, repeats: int, sees: str, caplog: pytest.LogCaptureFixture
) -> None:
    document = Document("manual", DOCUMENT.text * repeats)
    folder = studied(exact_base, tmp_path, document=document)
    exchanges, teachers = read_exchanges(folder), read_teachers(folder / "teacher.safetensors")
    assert json.loads((folder / "study.json").read_text())["teacher_sees"] == sees
    assert ("the teacher sees chunks" in caplog.text) == (sees == "chunk")
    ids = exact_base.text_ids(document.text)
    for number, exchange in enumerate(exchanges):
        seen = ids if sees == "document" else ids[exchange.start : exchange.end]
        log_p = one_row(exact_base, seen, exchange)  # (n, V)
        teacher = teachers[number]
        assert teacher.num_kept == TOP_K and len(teacher) == len(log_p)
        top = log_p.topk(TOP_K, dim=1)
        chosen = log_p.gather(1, torch.from_numpy(teacher.ids).long().to(log_p.device))
        torch.testing.assert_close(chosen.cpu(), top.values.cpu())
        torch.testing.assert_close(chosen.cpu().float(), torch.from_numpy(teacher.log_p))
        tail = torch.log1p(-top.values.exp().sum(dim=1)).cpu().float()
        torch.testing.assert_close(tail, torch.from_numpy(teacher.tail), rtol=1e-4, atol=1e-4)


def one_row(base: Base, seen: list[int], exchange: Exchange) -> torch.Tensor:
    """Log-probabilities at the answer's tokens, (n, V), in one forward over the text, the question and the answer."""
    template = make_template(base, task_of())
    prompt = template.encode_source(exchange.question)[len(template.before) :]
    target = template.encode_targets([exchange.answer])[0]
    between = base.tokenizer("\n\n", add_special_tokens=False).input_ids
    row = [*template.before, *seen, *between, *prompt, *target]
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([row], device=base.device), use_cache=False).logits[0]
    return torch.log_softmax(logits, dim=1)[-len(target) - 1 : -1]


def test_a_request_is_whole_where_questions_are_short(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def generated(
        base: Base, template: Template, sources: Sequence[str], *rest: object, watched: Watched = NOBODY
    ) -> list[str]:
        seen.extend(base.tokenizer.batch_decode(template.encode_sources(sources)))
        return [f"Question {len(seen)} of {number}" for number in range(len(sources))]

    monkeypatch.setattr(questions, "generate", generated)
    studied(tiny_llama, tmp_path, max_source_tokens=8)
    assert sum("Ask about The" in text and text.strip().endswith("What is") for text in seen) > 4
    with pytest.raises(UserError, match=r"^task\.chunk_tokens: 40: a chunk, a question and its answer may take"):
        studied(tiny_llama, tmp_path, max_source_tokens=8, prompts=["Ask what is here " * 30])


def test_a_chunk_that_leaves_no_room_for_a_question_is_refused(tiny_llama: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.chunk_tokens: 250: .* of the 256 positions of .*; lower it"):
        studied(tiny_llama, tmp_path, chunk_tokens=250)
    assert not tmp_path.joinpath("manual").exists()


def test_splits_are_smaller_where_too_few_answers_are_there_and_none_is_refused(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def first(num: int) -> Callable[..., list[str]]:
        left = iter(["yes"] * num)
        return lambda base, questions, *_, **__: [next(left, "") for _ in questions]

    monkeypatch.setattr("prefixray.self_study.study._answer", first(7))
    splits = Counter(exchange.split for exchange in read_exchanges(studied(tiny_llama, tmp_path)))
    assert splits == {"train": 5, "dev": 1, "test": 1}
    assert "7 of 13 questions are different and have an answer" in caplog.text
    monkeypatch.setattr("prefixray.self_study.study._answer", first(2))
    with pytest.raises(
        UserError, match=r"manual: the base wrote 2 questions with an answer, and \d+ without one; at least 3"
    ):
        studied(tiny_llama, tmp_path / "none")


def test_an_encoder_decoder_is_refused(tiny_bart: Base) -> None:
    template = make_template(tiny_bart, TaskConfig(name="document", path="manual.md"))
    with pytest.raises(UserError, match="a document needs a decoder-only base"):
        read_context(tiny_bart, template, [1, 2])


def test_the_task_reads_what_the_study_has_left(
    tiny_llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manual.md").write_text(DOCUMENT.text)
    studied(tiny_llama, tmp_path / "made")
    task = load_task(task_of(exchanges="made"))
    exchanges = read_exchanges(tmp_path / "made" / "manual")
    assert (len(task.train), len(task.dev), len(task.test_sources), task.leaks) == (8, 3, 2, ())
    assert task.train[0] == Example(exchanges[0].question, exchanges[0].answer)
    teacher = task.train[0].teacher
    assert teacher is not None and teacher.num_kept == TOP_K
    Path("own.jsonl").write_text('{"source": "Who is cheap?", "target": "The Eagle"}\n')
    own = load_task(task_of(exchanges="made", test="own.jsonl"))
    assert [(one.source, one.references) for one in own.test_sources] == [("Who is cheap?", ("The Eagle",))]
    with pytest.raises(UserError, match="are not made yet: prefixray sweep makes them before its search"):
        load_task(task_of())
