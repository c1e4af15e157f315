"""Pretrain a small BART from nothing on the texts of JSONL files: a base for encoder-decoder sweeps without a hub.

    python tests/recipes/pretrain_bart.py --out bases/dialog-bart --minutes 25 \
        dialogsum/train.jsonl.gz scitldr-a/train.jsonl.gz

The objective is BART's (Lewis et al. 2020, section 2.2): the sentences of a document, or the turns of a dialogue, are
permuted, spans of Poisson length 3 that hold 30 % of its tokens become one <mask> each, and the decoder writes the
original. Every field of every row that is long enough is a document of its own, so a dialogue and its summary are never
seen together and the base has not learnt to summarise. Give it training splits only; a few rows are held out of the
training to print the loss on. The budget is wall-clock time, so two runs differ in how far they came. The model code
is transformers' own; the dropout of the configuration (0.1) is for those who fine-tune it: here nothing is seen often
enough to need it, and dropout is off. Matrices are multiplied in bf16 where the processor is faster at it.
"""

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from prefixray.model.base import choose_dtype

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4, as BART's
MAX_TOKENS = 512  # of a document, <s> and </s> included; also the model's positions
MIN_CHARACTERS = 40  # what is shorter is a name or a label
MASKED = 0.3
SPAN = 3.0
IGNORED = -100

# GPT-2's words, but a mark such as #Person1# is one word, the same behind a space and at the start of a line
_WORDS = r"#\w+#|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?(?:(?!#\w+#)[^\s\p{L}\p{N}])+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Document:
    """A text in the pieces that are permuted: the lines of one with several lines, the sentences of any other."""

    pieces: tuple[str, ...]
    joint: str
    length: int
    """In tokens, <s> and </s> included."""

    @property
    def text(self) -> str:
        """The original."""
        return self.joint.join(self.pieces)


@dataclass(frozen=True)
class Batch:
    """Noised sources and the originals as labels, both padded on the right."""

    input_ids: torch.Tensor  # (B, S)
    attention_mask: torch.Tensor  # (B, S)
    labels: torch.Tensor  # (B, T), padding is IGNORED

    @property
    def num_tokens(self) -> int:
        """Target tokens."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Recipe:
    """What may be set of the training."""

    batch_tokens: int
    """Target tokens of a batch, padding included."""
    learning_rate: float
    warmup: float
    """As a share of the budget, as is what follows it: a linear decay to 0."""
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What a training did."""

    steps: int
    tokens: int
    """Target tokens, without padding."""
    dev_loss: float
    """Nats per target token on the held-out rows."""


# Texts


def read_rows(paths: Iterable[Path], fields: Sequence[str] | None = None) -> list[list[str]]:
    """The texts of each row: every string, or list of strings joined by spaces, of at least MIN_CHARACTERS."""
    rows = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                texts = [_text(value) for name, value in row.items() if fields is None or name in fields]
                rows.append([text for text in texts if len(text) >= MIN_CHARACTERS])
    return [row for row in rows if row]


