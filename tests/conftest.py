"""Tiny real models and a tiny real tokenizer for all tests; no network."""

import json
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of clusters that tests start: else Ray would leave a token at home
os.environ.setdefault("PREFIXRAY_CACHE", os.path.join(tempfile.gettempdir(), "prefixray-tests"))

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.tiny_bases import SPECIAL_TOKENS, MakeBase, MakeOn, random_model, train_tokenizer
from support.worker_calls import SECONDS, MakeWorker

from prefixray.cluster import loop as loop_module
from prefixray.cluster.worker import Worker, WorkerSetup
from prefixray.config.trials import TrainConfig
from prefixray.data.task_config import TaskConfig
from prefixray.model.base import Base, load_base, wrap_model

settings.register_profile("default", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tiny bases are loaded: cpu or cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests that start Ray: begun last, one of them would run while the other process has nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_runtest_setup() -> None:
    """Begin every test with one thread: the models are tiny, and two processes run tests side by side."""
    torch.set_num_threads(1)  # a command that an earlier test ran may have set more


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders that `load_base` loads, by architecture: two layers, random weights, outputs far from uniform."""
    folders = {}
    for name, special in SPECIAL_TOKENS.items():
        folders[name] = tmp_path_factory.mktemp("bases") / name
        tokenizer = train_tokenizer(*special)
        random_model(name, tokenizer).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where tiny bases are loaded: that of the option `--device`."""
    return str(pytestconfig.getoption("device"))


@pytest.fixture
def make_base(base_folders: Mapping[str, Path], device: str) -> MakeBase:
    """A function from a key of `SPECIAL_TOKENS` and a dtype to a base of its own, on the device of this run."""

    def make(name: str, dtype: torch.dtype) -> Base:
        folder = base_folders[name]
        loaded = load_base(str(folder), dtype=dtype, device=device)
        return wrap_model(loaded.model, loaded.tokenizer, name=str(folder), digest=loaded.digest)

    return make


@pytest.fixture
def make_on(base_folders: Mapping[str, Path]) -> MakeOn:
    """A function from an architecture, a dtype and a device to a base of its own."""

    def make(architecture: str, dtype: torch.dtype, device: str) -> Base:
        loaded = load_base(str(base_folders[architecture]), dtype=dtype, device=device)
        return wrap_model(loaded.model, loaded.tokenizer, name=loaded.name, digest=loaded.digest)

    return make


@pytest.fixture
def tiny_gpt2(make_base: MakeBase) -> Base:
    """GPT-2's architecture: learned positions, one fused projection; bos and eos are the same token."""
    return make_base("gpt2", torch.float32)


@pytest.fixture
def tiny_llama(make_base: MakeBase) -> Base:
    """Llama's architecture: rotary positions, four query heads on two key/value heads; bos and eos differ."""
    return make_base("llama", torch.float32)


@pytest.fixture
def tiny_bart(make_base: MakeBase) -> Base:
    """BART's architecture: learned positions, biases, an encoder of two layers and a decoder of three."""
    return make_base("bart", torch.float32)


@pytest.fixture(params=["gpt2", "llama"])
def tiny_base(request: pytest.FixtureRequest, make_base: MakeBase) -> Base:
    """Each decoder-only architecture in turn, fp32."""
    return make_base(request.param, torch.float32)


@pytest.fixture(params=["gpt2", "llama"])
def exact_base(request: pytest.FixtureRequest, make_base: MakeBase) -> Base:
    """Each decoder-only architecture in turn, float64."""
    return make_base(request.param, torch.float64)


@pytest.fixture(params=["bart", "t5"])
def tiny_pair(request: pytest.FixtureRequest, make_base: MakeBase) -> Base:
    """Each encoder-decoder architecture in turn, fp32."""
    return make_base(request.param, torch.float32)


@pytest.fixture(params=["bart", "t5"])
def exact_pair(request: pytest.FixtureRequest, make_base: MakeBase) -> Base:
    """Each encoder-decoder architecture in turn, float64."""
    return make_base(request.param, torch.float64)


@pytest.fixture(params=["gpt2", "llama", "bart", "t5"])
def any_base(request: pytest.FixtureRequest, make_base: MakeBase) -> Base:
    """Each architecture in turn, fp32."""
    return make_base(request.param, torch.float32)


@pytest.fixture
def worker_setup(base_folders: Mapping[str, Path], tmp_path: Path) -> WorkerSetup:
    lines = [
        {"source": f"name : {name} | food : tea", "target": f"{name} serves tea."}
        for name in ("The Eagle", "The Mill", "Aromi", "The Vaults")
    ]
    for split, part in (("train", lines), ("dev", lines[:2]), ("test", lines[2:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    task = TaskConfig(name="custom", **files)  # type: ignore[arg-type]
    return WorkerSetup(
        base=str(base_folders["gpt2"]),
        task=task,
        train=TrainConfig(num_steps=1, precision="fp32"),
        device="cpu",
        num_threads=1,
    )


@pytest.fixture
def make_worker(worker_setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """A function to workers of which none gives memory back by itself: their threads outlive their test."""
    monkeypatch.setattr(loop_module, "IDLE_SECONDS", 10 * SECONDS)
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(worker_setup, on_crash=lambda: None))
        return made[-1]

    yield make
    for worker in made:
        worker.suspend()


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker:
    return make_worker()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack waits for verdicts for longer than any test takes."""
    monkeypatch.setattr(loop_module, "VERDICT_SECONDS", 10 * SECONDS)
