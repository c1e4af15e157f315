"""Many trials, one frozen base, one forward.

In a step every member contributes its next rows; rows of all members form one batch, cut into micro-batches of like
length under a token budget. The loss is the sum of the members' losses, so gradients of different trials never mix;
each member clips and steps its own optimiser. The base is frozen and in eval mode, so a member's numbers are those of a
pack of one: that equality is this file's contract.
"""

# T members, B rows, S tokens, N target tokens, V vocabulary

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prefixray.batching.batches import collate, collate_line
from prefixray.batching.lengths import cut_by_length, cut_evenly
from prefixray.batching.order import Order
from prefixray.batching.rows import Row, Tree
from prefixray.batching.shared_prompts import trees
from prefixray.config.trials import TrialConfig
from prefixray.model.attention import Binder, Insert
from prefixray.model.backend import backend_for, padded_count
from prefixray.model.base import Base
from prefixray.model.ragged import GROUP_MULTIPLE, Ragged
from prefixray.training.base_checks import check_continued, knows_lines
from prefixray.training.loss import Objective, losses_of_hidden, losses_of_logits, plain_head
from prefixray.training.member import Member, Seeds
from prefixray.training.prefill import RowGroup, row_groups

logger = logging.getLogger(__name__)

TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536}  # tokens per micro-batch, padding included, to start from
PIECE_COST = {"cpu": 192, "cuda": 8192}  # tokens that could be run in the time one more micro-batch takes by itself
GROUP_COST = {"cpu": 64, "cuda": 8192}  # tokens that could attend in the time one more group of a line takes by itself
LONGEST_TREE = 512  # tokens of rows that share a prompt: attention in a longer one costs more than the prompt again


@dataclass(frozen=True)
class StepResult:
    """What one step did to one member."""

    loss: float  # mean over the step's target tokens
    grad_norm: float  # before clipping
    num_tokens: int  # target tokens trained on
    failed: str | None = None  # why the trial ends here, before its update


