"""Tiny real models and a tiny real tokenizer for all tests; no network."""

import json
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("PREFIXRAY_CACHE", os.path.join(tempfile.gettempdir(), "prefixray-tests"))

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from calls import SECONDS, MakeWorker
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from prefixray import worker as worker_module
from prefixray.base import Base, load_base, wrap_model
from prefixray.config import TaskConfig, TrainConfig
from prefixray.worker import Worker, WorkerSetup

torch.set_num_threads(1)  # the models are tiny, and tests run side by side
settings.register_profile("default", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("default")

MakeBase = Callable[[str, torch.dtype], Base]

SENTENCES = (
    "The Eagle is a cheap coffee shop in the riverside area near Burger King.",
    "name : The Eagle | Type : coffee shop | food : Chinese | price : cheap | area : riverside | near : Burger King",
    "Near Café Rouge there is a family friendly pub called The Golden Palace , which serves French food.",
    "name : The Golden Palace | Type : pub | food : French | customer rating : 5 out of 5 | family friendly : yes",
    "A high priced restaurant with an average customer rating, The Mill offers Italian food in the city centre.",
    "name : The Mill | Type : restaurant | food : Italian | price : high | customer rating : average",
    "The Vaults is not family friendly and has a low rating ; its prices are less than £ 20.",
)
_SPECIAL = {  # beginning and end of a sequence, by architecture
    "gpt2": ("<|endoftext|>", "<|endoftext|>"),
    "llama": ("<|im_start|>", "<|im_end|>"),
    "bart": ("<s>", "</s>"),
    "t5": (None, "</s>"),
}
_VOCABULARY = 320  # 256 bytes, special tokens, and a few words


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders that `load_base` loads, by architecture: two layers, random weights, outputs far from uniform."""
    folders = {}
    for name, special in _SPECIAL.items():
        folders[name] = tmp_path_factory.mktemp("bases") / name
        tokenizer = _train_tokenizer(*special)
        _random_model(name, tokenizer).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def make_base(base_folders: Mapping[str, Path]) -> MakeBase:
    """A function from "gpt2", "llama", "bart" or "t5" and a dtype to a base of its own."""

    def make(name: str, dtype: torch.dtype) -> Base:
        folder = base_folders[name]
        loaded = load_base(str(folder), dtype=dtype)
        return wrap_model(loaded.model, loaded.tokenizer, name=str(folder), digest=loaded.digest)

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


def stock_model(base: Base) -> PreTrainedModel:
    """A decoder-only base as transformers loads it, frozen and in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=base.model.dtype)
    assert isinstance(model, PreTrainedModel)
    model.requires_grad_(False)
    model.train(False)
    return model


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
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 10 * SECONDS)
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
    monkeypatch.setattr(worker_module, "VERDICT_SECONDS", 10 * SECONDS)


def _train_tokenizer(bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the sentences; an encoder-decoder's puts special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (bos, "<pad>" if eos == "</s>" else None, eos) if token is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if "<pad>" not in special:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    around = [token for token in (bos, "$A", eos) if token is not None]
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<pad>")


def _random_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(1)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.3, **tokens}
    pad = tokenizer.pad_token_id
    match name:
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=32, n_layer=2, n_head=4, **sizes))
        case "llama":
            layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": True}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
            return LlamaForCausalLM(LlamaConfig(**layers, **heads, **sizes))
        case "bart":
            layers = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 256}
            heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
            wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3}
            end = {"pad_token_id": pad, "decoder_start_token_id": tokenizer.eos_token_id}
            return BartForConditionalGeneration(BartConfig(**layers, **heads, **wide, **end, **sizes))
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    del sizes["bos_token_id"], sizes["initializer_range"]
    start = {"pad_token_id": pad, "decoder_start_token_id": pad, "initializer_factor": 1.0}
    return T5ForConditionalGeneration(T5Config(**shape, **start, **sizes))
