"""What the benchmark runs on: bases by shape and rows by data set.

Weights and ids are random, since speed does not depend on them; lengths are those of the data. E2E's are counted on the
corpus inside the package, at GPT-2's usual 4.3 letters per token; WebNLG and DialogSum may not be shipped, so their
rows have lengths drawn like theirs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from prefixray.batching.rows import Row
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig

EOS = 2
LETTERS_PER_TOKEN = 4.3
NUM_TRAIN, NUM_DEV_SOURCES = 200, 6
Data = tuple[list[Row], list[Row]]  # rows to train on; rows of some dev sources with all their references


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    model: Callable[[], PreTrainedModel]
    data: Callable[[], Data]
    batch_size: int
    preseqlen: int
    packs: tuple[int, ...]  # trials at once


def gpt2(layers: int, width: int, heads: int, vocabulary: int = 50257) -> PreTrainedModel:
    """GPT-2's architecture."""
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        bos_token_id=EOS,
        eos_token_id=EOS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def smollm2() -> PreTrainedModel:
    """SmolLM2-135M's shape."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config)


def bart(layers: int, width: int, heads: int, vocabulary: int) -> PreTrainedModel:
    """BART's architecture."""
    config = BartConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    return BartForConditionalGeneration(config)


@functools.cache
def e2e() -> Data:
    """E2E pairs with the original's template; of the dev split whole sources, 8 to 9 references each."""
    task = load_task(TaskConfig(name="e2e", num_train=NUM_TRAIN, num_test=1))
    sources = [one.source for one in task.dev_sources[:: len(task.dev_sources) // NUM_DEV_SOURCES]][:NUM_DEV_SOURCES]
    dev = [example for example in task.dev if example.source in sources]
    train = [_row(_length(one.source), _length(one.target), key, 0) for key, one in enumerate(task.train)]
    return train, [
        _row(_length(one.source), _length(one.target), sources.index(one.source), place)
        for place, one in enumerate(dev)
    ]


@functools.cache
def webnlg_like() -> Data:
    """1 to 7 triples of about 18 tokens, told in about 10 tokens each; a dev source has two or three references."""
    draw = torch.Generator().manual_seed(1)
    shares = torch.tensor([0.21, 0.19, 0.2, 0.19, 0.15, 0.03, 0.03])

    def one(key: int) -> tuple[int, int]:
        triples = 1 + int(torch.multinomial(shares, 1, generator=draw))
        return 18 * triples + _around(4, draw), max(6, 10 * triples + _around(6, draw))

    train = [_row(*one(key), key, 0) for key in range(NUM_TRAIN)]
    dev = []
    for key in range(2 * NUM_DEV_SOURCES):
        source, target = one(key)
        dev += [_row(source, max(6, target + _around(4, draw)), key, place) for place in range(2 + key % 2)]
    return train, dev


@functools.cache
def dialogsum_like() -> Data:
    """Dialogues of 60 to 400 tokens in the encoder, summaries of about 30."""
    draw = torch.Generator().manual_seed(1)

    def rows(count: int) -> list[Row]:
        return [_pair(60 + abs(_around(130, draw)), max(8, 30 + _around(10, draw)), key) for key in range(count)]

    return rows(NUM_TRAIN), rows(4 * NUM_DEV_SOURCES)


def tiny() -> Data:
    """A few short rows, for trying the benchmark itself."""
    train = [_row(6 + key % 3, 4, key, 0) for key in range(12)]
    return train, [_row(6, 3 + place, key, place) for key in range(2) for place in range(3)]


SMALL = (6, 384, 6)  # layers, width, heads
CASES = {
    case.name: case
    for case in (
        Case("6-layer, E2E, 5", lambda: gpt2(*SMALL), e2e, 10, 5, (1, 4, 16)),
        Case("6-layer, E2E, 200", lambda: gpt2(*SMALL), e2e, 10, 200, (1, 4)),
        Case("6-layer, WebNLG, 5", lambda: gpt2(*SMALL), webnlg_like, 5, 5, (1, 4, 16)),
        Case("GPT-2-small, E2E, 5", lambda: gpt2(12, 768, 12), e2e, 10, 5, (1, 4)),
        Case("GPT-2-small, E2E, 200", lambda: gpt2(12, 768, 12), e2e, 10, 200, (1,)),
        Case("GPT-2-small, WebNLG, 5", lambda: gpt2(12, 768, 12), webnlg_like, 5, 5, (1, 4)),
        Case("SmolLM2-135M, E2E, 5", smollm2, e2e, 10, 5, (1, 4)),
        Case("BART, 3+3 layers, DialogSum, 20", lambda: bart(3, 256, 4, 8000), dialogsum_like, 8, 20, (1, 4)),
    )
}
FOR_GPUS = {
    case.name: case
    for case in (
        Case("gpt2-medium, E2E, 5", lambda: gpt2(24, 1024, 16), e2e, 10, 5, (1, 4, 16)),
        Case("bart-large, DialogSum, 200", lambda: bart(12, 1024, 16, 50265), dialogsum_like, 8, 200, (1, 4)),
    )
}
TRIAL = {"tiny": Case("tiny", lambda: gpt2(2, 32, 2, 320), tiny, 3, 4, (1, 2))}
ALL_CASES = CASES | FOR_GPUS | TRIAL


def make_model(case: Case, precision: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The same random weights in every precision."""
    torch.manual_seed(1)
    model = case.model()
    model.requires_grad_(False)
    return model.to(device, precision).train(False)


def _length(text: str) -> int:
    return round(len(text) / LETTERS_PER_TOKEN) + 2


def _around(spread: float, draw: torch.Generator) -> int:
    return round(float(torch.randn(1, generator=draw)) * spread)


def _ids(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def _row(source: int, target: int, key: int, place: int) -> Row:
    """A pair of these lengths; rows of one key have the same source."""
    prompt = _ids(source, key)
    return Row((*prompt, EOS, *_ids(target, 10_000 + 100 * key + place), EOS), len(prompt) + 1)


def _pair(source: int, target: int, key: int) -> Row:
    """A pair for an encoder-decoder."""
    return Row((EOS, *_ids(target, 10_000 + key), EOS), 1, _ids(source, key))
