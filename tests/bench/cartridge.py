"""The part `peft` of `documents.py`: PEFT's own example of a cartridge, on the same data, from the same start.

PEFT's repository trains a `CARTRIDGE` in examples/cartridge_self_study/train_distill.py, with a subclass of
transformers' Trainer. What that does in a step is done here in a plain loop: the teacher, a second copy of the base,
reads the page and the row again; at each token of the row, question and format included, the loss is minus the sum of
p log q over the teacher's 20 likeliest tokens, with no tail; mean over a row's tokens, then over rows. AdamW, a linear
schedule, gradients clipped to the norm 1: the Trainer's defaults. Ours trains on the answers' tokens alone, with the
tail, and the teacher has read everything before.

First the two are compared with one definition of the loss: PEFT's model with ours, written down here once more over
whole logits. Then they are timed, each with its own loss. PEFT trains n configurations one after the other, in n times
the seconds of one. Where this departs from the example: batches of more than one row; rows in our order; the page in
the user's message, where ours has it, in place of a system message; its first tokens without a chat format as the
start; our learning rate; no logging, no checkpoints.
"""

# B rows, S tokens of the longest row, V vocabulary, k likeliest tokens, P positions, L layers, K heads, D head dim

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import CartridgeConfig, get_peft_model
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_text
from studied import SEED, Page, config, load, studied
from torch import Tensor, nn
from torch.nn import functional

from prefixray.batching.batches import pad
from prefixray.batching.rows import Row
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base
from prefixray.self_study.teacher import TOP_K
from prefixray.training.member import Seeds, learning_rate
from prefixray.training.pack import Pack

CHECKED = 3  # steps of the comparison with one loss
TIMED = 2  # steps of packs that are larger than one, behind their first
Loss = Callable[["Logits", Sequence[Row]], Tensor]


@dataclass(frozen=True)
class Logits:
    """Of a batch's rows, the student's and the teacher's, the same token in the same column."""

    student: Tensor  # (B, S, V)
    teacher: Tensor  # (B, S, V)


@dataclass
class Arm:
    """Something that is timed, step by step."""

    name: str
    precision: str
    trials: int = 1
    seconds: list[float] = field(default_factory=list)  # of a step of one trial
    of_teacher: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    dev: tuple[float, float] | None = None  # our divergence, before and after


class Peft:
    """The example's student and teacher, and its optimiser."""

    def __init__(self, page: Page, options: argparse.Namespace, precision: str, loss: Loss) -> None:
        base = load(options, precision)
        self._teacher = load(options, precision).model
        values = {"num_virtual_tokens": options.preseqlen, "num_frozen_tokens": 1}
        self.model: Any = get_peft_model(base.model, CartridgeConfig(task_type="CAUSAL_LM", **values))
        text = page.document.text.strip()
        initialize_kv_prefix_from_text(self.model, base.tokenizer, text=text, use_chat_template=False)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, weight_decay=0.0)
        self._config, self._loss, self._num_steps = config(options), loss, 0
        between = base.tokenizer("\n\n", add_special_tokens=False).input_ids
        self._head, self._page = len(page.template.before), [*page.ids, *between]
        self._pad_id = page.template.pad_id
        self.teacher_seconds = 0.0

    def step(self, rows: Sequence[Row]) -> float:
        """One update; the loss."""
        loss = self._loss(self._logits(rows), rows)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, self._num_steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._num_steps += 1
        return float(loss.detach())

    def _logits(self, rows: Sequence[Row]) -> Logits:
        """The teacher reads the page between the row's first tokens and the others."""
        began = time.process_time()
        with_page = [(*row.ids[: self._head], *self._page, *row.ids[self._head :]) for row in rows]
        with torch.no_grad():
            ids, mask = pad(with_page, self._pad_id)
            teacher = self._teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits
        self.teacher_seconds = time.process_time() - began
        ids, mask = pad([row.ids for row in rows], self._pad_id)
        student = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return Logits(student, teacher[:, len(self._page) :])

    def prefix(self, base: Base) -> dict[str, Tensor]:
        """What was trained, as our artifacts have it: keys and values of (L, K, P, D)."""
        weight, site = self.model.prompt_encoder["default"].weight.detach().float(), base.shape.sites["decoder"]
        parts = weight.view(len(weight), site.num_layers, 2, site.num_kv_heads, site.head_dim).permute(2, 1, 3, 0, 4)
        return {"decoder.key": parts[0].contiguous(), "decoder.value": parts[1].contiguous()}


def their_loss(logits: Logits, rows: Sequence[Row]) -> Tensor:
    """The example's: cross-entropy over the teacher's likeliest tokens, at all tokens of a row but the last."""
    losses = []
    for index, row in enumerate(rows):
        student, teacher = (part[index, : row.num_inputs] for part in (logits.student, logits.teacher))
        ids = teacher.topk(TOP_K, dim=-1).indices
        log_p, log_q = (functional.log_softmax(part, dim=-1).gather(-1, ids) for part in (teacher, student))
        losses.append(-(log_p.exp() * log_q).sum(dim=-1).mean())
    return torch.stack(losses).mean()


def our_loss(logits: Logits, rows: Sequence[Row]) -> Tensor:
    """Ours: the divergence over the likeliest tokens and all others as one, at the answers' tokens."""
    losses = []
    for index, row in enumerate(rows):
        targets = slice(row.num_prompt - 1, row.num_inputs)
        student, teacher = (
            part[index, targets].float().log_softmax(dim=-1) for part in (logits.student, logits.teacher)
        )
        ids = teacher.topk(TOP_K, dim=-1).indices
        log_p, log_q = (_outcomes(part.log_softmax(dim=-1), ids) for part in (teacher, student))
        losses.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.cat(losses).mean()