def _text(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return value if isinstance(value, str) else ""


def split_pieces(text: str) -> tuple[tuple[str, ...], str]:
    """The pieces of a text that may be permuted, and what joins them."""
    lines = tuple(line for line in re.split(r"\s*\n\s*", text.strip()) if line)
    if len(lines) > 1:
        return lines, "\n"
    return tuple(re.split(r"(?<=[.!?])\s+", text.strip())), " "


def make_documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Documents of at most MAX_TOKENS: a longer text becomes several, cut between its pieces."""
    whole = [split_pieces(text) for text in texts]
    fits = [length <= MAX_TOKENS for length in _lengths(whole, tokenizer)]
    parts = [part for one, fit in zip(whole, fits, strict=True) for part in ([one] if fit else _cut(*one, tokenizer))]
    return [
        Document(pieces, joint, min(length, MAX_TOKENS))  # a single piece may be too long: it is truncated
        for (pieces, joint), length in zip(parts, _lengths(parts, tokenizer), strict=True)
    ]


def _lengths(parts: Sequence[tuple[tuple[str, ...], str]], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [len(ids) for ids in tokenizer([joint.join(pieces) for pieces, joint in parts], verbose=False).input_ids]


def _cut(
    pieces: tuple[str, ...], joint: str, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Runs of pieces that fit."""
    start, total = 0, 2
    for end, piece in enumerate(pieces):
        length = len(tokenizer(joint + piece, add_special_tokens=False, verbose=False).input_ids)
        if end > start and total + length > MAX_TOKENS:
            yield pieces[start:end], joint
            start, total = end, 2
        total += length
    yield pieces[start:], joint


# Tokenizer and model


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BART's special tokens and BART's `<s> text </s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    bos, pad, eos, unk, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        cls_token=bos,
        pad_token=pad,
        eos_token=eos,
        sep_token=eos,
        unk_token=unk,
        mask_token=AddedToken(mask, lstrip=True, special=True),
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(vocabulary: int, *, width: int, layers: int, heads: int = 4) -> BartForConditionalGeneration:
    """A BART with random weights and without dropout; input, output and both embeddings are tied."""
    config = BartConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=MAX_TOKENS,
        dropout=0.0,
    )
    return BartForConditionalGeneration(config)


# Noise


def permute(document: Document, rng: np.random.Generator) -> str:
    """The text with its pieces in a random order."""
    return document.joint.join(document.pieces[i] for i in rng.permutation(len(document.pieces)))


def infill(ids: Sequence[int], mask_id: int, rng: np.random.Generator) -> list[int]:
    """The tokens with spans of Poisson length, MASKED of them together, as one mask each; an empty span adds a mask."""
    remaining = round(MASKED * len(ids))
    spans = []
    while remaining > 0:
        spans.append(min(int(rng.poisson(SPAN)), remaining))
        remaining -= spans[-1]
    num_kept = len(ids) - sum(spans)
    behind = rng.choice(num_kept + 1, size=min(len(spans), num_kept + 1), replace=False)  # kept tokens before a span
    noised: list[int] = []
    position = 0
    for index, (gap, span) in enumerate(sorted(zip(behind.tolist(), spans, strict=False))):
        num_before = gap - (len(noised) - index)
        noised += [*ids[position : position + num_before], mask_id]
        position += num_before + span
    return noised + list(ids[position:])


def make_batch(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, *, noise: bool = True
) -> Batch:
    """Encode documents as targets, and permuted and infilled as sources."""
    bos, eos, pad, mask = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>", "<mask>"))
    limits = {"add_special_tokens": False, "truncation": True, "max_length": MAX_TOKENS - 2}
    targets = tokenizer([document.text for document in documents], **limits).input_ids
    texts = [permute(document, rng) for document in documents]
    sources = [infill(ids, mask, rng) for ids in tokenizer(texts, **limits).input_ids]
    input_ids = _pad([[bos, *ids, eos] for ids in sources], pad)
    labels = _pad([[bos, *ids, eos] for ids in targets], IGNORED)
    return Batch(input_ids, (input_ids != pad).long(), labels)


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def bucket(documents: Sequence[Document], batch_tokens: int, rng: np.random.Generator) -> list[list[Document]]:
    """One epoch: all documents once, in batches of similar length, in a random order."""
    shuffled = [documents[i] for i in rng.permutation(len(documents))]
    shuffled.sort(key=lambda document: document.length)
    batches: list[list[Document]] = [[]]
    for document in shuffled:
        if batches[-1] and (len(batches[-1]) + 1) * document.length > batch_tokens:
            batches.append([])
        batches[-1].append(document)
    return [batches[i] for i in rng.permutation(len(batches))]


def endless_batches(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[Batch]:
    """Epoch after epoch, each with noise of its own."""
    rng = np.random.default_rng(recipe.seed)
    while True:
        for batch in bucket(documents, recipe.batch_tokens, rng):
            yield make_batch(batch, tokenizer, rng)


# Training


def pretrain(
    model: BartForConditionalGeneration,
    batches: Iterator[Batch],
    dev: Sequence[Batch],
    recipe: Recipe,
    *,
    share_done: Callable[[int], float],
    log: Callable[[str], None] = print,
) -> Outcome:
    """Train until `share_done(steps)` is 1; say the held-out loss once a minute."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    start = reported = time.monotonic()
    steps = tokens = 0
    losses: list[float] = []
    model.train()
    while (share := share_done(steps)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(share / recipe.warmup, (1 - share) / (1 - recipe.warmup))
        batch = next(batches)
        losses.append(_step(model, optimizer, batch))
        steps += 1
        tokens += batch.num_tokens
        if time.monotonic() - reported >= 60:
            reported = time.monotonic()
            minutes, rate = (reported - start) / 60, tokens / (reported - start)
            log(
                f"{minutes:5.1f} min  step {steps}  {tokens / 1e6:.2f}M tokens  {rate:,.0f} tok/s"
                f"  train/loss {np.mean(losses):.3f}  dev/loss {mean_loss(model, dev):.3f}"
            )
            losses.clear()
    return Outcome(steps, tokens, mean_loss(model, dev))


def _step(model: BartForConditionalGeneration, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    loss = summed_loss(model, batch) / batch.num_tokens
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def summed_loss(model: BartForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """The negative log-likelihood of the originals in nats, summed over target tokens."""
    shifted = batch.labels.new_full(batch.labels.shape, model.config.decoder_start_token_id)  # (B, T)
    shifted[:, 1:] = batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == IGNORED, model.config.pad_token_id)
    with torch.autocast("cpu", torch.bfloat16, enabled=choose_dtype("auto", "cpu") is torch.bfloat16):
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=shifted, use_cache=False
        )
    logits = output.logits.float().flatten(0, 1)  # (B * T, V)
    return cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def mean_loss(model: BartForConditionalGeneration, batches: Sequence[Batch]) -> float:
    """Nats per target token."""
    model.eval()
    total = sum(float(summed_loss(model, batch)) for batch in batches)
    model.train()
    return total / sum(batch.num_tokens for batch in batches)


# Entry


def main() -> None:
    """Read, train the tokenizer, pretrain, save."""
    arguments = _parse()
    recipe = Recipe(arguments.batch_tokens, arguments.learning_rate, 0.06, arguments.seed)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng((recipe.seed, 1))
    rows = read_rows(arguments.files, arguments.fields)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    held_out, seen = rows[: arguments.num_dev], rows[arguments.num_dev :]
    texts = sorted({text for row in seen for text in row})
    tokenizer = train_tokenizer(texts, arguments.vocabulary)
    documents = make_documents(texts, tokenizer)
    dev_documents = make_documents([text for row in held_out for text in row], tokenizer)
    dev = [make_batch(batch, tokenizer, rng) for batch in bucket(dev_documents, recipe.batch_tokens, rng)]
    model = make_model(len(tokenizer), width=arguments.width, layers=arguments.layers)
    facts = {
        "objective": f"denoising: pieces permuted, {MASKED:.0%} of tokens in spans of Poisson length {SPAN:g} infilled",
        "texts": len(texts),
        "tokens_in_texts": sum(document.length for document in documents),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
    }
    print(json.dumps(facts), flush=True)
    start = time.monotonic()
    outcome = pretrain(
        model,
        endless_batches(documents, tokenizer, recipe),
        dev,
        recipe,
        share_done=lambda _: (time.monotonic() - start) / (60 * arguments.minutes),
        log=lambda line: print(line, flush=True),
    )
    facts |= {"minutes": arguments.minutes, "steps": outcome.steps, "tokens_seen": outcome.tokens}
    facts |= {"dev_loss_per_token": round(outcome.dev_loss, 4), "seed": recipe.seed}
    save(arguments.out, model, tokenizer, facts)
    print(json.dumps(facts), flush=True)


def save(
    folder: Path, model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, facts: dict[str, object]
) -> None:
    """Write a folder that transformers loads, with what was done in pretrained.json."""
    model.config.dropout = 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretrained.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain a small BART on the texts of JSONL files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL, or JSONL compressed with gzip")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--minutes", required=True, type=float, help="time for the training")
    parser.add_argument("--fields", nargs="+", help="the fields to read; all that are long enough unless given")
    parser.add_argument("--vocabulary", type=int, default=5000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder, and of the decoder")
    parser.add_argument("--batch-tokens", type=int, default=1536)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-dev", type=int, default=80, help="rows held out")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
