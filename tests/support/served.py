"""Artifacts of several methods that are served on a tiny base, and a server of them on a real socket."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from prefixray.config.trials import LoraTrial
from prefixray.decoding.tuned_model import Tuned
from prefixray.model.base import Base
from prefixray.serving.engine import Engine
from prefixray.serving.http.server import Server, bind_socket
from prefixray.serving.models import Limits, load_models
from support.tuned_artifacts import DECODER_ONLY, METHODS, save_tuned

RULES: Mapping[str, Mapping[str, int]] = {
    "long": {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "ban_line_breaks": True}
}
"""Settings of single artifacts."""


def save_all(folder: Path, base: Base) -> Mapping[str, Path]:
    """Artifacts of all methods that can share a batch, two of them LoRAs of different ranks."""
    trials = {**METHODS, **DECODER_ONLY, "lora4": LoraTrial(rank=4)}
    del trials["finetune"]
    for seed, (name, trial) in enumerate(trials.items()):
        save_tuned(folder / name, base, trial, seed=seed, decoding=RULES.get(name, {"max_new_tokens": 12}))
    return {name: folder / name for name in trials}


def alone(folders: Mapping[str, Path], name: str, source: str, max_tokens: int | None = None) -> str:
    """What `Tuned.generate` writes for one source by one artifact, by its likeliest tokens, on a base of its own."""
    tuned = Tuned.load(folders[name], device="cpu", decoding={"num_beams": 1})
    return tuned.generate([source], max_new_tokens=max_tokens)[0]


@contextmanager
def running_server(
    folders: Mapping[str, Path],
    limits: Limits | None = None,
    *,
    token: str | None = None,
    seconds_per_step: float = 0.0,
) -> Iterator[tuple[str, Engine]]:
    """A server in a thread: its address, and its engine, each of whose steps takes this long at least."""
    engine = Engine(load_models(folders, device="cpu"), limits or Limits())
    head = engine.models.base.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: time.sleep(seconds_per_step))
    server = Server(engine, token=token)
    with bind_socket("127.0.0.1", 0) as bound:
        thread = Thread(target=server.run_on, args=(bound,))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", engine
        finally:
            server.handle_exit(2, None)
            thread.join()


def wait_until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that another thread does."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)
