"""Rows of different artifacts join and leave a batch at any token, and each gets what it gets alone."""

import random
from pathlib import Path

import pytest
import torch
from support.served import alone, save_all

from prefixray.model.base import Base
from prefixray.results.record import UNTUNED
from prefixray.serving.answer import Answer
from prefixray.serving.batch import Batch, End, Request
from prefixray.serving.drawing import Sampling
from prefixray.serving.models import Models, load_models

SOURCES = [
    "name : The Eagle | food : Chinese",
    "name : The Mill",
    "name : The Vaults | near : Café Rouge | area : riverside | price : cheap | customer rating : 5 out of 5",
]


class Heard:
    """What a listener has heard."""

    def __init__(self) -> None:
        self.text = ""
        self.end: End | None = None

    def __call__(self, piece: str, end: End | None) -> None:
        assert self.end is None, "nothing comes behind the end"
        self.text, self.end = self.text + piece, end


@pytest.fixture
def folders(tiny_base: Base, tmp_path: Path) -> dict[str, Path]:
    return dict(save_all(tmp_path, tiny_base))


@pytest.fixture
def models(folders: dict[str, Path]) -> Models:
    return load_models(folders, device="cpu")


def ask(models: Models, name: str, source: str, max_tokens: int, sampling: Sampling | None = None) -> Request:
    model = models.by_name[name]
    tokenizer = model.template.tokenizer
    answer = Answer(
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        eos_id=model.template.eos_id,
        max_tokens=max_tokens,
    )
    return Request(model, *model.prompt(model.of_source(source)), answer, sampling or Sampling(), Heard())


def heard(request: Request) -> Heard:
    assert isinstance(request.listener, Heard)
    return request.listener


@torch.no_grad()
def test_requests_that_join_and_leave_at_odd_times_get_what_each_gets_alone(
    folders: dict[str, Path], models: Models
) -> None:
    draw = random.Random(1)
    asked = [(name, source, draw.randint(1, 12)) for name in folders for source in SOURCES]
    draw.shuffle(asked)
    requests = [ask(models, *each) for each in asked]
    batch, waiting, most = Batch(models.base, models.pad_id), list(requests), 0
    given_up = draw.sample(requests, 3)
    while waiting or batch.rows:
        newcomers, waiting = waiting[: (count := draw.randint(0, 3))], waiting[count:]
        if newcomers:
            batch.join(newcomers)
        for request in batch.rows:
            if request in given_up and len(request.answer.ids) == 2:
                batch.leave(request)
                break
        most = max(most, len({id(request.model) for request in batch.rows}))
        if batch.rows:
            batch.step()
    assert most >= 4, "different artifacts shared the batch"
    expected = {request: alone(folders, *each) for request, each in zip(requests, asked, strict=True)}
    assert len(set(expected.values())) > len(asked) / 2, "they are told apart"
    for request in requests:
        text, end = heard(request).text, heard(request).end
        if end is None:
            assert request in given_up and expected[request].startswith(text)
        else:
            assert text == expected[request]
            assert request.num_prompt == len(request.model.of_source(asked[requests.index(request)][1]))
            assert end.num_new == len(request.answer.ids)


@torch.no_grad()
def test_the_untuned_base_shares_the_batch(models: Models) -> None:
    batch = Batch(models.base, models.pad_id)
    requests = [ask(models, name, SOURCES[0], 6) for name in ("long", UNTUNED)]
    batch.join(requests)
    while batch.rows:
        batch.step()
    batch.join([lonely := ask(models, UNTUNED, SOURCES[0], 6)])
    while batch.rows:
        batch.step()
    assert heard(lonely).text == heard(requests[1]).text != heard(requests[0]).text


@torch.no_grad()
def test_draws_depend_on_the_seed_and_not_on_the_rows_beside(models: Models) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=7)

    def texts(*beside: str) -> str:
        batch = Batch(models.base, models.pad_id)
        batch.join([*(ask(models, name, SOURCES[2], 10) for name in beside)])
        batch.step()
        batch.join([drawn := ask(models, "short", SOURCES[0], 10, sampling)])
        while batch.rows:
            batch.step()
        return heard(drawn).text

    first = texts("lora")
    assert texts("adapter", "infix", "short") == first
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=8)
    assert texts("lora") != first
