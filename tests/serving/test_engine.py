"""The engine's thread: seats, the queue, requests that are taken back, and its end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served import save_all, wait_until

from prefixray.model.base import Base
from prefixray.serving.answer import Answer
from prefixray.serving.batch import End, Request
from prefixray.serving.drawing import Sampling
from prefixray.serving.engine import Engine, Full
from prefixray.serving.models import Limits, load_models

LIMITS = Limits(seats=2, queue=1)


@pytest.fixture
def engine(tiny_gpt2: Base, tmp_path: Path) -> Iterator[Engine]:
    """An engine of two seats and one place in the queue, whose steps take a while."""
    made = Engine(load_models(save_all(tmp_path, tiny_gpt2), device="cpu"), LIMITS)
    head = made.models.base.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    made.start()
    yield made
    made.stop()
    made.join()


class Asked:
    """A request whose answer goes on for so many tokens, and what came."""

    def __init__(self, engine: Engine, max_tokens: int = 200) -> None:
        self.heard: list[tuple[str, End | None]] = []
        model = engine.models.by_name["short"]
        answer = Answer(lambda ids: "a" * len(ids), eos_id=-1, max_tokens=max_tokens)
        prompt = model.prompt(model.of_source("name : The Mill"))
        self.request = Request(model, *prompt, answer, Sampling(), lambda *heard: self.heard.append(heard))
        engine.submit([self.request])

    @property
    def reason(self) -> str | None:
        end = self.heard[-1][1] if self.heard else None
        return None if end is None else end.reason


def test_a_full_engine_refuses_and_a_request_that_is_taken_back_frees_its_seat(engine: Engine) -> None:
    writing = [Asked(engine) for _ in range(2)]
    waiting = Asked(engine, max_tokens=3)
    with pytest.raises(Full, match="the queue is full") as refused:
        Asked(engine)
    assert refused.value.retry_after >= 1
    wait_until(lambda: engine.num_running == 2 and engine.num_waiting == 1)
    assert not waiting.heard
    engine.cancel([writing[0].request])
    wait_until(lambda: waiting.reason == "length")
    assert "".join(text for text, _ in waiting.heard) == "aaa"
    num_heard = len(writing[0].heard)
    engine.cancel([writing[1].request, Asked(engine).request])
    wait_until(lambda: engine.num_running == engine.num_waiting == 0)
    assert len(writing[0].heard) == num_heard and writing[0].reason is None
    assert dict(engine.counts.answers) == {"cancelled": 3, "length": 1}
    assert engine.counts.num_first_tokens >= 3 and engine.counts.first_token_seconds > 0


def test_answers_are_cut_where_the_engine_is_stopped(engine: Engine) -> None:
    asked = [Asked(engine) for _ in range(3)]
    wait_until(lambda: len(asked[0].heard) > 2)
    engine.stop()
    engine.join()
    assert all(each.heard[-1] == ("", None) for each in asked)
    assert engine.failure is None and not engine.is_alive


def test_an_error_in_a_forward_ends_the_engine_and_all_requests(engine: Engine) -> None:
    asked = Asked(engine)
    wait_until(lambda: len(asked.heard) > 2)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    engine.models.base.model.get_output_embeddings().register_forward_pre_hook(fail)
    engine.join()
    assert str(engine.failure) == "out of memory" and not engine.is_alive
    assert asked.heard[-1] == ("", None)


def test_an_error_in_a_prompt_is_told_too(engine: Engine) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    engine.models.base.model.base_model.register_forward_pre_hook(fail)
    asked = Asked(engine)
    engine.join()
    assert str(engine.failure) == "out of memory" and asked.heard == [("", None)]