class Pack:
    """The members that share one base, and the rows they train and are evaluated on."""

    def __init__(self, base: Base, train: Sequence[Row], *, pad_id: int, token_budget: int | None = None) -> None:
        self.base, self.binder = base, Binder(base.model)
        self._head = plain_head(base.model)
        check_continued(base, self.binder)
        self._knows_lines = knows_lines(base, self.binder)
        if not (self._knows_lines or base.shape.is_encoder_decoder):
            logger.info("rows of this base run side by side, not one behind another")
        self.members: dict[str, Member] = {}
        self.token_budget = self._first_budget = token_budget or TOKEN_BUDGET[base.device.type]
        self._train, self._pad_id = train, pad_id
        self._rows: dict[str, Sequence[Row]] = {}  # what each member trains on
        self._orders: dict[int, Order] = {}

    def admit(self, key: str, config: TrialConfig, seeds: Seeds, *, train: Sequence[Row] | None = None) -> Member:
        """Make a trial's tensors and let it join the next step; `train`: rows of its own in place of the pack's."""
        assert key not in self.members, f"{key} is a member already"
        member = self.members[key] = Member(key, config, self.base, self.binder, seeds)
        self._rows[key] = self._train if train is None else train
        return member

    def drop(self, key: str) -> None:
        """Let a trial go; the others do not notice."""
        del self.members[key], self._rows[key]

    def step(self, keys: Iterable[str]) -> dict[str, StepResult]:
        """One update of each of these members. A member whose numbers are not finite is not updated.

        Members that do not fit together take turns; one that does not fit alone is not updated either.
        """
        members = [self.members[key] for key in keys]
        rows = [self._next_rows(member) for member in members]
        sums = self._within_memory(members, rows, train=True)
        if sums is None and len(members) > 1:
            return {key: outcome for half in _halves(members) for key, outcome in self.step(half).items()}
        if sums is None:
            self.token_budget = self._first_budget  # it goes, and the others may not need such small pieces
            return {members[0].key: StepResult(math.nan, math.nan, 0, failed=_too_large(members[0].config))}
        outcomes = {}
        for member, own, total in zip(members, rows, sums, strict=True):
            count = sum(row.num_targets for row in own)
            loss, failed, norm = total / count, None, math.nan
            if math.isfinite(loss):
                norm = member.update()
            if not math.isfinite(norm):
                failed = f"{'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {member.step + 1}"
                member.optimizer.zero_grad(set_to_none=True)
            outcomes[member.key] = StepResult(loss, norm, count, failed)
        return outcomes

    def evaluate(self, keys: Iterable[str], rows: Sequence[Row]) -> dict[str, float]:
        """Each member's negative log-likelihood per target token over all `rows`, in nats; no dropout, no smoothing.

        NaN where a member does not fit into memory.
        """
        members = [self.members[key] for key in keys]
        with torch.no_grad():
            sums = self._within_memory(members, [rows] * len(members), train=False)
        if sums is None and len(members) > 1:
            return {key: score for half in _halves(members) for key, score in self.evaluate(half, rows).items()}
        if sums is None:
            self.token_budget = self._first_budget
            logger.warning("%s: %s", members[0].key, _too_large(members[0].config))
            return {members[0].key: math.nan}
        count = sum(row.num_targets for row in rows)
        return {member.key: total / count for member, total in zip(members, sums, strict=True)}

    def _next_rows(self, member: Member) -> list[Row]:
        rows = self._rows[member.key]
        if member.order_seed not in self._orders:
            self._orders[member.order_seed] = Order(len(rows), member.order_seed)
        order = self._orders[member.order_seed]
        return [rows[i] for i in order.at(member.step * member.rows_per_step, member.rows_per_step)]

    def _within_memory(
        self, members: list[Member], rows: Sequence[Sequence[Row]], *, train: bool
    ) -> list[float] | None:
        """Summed NLL of each member's rows, and in training its gradients; less at once when memory runs out.

        None where a row at a time is too much.
        """
        while True:
            for member in members if train else ():
                member.optimizer.zero_grad(set_to_none=True)
            try:
                return self._sums(members, rows, train=train)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            # Out here, since the handled error keeps the step's tensors alive.
            torch.cuda.empty_cache()
            if self.token_budget <= max(sum(row.lengths) for own in rows for row in own):
                return None
            self.token_budget //= 2
            logger.warning("out of memory: micro-batches of %d tokens from here on", self.token_budget)

    def _sums(self, members: list[Member], rows: Sequence[Sequence[Row]], *, train: bool) -> list[float]:
        """Members of the base together, then each that has a model of its own."""
        sharing = [i for i, member in enumerate(members) if member.method.own_model is None]
        alone = [[i] for i, member in enumerate(members) if member.method.own_model is not None]
        totals = [0.0] * len(members)
        for group in ([sharing] if sharing else []) + alone:
            sums = self._group_sums([members[i] for i in group], [rows[i] for i in group], train=train)
            for index, total in zip(group, sums, strict=True):
                totals[index] = total
        return totals

    def _group_sums(self, members: list[Member], rows: Sequence[Sequence[Row]], *, train: bool) -> list[float]:
        """Members of one model: one forward, and in training one backward, per micro-batch."""
        inserts = [member.method.insert(member.step if train else None) for member in members]
        weights = [_objective_weight(member.config, own) for member, own in zip(members, rows, strict=True)]
        totals = [0.0] * len(members)
        has_hooks = any(insert.functions for insert in inserts)
        with self._running(members[0], train=train, has_hooks=has_hooks):
            for group in self._row_groups(members[0].binder, inserts, rows, train=train):
                for piece in self._pieces(group):
                    picked = sorted((group.rows[i] for i in piece), key=lambda pair: pair[0])
                    nll = self._forward(members, group.inserts, picked, weights if train else None)
                    for (place, _), value in zip(picked, nll.tolist(), strict=True):
                        totals[group.slots[place]] += value
        return totals

    @contextmanager
    def _running(self, member: Member, *, train: bool, has_hooks: bool) -> Iterator[None]:
        """The base runs as it is, a model of a trial's own under autocast and, in training, with seeded dropout."""
        own = member.method.own_model
        if own is None:
            backend, model = backend_for(self.base.device), self.base.model
            with backend.training(model) if train else backend.evaluation(model, has_hooks=has_hooks):
                yield
            return
        device = self.base.device.type
        mixed = self.base.model.dtype == torch.bfloat16
        own.train(train)
        with torch.random.fork_rng(), torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            torch.manual_seed((member.method.dropout_seed + member.step) % (1 << 63))
            yield
        own.train(False)

    def _row_groups(
        self, binder: Binder, inserts: Sequence[Insert], rows: Sequence[Sequence[Row]], *, train: bool
    ) -> Iterator[RowGroup]:
        """What is run: what rows of a line share but once, else in training all rows whole."""
        if self._runs_in_line(inserts):
            shared = (trees(own, LONGEST_TREE, self.token_budget) for own in rows)
            pairs = [(slot, row) for slot, own in enumerate(shared) for row in own]
            return iter([RowGroup(inserts, range(len(inserts)), pairs)])
        if not train:
            sizes = {"pad_id": self._pad_id, "token_budget": self.token_budget}
            return row_groups(binder, inserts, rows, **sizes, device=self.base.device)
        lengths = [insert.infix_length for insert in inserts]
        whole = [(slot, row.with_room(lengths[slot], self._pad_id)) for slot, own in enumerate(rows) for row in own]
        return iter([RowGroup(inserts, range(len(inserts)), whole)])

    def _pieces(self, group: RowGroup) -> list[list[int]]:
        """Micro-batches, by their rows' indices."""
        lengths = [row.lengths for _, row in group.rows]
        if self._runs_in_line(group.inserts):
            return cut_evenly([own for _, own in lengths], self.token_budget)
        return cut_by_length(lengths, self.token_budget, PIECE_COST[self.base.device.type])

    def _runs_in_line(self, inserts: Sequence[Insert]) -> bool:
        return self._knows_lines and all(not insert.functions and insert.infix is None for insert in inserts)

    def _line(self, inserts: Sequence[Insert], rows: Sequence[tuple[int, Row | Tree]]) -> Ragged:
        lengths = [(0, padded_count(row.num_inputs, GROUP_MULTIPLE)) for _, row in rows]
        padding = min(GROUP_COST[self.base.device.type], self.token_budget // 8)
        apart = [self.binder.has_long_prefix(insert) for insert in inserts]
        sharing: dict[int, list[int]] = {}  # rows of a trial that attends apart, or of all others
        for index, (slot, _) in enumerate(rows):
            sharing.setdefault(slot if apart[slot] else -1, []).append(index)
        groups = [
            [indices[place] for place in group]
            for indices in sharing.values()
            for group in cut_by_length([lengths[index] for index in indices], sys.maxsize, padding)
        ]
        starts = [row.starts for _, row in rows]
        return Ragged([row.num_inputs for _, row in rows], groups, self.base.device, starts=starts)

    def _forward(
        self,
        members: list[Member],
        inserts: Sequence[Insert],
        rows: list[tuple[int, Row | Tree]],
        weights: list[float] | None,
    ) -> Tensor:
        """The NLL of each row, (B,). With weights, the backward of the weighted sum has run when this returns."""
        slots, device = sorted({slot for slot, _ in rows}), self.base.device
        if self._runs_in_line(inserts):
            batch = collate_line([row for _, row in rows], device=device)
            line, infix_starts = self._line(inserts, rows), list[int]()
        else:
            own_rows, limit = [row for _, row in rows if isinstance(row, Row)], self.base.shape.max_positions
            batch, line = collate(own_rows, pad_id=self._pad_id, device=device, max_positions=limit), None
            infix_starts = [row.infix_start for row in own_rows]
            assert len(own_rows) == len(rows), "trees stand in lines"
        own = members[0].method.own_model
        head = self._head if own is None else None
        objective = None
        if weights is not None:
            per_row = [(weights[slot], members[slot].config.label_smoothing) for slot, _ in rows]
            exact = torch.promote_types(self.base.model.dtype, torch.float32)
            per_token = torch.tensor(per_row, dtype=exact, device=device)[batch.target_rows]
            objective = Objective(*per_token.unbind(1))
        binding = members[0].binder.bind(
            [inserts[slot] for slot in slots],
            [slots.index(slot) for slot, _ in rows],
            targets=batch.targets,
            infix_starts=infix_starts,
            is_headless=head is not None,
            line=line,
        )
        with binding as bound:
            logits = (own or self.base.model)(**batch.inputs, use_cache=False).logits  # (N, V), or none
            if head is None:
                nll = losses_of_logits(logits, batch.target_ids, objective)
            else:
                assert bound.hidden is not None, "the forward came to the head"
                nll = losses_of_hidden(head, bound.hidden, batch.target_ids, objective)
        return nll.new_zeros(len(rows)).index_add(0, batch.target_rows, nll)


def _halves(members: Sequence[Member]) -> tuple[list[str], list[str]]:
    keys = [member.key for member in members]
    return keys[: len(keys) // 2], keys[len(keys) // 2 :]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device has no more memory; of a CPU's, torch has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _too_large(config: TrialConfig) -> str:
    values = {**config.method.model_dump(exclude_none=True), "batch_size": config.batch_size}
    told = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"out of memory alone and with one example at a time: {told}"


def _objective_weight(config: TrialConfig, rows: Sequence[Row]) -> float:
    """What a row's NLL counts in its trial's objective."""
    match config.objective:
        case "token_mean":
            return 1.0 / sum(row.num_targets for row in rows)
        case "sentence_sum":
            return 1.0 / len(rows)
