"""Questions about a document, written by the base with one chunk of the document in its context.

Every pair of a seed prompt and a chunk is asked for equally many questions. A question that was written before is left
out, so no two splits share one; upper and lower case and punctuation make no other question.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from prefixray.batching.template import Template
from prefixray.config.seeds import derive_seed
from prefixray.data.documents.made import MOST_QUESTION_TOKENS
from prefixray.decoding.generate import generate
from prefixray.decoding.in_context import Context
from prefixray.decoding.sampling import SampledSettings
from prefixray.decoding.streaming import Watched
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert
from prefixray.self_study.prompts import PASSAGE, SeedPrompt

OnDone = Callable[[int], None]
"""Called with how many more texts are written."""

_TEMPERATURE = 0.8  # enough that a pair of prompt and chunk gives several questions
PASSAGE_TOKENS = 100
"""Of the passage in a request, mostly; its longest words have more."""
_LEAST_LETTERS = 5
_SHORTEST, _LONGEST = 6, 40  # words of a passage
BATCH_SIZE = 16


@dataclass(frozen=True)
class Chunk:
    """A part of a document in the context of the base."""

    start: int  # its first token in the document
    end: int  # the token behind it
    context: Context
    passages: tuple[str, ...]  # its sentences


@dataclass(frozen=True)
class Question:
    """A question that the base has written with a chunk in its context."""

    kind: str
    chunk: Chunk
    text: str


class Asker:
    """Has the base write questions, each different from all before."""

    def __init__(self, base: Base, chunks: Sequence[Chunk], prompts: Sequence[SeedPrompt], *, seed: int) -> None:
        self._base, self._seed = base, seed
        pairs = [(prompt, chunk) for prompt in prompts for chunk in chunks]
        self._pairs = sorted(pairs, key=lambda pair: _draw(seed, pair[0].request, pair[0].begin, pair[1].start))
        self._known: set[str] = set()
        self.num_asked = 0

    def ask(self, count: int, on_done: OnDone) -> list[Question]:
        """The new ones among `count` further questions, in an order by chance."""
        numbers = range(self.num_asked, self.num_asked + count)
        self.num_asked += count
        requests = [(number, self._pairs[number % len(self._pairs)]) for number in numbers]
        new = []
        for question in _ask(self._base, requests, seed=self._seed, on_done=on_done):
            bare = _bare(question.text)
            if len(bare) >= _LEAST_LETTERS and bare not in self._known:
                self._known.add(bare)
                new.append(question)
        return new


def sampled(
    base: Base,
    template: Template,
    sources: Sequence[str],
    chunks: Sequence[Chunk],
    settings: SampledSettings,
    *,
    seed: int,
    on_done: OnDone,
) -> list[str]:
    """A text for each source, drawn with its chunk in context; the draws depend on the seed alone.

    Each source has a copy of the insert: so batches, and with them the draws, stay those of earlier versions.
    """
    inserts = [Insert(chunk.context.insert.prefixes) for chunk in chunks]
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return generate(base, template, sources, inserts, settings, watched=Watched(on_done))


def _ask(
    base: Base, requests: Sequence[tuple[int, tuple[SeedPrompt, Chunk]]], *, seed: int, on_done: OnDone
) -> list[Question]:
    """The questions by these requests, in their order. Those with the same first words are written together."""
    settings = SampledSettings(
        num_beams=1,
        temperature=_TEMPERATURE,
        max_new_tokens=MOST_QUESTION_TOKENS,
        batch_size=BATCH_SIZE,
        ban_line_breaks=True,
    )
    texts: dict[int, str] = {}
    for begin in dict.fromkeys(prompt.begin for _, (prompt, _) in requests):
        alike = [(number, prompt, chunk) for number, (prompt, chunk) in requests if prompt.begin == begin]
        template = begun(base, of_requests(alike[0][2].context.template), begin)
        drawn = sampled(
            base,
            template,
            [_request(prompt, chunk, number, seed) for number, prompt, chunk in alike],
            [chunk for _, _, chunk in alike],
            settings,
            seed=_draw(seed, begin, alike[0][0]),
            on_done=on_done,
        )
        texts |= {
            number: _question(f"{begin} {text}") for (number, _, _), text in zip(alike, drawn, strict=True) if text
        }
    return [Question(prompt.kind, chunk, texts[number]) for number, (prompt, chunk) in requests if number in texts]


def passages_of(text: str) -> tuple[str, ...]:
    """The sentences of a text that a question can be about; its first words where it has none."""
    parts = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n\s*\n", text))
    fit = tuple(part for part in parts if _SHORTEST <= len(part.split()) <= _LONGEST)
    return fit or (" ".join(text.split()[:_LONGEST]),)


def _request(prompt: SeedPrompt, chunk: Chunk, number: int, seed: int) -> str:
    """The request, about one passage of the chunk."""
    passage = chunk.passages[_draw(seed, "passage", number) % len(chunk.passages)]
    return prompt.request.replace(PASSAGE, passage)


def of_requests(template: Template) -> Template:
    """The template of requests, which are never cut: the task's limit is for questions."""
    return replace(template, max_source_tokens=sys.maxsize)


def begun(base: Base, template: Template, begin: str) -> Template:
    """The template of rows whose targets go on from these first words."""
    if not begin:
        return template
    text = f"{template.target_form[0]}{begin}"
    return replace(template, after=(*template.after, *base.tokenizer(text, add_special_tokens=False).input_ids))


def _question(text: str) -> str:
    """The first question of a text; the whole text where it has no question mark."""
    head, mark, _ = text.strip().partition("?")
    return f"{head}{mark}".strip()


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _draw(seed: int, *parts: object) -> int:
    """A number that looks like chance, and depends on these values alone."""
    return derive_seed(seed, 0, "/".join(map(str, ("questions", *parts))))