def _outcomes(log_p: Tensor, ids: Tensor) -> Tensor:
    """The log-likelihoods of these tokens, and of all others together."""
    others = log_p.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_p.gather(-1, ids), others], dim=-1)


class Ours:
    """Packs of prefixes that start alike and see the same rows."""

    def __init__(self, page: Page, options: argparse.Namespace, precision: str) -> None:
        self.base = load(options, precision)
        self._rows, self._dev = (page.rows(self.base, split) for split in ("train", "dev"))
        self._pack = Pack(self.base, self._rows, pad_id=page.template.pad_id)
        self._groups = {size: [f"{size}/{number}" for number in range(size)] for size in options.packs}
        for key in ("rows", "theirs", *(key for keys in self._groups.values() for key in keys)):
            self._pack.admit(key, config(options), Seeds.derive(SEED, 0), document=page.document)

    def batch(self, step: int) -> list[Row]:
        """The rows of a step of any member."""
        return self._pack.members["rows"].next_rows(step)

    def step(self, size: int) -> float:
        """One update of a pack; its first member's loss."""
        keys = self._groups[size]
        return self._pack.step(keys)[keys[0]].loss

    def dev(self, prefix: dict[str, Tensor] | None = None, size: int = 1) -> float:
        """The divergence on dev of what PEFT has trained, or of a pack's first member."""
        if prefix is None:
            return self._pack.evaluate([key := self._groups[size][0]], self._dev)[key]
        method = self._pack.members["theirs"].method
        assert isinstance(method, Prefix)
        method.load_artifact(prefix)
        return self._pack.evaluate(["theirs"], self._dev)["theirs"]


def show(options: argparse.Namespace) -> None:
    """Print the comparison with one loss, then the table."""
    options.packs = sorted({1, *options.packs})
    page = studied(load(options, options.precision), options.pages[0], options)
    print(
        f"{page.document.name}, {len(page.ids)} tokens; prefixes of {options.preseqlen}, the first position frozen, "
        f"batch {options.batch_size}, {options.steps} steps, learning rate {options.rate:g}, one CPU thread\n"
    )
    precisions = ("fp32", "bf16") if options.precision == "auto" else (options.precision,)
    if "fp32" in precisions:
        _check(page, options)
    print(f"{'':<22} {'s/step':>7} {'teacher':>8} {'x PEFT':>7} {'without':>8}  losses: first, middle, last   dev KL")
    for precision in precisions:
        arms = _timed(page, options, precision)
        for arm in arms:
            print(_line(arm, arms[0]), flush=True)


def _check(page: Page, options: argparse.Namespace) -> None:
    """The losses of a few steps in fp32, PEFT's model with our loss and ours."""
    theirs, ours = Peft(page, options, "fp32", our_loss), Ours(page, options, "fp32")
    pairs = [(theirs.step(ours.batch(step)), ours.step(1)) for step in range(min(CHECKED, options.steps))]
    for step, (one, other) in enumerate(pairs, start=1):
        print(f"step {step}, fp32, one loss: PEFT {one:.6f}, ours {other:.6f}, apart by {abs(one - other):.1e}")
    print()


def _timed(page: Page, options: argparse.Namespace, precision: str) -> list[Arm]:
    """All arms in turn, step by step, as far as each goes."""
    theirs, ours = Peft(page, options, precision, their_loss), Ours(page, options, precision)
    peft = Arm("PEFT's example", precision)
    packs = [Arm(f"ours, pack of {size}", precision, size) for size in options.packs]
    starts = [ours.dev(theirs.prefix(ours.base)), ours.dev()]
    for step in range(options.steps):
        rows = ours.batch(step)
        _time(peft, lambda rows=rows: theirs.step(rows))
        peft.of_teacher.append(theirs.teacher_seconds)
        for arm in packs if step < TIMED + 1 else packs[:1]:
            _time(arm, lambda size=arm.trials: ours.step(size))
    peft.dev, packs[0].dev = (starts[0], ours.dev(theirs.prefix(ours.base))), (starts[1], ours.dev())
    return [peft, *packs]


def _time(arm: Arm, step: Callable[[], float]) -> None:
    began = time.process_time()
    arm.losses.append(step())
    arm.seconds.append((time.process_time() - began) / arm.trials)


def _line(arm: Arm, peft: Arm) -> str:
    """A line of the table: the middle of all steps but the first."""
    seconds, whole, of_teacher = (_middle(values) for values in (arm.seconds, peft.seconds, peft.of_teacher))
    teacher = f"{of_teacher:8.2f}" if arm is peft else f"{'-':>8}"
    numbers = f"{seconds:7.2f} {teacher} {whole / seconds:7.2f} {(whole - of_teacher) / seconds:8.2f}"
    losses = " ".join(f"{arm.losses[step]:.4f}" for step in (0, len(arm.losses) // 2, -1))
    dev = "" if arm.dev is None else f"{arm.dev[0]:.4f} -> {arm.dev[1]:.4f}"
    return f"{f'{arm.name} {arm.precision}':<22} {numbers}  {losses:<29}  {dev}"


def _middle(values: Sequence[float]) -> float:
    return float(torch.tensor(list(values)[1:] or list(values)).median())
