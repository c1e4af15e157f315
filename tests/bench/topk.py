"""The part `topk` of `documents.py`: a teacher's likeliest tokens and their tail, against its whole vocabulary.

Of one page the teacher's whole distribution at each answer token is kept: with one token less than the vocabulary has,
the tail is a token, too. Teachers of k tokens are cut from it. Loss and gradient at the start are those of one prefix
over all exchanges of train; Adam's first mean after one step is the gradient, scaled. Then each teacher trains that
prefix for `--steps` steps, and all are measured on dev against the whole distribution. In the last row the exchanges
come in another order: what differs by less is not told apart.
"""

# n tokens of a target, k tokens of the vocabulary that are kept

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from studied import SEED, config, load, studied
from torch import Tensor

from prefixray.batching.rows import Row
from prefixray.config.trials import TrialConfig
from prefixray.data.documents import Document
from prefixray.data.teacher import Teacher
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

HEAD = (
    f"{'teacher':<22} {'bytes':>7} {'tail %':>7} {'KL at start':>12} {'short %':>8} {'cosine':>8} "
    f"{'dev KL after':>13}  dev KL of the whole teacher's prefix, short %"
)


def show(options: argparse.Namespace) -> None:
    """Print the table."""
    base = load(options, options.precision)
    page = studied(base, options.pages[0], options)
    whole = base.shape.vocab_size - 1
    train, dev = (page.rows(base, split, whole) for split in ("train", "dev"))
    bench = Bench(Pack(base, train, pad_id=page.template.pad_id), page.document, options)
    before = bench.evaluate(bench.admit("start", train, config(options, num_steps=1)), dev)
    print(
        f"{page.document.name}, {len(page.ids)} tokens; a prefix of {options.preseqlen}, {len(train)} exchanges, "
        f"{options.steps} steps of {options.batch_size}, learning rate {options.rate:g}, {base.precision}\n"
        f"dev KL before training {before:.4f}\n{HEAD}"
    )
    loss, gradient = bench.first(train)
    after = bench.evaluate(bench.trained("whole", train), dev)
    for kept in (each for each in options.kept if each < whole):
        own, seen = ([cut(row, kept) for row in rows] for rows in (train, dev))
        tail = float(np.exp(np.concatenate([row.teachers[0].tail for row in own])).mean())
        own_loss, own_gradient = bench.first(own)
        cosine = float(torch.cosine_similarity(own_gradient, gradient, dim=0))
        own_after, seen_after = bench.evaluate(bench.trained(str(kept), own), dev), bench.evaluate("whole", seen)
        print(
            f"{f'{kept} tokens, tail':<22} {8 * kept + 4:7} {100 * tail:7.2f} {own_loss:12.4f} "
            f"{100 * (1 - own_loss / loss):8.2f} {cosine:8.5f} {own_after:13.4f}  {100 * (1 - seen_after / after):.2f}"
        )
    print(f"{'the vocabulary':<22} {4 * (whole + 1):7} {'':7} {loss:12.4f} {'':8} {'':8} {after:13.4f}")
    other = bench.evaluate(bench.trained("another order", train, Seeds.derive(SEED + 1, 0)), dev)
    print(f"{'  in another order':<22} {'':7} {'':7} {'':12} {'':8} {'':8} {other:13.4f}")


class Bench:
    """One pack, whose members take their steps one by one: their teachers keep different numbers of tokens."""

    def __init__(self, pack: Pack, document: Document, options: argparse.Namespace) -> None:
        self._pack, self._document, self._options = pack, document, options

    def admit(self, key: str, rows: Sequence[Row], values: TrialConfig, seeds: Seeds | None = None) -> str:
        """A new prefix, which starts as all do."""
        self._pack.admit(key, values, seeds or Seeds.derive(SEED, 0), rows=rows, document=self._document)
        return key

    def evaluate(self, key: str, rows: Sequence[Row]) -> float:
        """The divergence from these rows' teachers."""
        return self._pack.evaluate([key], rows)[key]

    def first(self, rows: Sequence[Row]) -> tuple[float, Tensor]:
        """The loss over all rows at the start, and a multiple of its gradient."""
        self.admit("first", rows, config(self._options, num_steps=1, batch_size=len(rows)))
        loss = self._pack.step(["first"])["first"].loss
        state = self._pack.members["first"].optimizer.state
        gradient = torch.cat([state[parameter]["exp_avg"].flatten().double() for parameter in state])
        self._pack.drop("first")
        return loss, gradient

    def trained(self, key: str, rows: Sequence[Row], seeds: Seeds | None = None) -> str:
        """A prefix after all its steps."""
        self.admit(key, rows, config(self._options, warmup_steps=self._options.steps // 10), seeds)
        for _ in range(self._options.steps):
            self._pack.step([key])
        return key


def cut(row: Row, kept: int) -> Row:
    """The row with a teacher that has kept fewer tokens: the likeliest, which stand first."""
    (teacher,) = row.teachers
    ids, log_p = teacher.ids[:, :kept], teacher.log_p[:, :kept]
    others = np.column_stack([teacher.log_p[:, kept:], teacher.tail]).astype(np.float64)
    tail = np.logaddexp.reduce(others, axis=1).astype(np.float32)
    return replace(row, teacher=Teacher(ids, log_p, tail))  # (n, k), (n, k), (n,)
