"""Many trials, one frozen base, one forward.

In a step every member contributes its next rows; rows of all members form one batch, cut into micro-batches of like
length under a token budget. The loss is the sum of the members' losses, so gradients of different trials never mix;
each member clips and steps its own optimiser. The base is frozen and in eval mode, so a member's numbers are those of a
pack of one: that equality is this file's contract.
"""

# B rows of a micro-batch, N target tokens, V vocabulary

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefixray.batching.rows import Row
from prefixray.config.trials import TrialConfig
from prefixray.data.documents import Document
from prefixray.methods.stacked import StackableUpdates, insert_all
from prefixray.model.backend import backend_for
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.dropout.row_dropout import RowDropout
from prefixray.training.base_checks import check_continued, is_out_of_memory
from prefixray.training.device.ahead import Ahead, How, Laid
from prefixray.training.layout import TOKEN_BUDGET, Layout
from prefixray.training.loss import RowLosses, losses_of_hidden, losses_of_logits, plain_head
from prefixray.training.member import Member, Seeds, StepResult, finished, not_updated, too_large

logger = logging.getLogger(__name__)


class Pack:
    """The members that share one base, and the rows they train and are evaluated on."""

    def __init__(self, base: Base, train: Sequence[Row], *, pad_id: int, token_budget: int | None = None) -> None:
        self.base, self.binder = base, Binder.of(base.model)
        self.train = train
        self._head = plain_head(base.model)
        self._dropout: RowDropout | None = None  # of the base, once a member trains with it
        check_continued(base, self.binder)
        self.layout = Layout(base, self.binder, pad_id)
        self._ahead = Ahead(base, self.layout)
        self.members: dict[str, Member] = {}
        self.unfit: set[str] = set()
        """Members for whose evaluation there was no memory."""
        self.token_budget = self.first_budget = token_budget or TOKEN_BUDGET[base.device.type]
        self._largest_piece = 0  # tokens, at the most, of the micro-batches of the last attempt; 0: none was begun

    def admit(
        self, key: str, config: TrialConfig, seeds: Seeds, *, rows: Sequence[Row] = (), document: Document | None = None
    ) -> Member:
        """Make a trial's tensors and let it join the next step; `rows` to train on in place of the pack's."""
        assert key not in self.members, f"{key} is a member already"
        member = self.members[key] = Member(key, config, self.base, self.binder, seeds, rows or self.train, document)
        if member.drops_in_base and self._dropout is None:
            self._dropout = RowDropout(self.base.model)
        return member

    def drop(self, key: str) -> None:
        """Let a trial go; the others do not notice."""
        del self.members[key]
        self.unfit.discard(key)

    def step(self, keys: Iterable[str]) -> dict[str, StepResult]:
        """One update of each of these members. A member whose numbers are not finite is not updated.

        Members that do not fit together take turns; a member that does not fit alone is not updated either.
        """
        members, results = [self.members[key] for key in keys], dict[str, StepResult | None]()
        rows = [member.next_rows() for member in members]
        self._ahead.begin_step()
        together, mixing = backend_for(self.base.device).updates_together, list[Member]()
        for group in self._halve_until_it_fits(members, rows, train=True):
            results |= finished(*group, together=together)
            mixing += _mixing(group[0], self.base)

        # An update that had no memory beside the gradients of others is repeated when those are gone. So is one whose
        # numbers are not finite, where that may come from others.
        for member in members:
            result = results[member.key]
            if result is None or (result.is_not_finite and member in mixing):
                reason = "out of memory in its update" if result is None else result.failed
                logger.warning("%s: %s; once more, alone", member.key, reason)
                for group in self._halve_until_it_fits([member], [member.next_rows()], train=True):
                    results |= finished(*group, together=together)
        return {member.key: results[member.key] or not_updated(member.config) for member in members}

    def evaluate(self, keys: Iterable[str], rows: Sequence[Row]) -> dict[str, float]:
        """Each member's loss per target token, in nats; no dropout, smoothing or temperature. NaN: no memory for it."""
        members = [self.members[key] for key in keys]
        count, scores, mixing = sum(row.num_targets for row in rows), dict[str, float](), list[Member]()
        with torch.no_grad():
            for group, _, losses in self._halve_until_it_fits(members, [rows] * len(members), train=False):
                if losses is None:
                    logger.warning("%s: %s", group[0].key, too_large(group[0].config))
                    self.unfit.add(group[0].key)
                totals = [math.nan] if losses is None else losses.read()[0]
                scores |= {member.key: total / count for member, total in zip(group, totals, strict=True)}
                mixing += _mixing(group, self.base)
        for member in mixing:
            if not math.isfinite(scores[member.key]):
                scores |= self.evaluate([member.key], rows)
        return scores

    def _halve_until_it_fits(
        self, members: Sequence[Member], rows: Sequence[Sequence[Row]], *, train: bool
    ) -> Iterator[tuple[Sequence[Member], Sequence[Sequence[Row]], RowLosses | None]]:
        """Members that fit together, their rows and the losses of these; in training their gradients have arrived.

        While memory runs out, the largest micro-batch is halved down to one row at a time, then the members are: the
        first half is yielded, and can be updated, before the second half runs. A member that does not fit alone has
        None for its losses, and the others go back to the first budget, since they may not need such small pieces.
        """
        longest = max((sum(row.lengths) for of_member in rows for row in of_member), default=0)
        while (losses := self._losses_if_they_fit(members, rows, train=train)) is None:
            if (piece := self._largest_piece or self.token_budget) > longest:
                self.token_budget = piece // 2
                logger.warning("out of memory: micro-batches of %d tokens from here on", self.token_budget)
            elif len(members) > 1:
                middle = len(members) // 2
                yield from self._halve_until_it_fits(members[:middle], rows[:middle], train=train)
                yield from self._halve_until_it_fits(members[middle:], rows[middle:], train=train)
                return
            else:
                self.token_budget = self.first_budget
                yield members, rows, None
                return
        yield members, rows, losses

    def _losses_if_they_fit(
        self, members: Sequence[Member], rows: Sequence[Sequence[Row]], *, train: bool
    ) -> RowLosses | None:
        """The losses of each member's rows, and in training its gradients; None where memory has run out."""
        for member in members if train else ():
            member.optimizer.zero_grad(set_to_none=True)
        self._largest_piece = 0
        try:
            return self._losses(members, rows, train=train)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # out here, since the handled error keeps the step's tensors alive
        return None

    def _losses(self, members: Sequence[Member], rows: Sequence[Sequence[Row]], *, train: bool) -> RowLosses:
        """Members of the base together, then those that train with its dropout, then each with a model of its own."""
        sharing = [i for i, member in enumerate(members) if member.method.own_model is None]
        dropping = [i for i in sharing if train and members[i].drops_in_base]
        plain = [i for i in sharing if i not in dropping]
        alone = [[i] for i, member in enumerate(members) if member.method.own_model is not None]
        losses = RowLosses(len(members))
        for group in [*filter(None, (plain, dropping)), *alone]:
            for row_members, of_rows in self._run([members[i] for i in group], [rows[i] for i in group], train=train):
                losses.add([group[index] for index in row_members], of_rows)
        return losses

    def _run(
        self, members: Sequence[Member], rows: Sequence[Sequence[Row]], *, train: bool
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """The member of each row of a micro-batch, and the loss of the row.

        Members of one model: one forward, and in training one backward, per micro-batch.
        """
        methods, steps = [member.method for member in members], [member.step if train else None for member in members]
        stacked = backend_for(self.base.device).stacks_trials
        together = insert_all(methods, steps, stacked=stacked, dtype=self.base.model.dtype)
        inserts = together.of_trials
        has_hooks = any(insert.functions for insert in inserts)
        num_tokens = sum(sum(row.lengths) for of_member in rows for row in of_member)
        self._largest_piece = max(self._largest_piece, min(num_tokens, self.token_budget))
        how = How(self.token_budget, train, draws=train and _dropout_of(members[0], self._dropout) is not None)
        with self._running(members[0], train=train, has_hooks=has_hooks):
            for laid in self._ahead.laid(members, rows, inserts, how):
                yield laid.micro.row_members, self._forward(members, laid)
        if train:
            together.push_gradients()
            if members[0].method.own_model is None:  # an own model would outlive its trial in what is laid out
                self._ahead.lay_next(members, inserts, how)

    @contextmanager
    def _running(self, member: Member, *, train: bool, has_hooks: bool) -> Iterator[None]:
        """The base runs frozen, an own model under autocast; in training with seeded dropout where it has any."""
        own_model = member.method.own_model
        if own_model is not None:
            with _running_apart(own_model, member, self.base, train=train):
                yield
            return
        backend, model, drops = backend_for(self.base.device), self.base.model, train and member.drops_in_base
        as_it_is = backend.frozen(model) if train else backend.evaluation(model, has_hooks=has_hooks)
        with as_it_is, _dropping(model, self._dropout if drops else None):
            yield

    def _forward(self, members: Sequence[Member], laid: Laid) -> Tensor:
        """The loss of each row, (B,). With an objective, its backward has run when this returns."""
        # A frozen plain head is left out of the forward: `losses_of_hidden` runs it together with its backward.
        micro, objective, taught = laid
        own_model, batch = members[0].method.own_model, micro.batch
        head = self._head if own_model is None else None

        # In training a model drops by the numbers of its rows.
        dropout = _dropout_of(members[0], self._dropout) if objective is not None else None
        numbers = None if dropout is None else micro.uploads.add(torch.tensor(micro.row_numbers))

        # One forward of all rows, each with its trial's insert. The binding lasts until the backward has run, because
        # gradient checkpointing repeats the forward there.
        binding = members[0].binder.bind(
            micro.inserts,
            micro.row_inserts,
            targets=batch.targets,
            infix_starts=micro.infix_starts,
            is_headless=head is not None,
            line=micro.line,
            dropout=None if dropout is None else (dropout, micro.row_numbers),
            uploads=micro.uploads,
        )
        with binding as bound:
            if dropout is not None and numbers is not None:
                line = None if micro.line is None else (micro.line.token_rows, batch.inputs["position_ids"][0])
                dropout.take(numbers, line)
            logits = (own_model or self.base.model)(**batch.inputs, use_cache=False).logits  # (N, V), or none
            if head is None:
                losses = losses_of_logits(logits, batch.target_ids, objective, taught)
            else:
                assert bound.hidden is not None, "the forward came to the head"
                losses = losses_of_hidden(head, bound.hidden, batch.target_ids, objective, taught)

        # Sum the target tokens of each row.
        return losses.new_zeros(len(micro.row_members)).index_add(0, batch.target_rows, losses)


def _mixing(group: Sequence[Member], base: Base) -> Sequence[Member]:
    """Those of members that ran together whose numbers may be not finite for another's sake.

    In a line all tokens, also those of a prefix, go through the products of low-rank updates. A trial with a model of
    its own runs apart.
    """
    sharing = [member for member in group if member.method.own_model is None]
    is_shared = any(isinstance(member.method, StackableUpdates) for member in sharing)
    return sharing if len(sharing) > 1 and is_shared and backend_for(base.device).stacks_trials else ()


def _dropout_of(member: Member, of_base: RowDropout | None) -> RowDropout | None:
    """The dropout with which a member trains, of its own model or of the base."""
    return of_base if member.drops_in_base else member.method.own_dropout


@contextmanager
def _running_apart(own_model: PreTrainedModel, member: Member, base: Base, *, train: bool) -> Iterator[None]:
    """Run a member's own model, in the precision of the base."""
    device, mixed = base.device.type, base.model.dtype == torch.bfloat16
    own_model.train(train)
    seed = (member.method.dropout_seed + member.step) % (1 << 63)
    with torch.random.fork_rng(), torch.autocast(device, dtype=torch.bfloat16, enabled=mixed), ExitStack() as stack:
        torch.manual_seed(seed)  # for draws that know no rows
        if train and member.method.own_dropout is not None:
            stack.enter_context(member.method.own_dropout.drawing(seed))
        yield
    own_model.train(False)


@contextmanager
def _dropping(model: PreTrainedModel, dropout: RowDropout | None) -> Iterator[None]:
    """Run the frozen base with its own dropout, by the numbers of rows alone; None: without."""
    if dropout is None:
        yield
        return
    model.train(True)
    try:
        with dropout.drawing(0):
            yield
    finally:
        model.train(False)
