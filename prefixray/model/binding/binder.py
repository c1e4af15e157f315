"""Binds trials to the rows of one frozen model's forwards.

The binder attaches to a model once. While something is bound, every row of a batch belongs to a trial: attention puts
that trial's keys and values in front of the row's own, and hooks on blocks and projections apply that trial's adapters.
Rows of different trials share one forward.

Attention stands at one of three sites: a decoder-only model has the decoder's alone, an encoder-decoder model also the
encoder's own and the cross-attention from decoder to encoder. Positions of a decoder-only model are shifted by the
number of prefix positions; those of an encoder-decoder model are not (the original's policies for GPT-2 and BART).

An infix stands inside a row, behind its source: its columns run as virtual embeddings, and the tokens after them see
copies of their keys and values that the trial has added to. Those copies take the place of a prefix.
"""

# B rows, T trials, S tokens, N target positions or, in ragged rows, tokens

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.model.attention_sites import attentions
from prefixray.model.backend import backend_for
from prefixray.model.binding.attention import IMPLEMENTATION, Place, set_place
from prefixray.model.binding.bound import AttendingRows, Bound, StepCache, cut_segments, is_even
from prefixray.model.binding.infix import place_infixes
from prefixray.model.binding.insert import Insert, SitePrefix, prefixes_in_line, stack_prefixes
from prefixray.model.binding.model_ref import ModelRef
from prefixray.model.binding.ragged import Ragged
from prefixray.model.binding.recorder import KVRecorder
from prefixray.model.binding.row_hooks import RowHooks
from prefixray.model.dropout.row_dropout import RowDropout
from prefixray.model.last_ffn import Targets, run_on_targets
from prefixray.model.plain import LinePrefix
from prefixray.model.uploads import Uploads
from prefixray.system.heartbeat import beat


class Binder:
    """The only binder of a model; `Binder.of` finds or makes it."""

    def __init__(self, model: PreTrainedModel) -> None:
        assert "_prefixray_binder" not in vars(model), "a model has one binder; Binder.of(model) finds it"
        vars(model)["_prefixray_binder"] = self
        self._model = ModelRef(model)
        self._bound: Bound | None = None
        self._put = Uploads(model.device).add  # what moves small tensors to the device
        self._row_hooks = RowHooks(self._model, self._current)
        recorder = KVRecorder(self._model)
        self.record, self.record_rows = recorder.record, recorder.record_rows
        self._num_layers = 0  # of all sites
        for module, site, layer in attentions(model):
            self._num_layers += 1
            set_place(module, Place(site, layer, self._current, recorder))
        if not model.config.is_encoder_decoder:
            decoder = model.get_decoder()  # type: ignore[no-untyped-call]  # what OPT's head calls, past its base_model
            decoder.register_forward_pre_hook(self._shift_positions, with_kwargs=True)
            model.get_input_embeddings().register_forward_hook(self._embed_infixes)
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert head is not None, "a language model has a head"
        head.register_forward_pre_hook(self._select_targets)
        run_on_targets(model, self._ffn_targets)
        model.set_attn_implementation(IMPLEMENTATION)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Binder":
        """The model's binder, which is attached at the first call."""
        known: Binder | None = vars(model).get("_prefixray_binder")
        return cls(model) if known is None else known

    @contextmanager
    def bind(
        self,
        inserts: Sequence[Insert],
        row_trial: Sequence[int],
        *,
        targets: Targets | None = None,
        infix_starts: Sequence[int] = (),
        is_headless: bool = False,
        cache: StepCache | None = None,
        line: Ragged | None = None,
        dropout: tuple[RowDropout, Sequence[int]] | None = None,
        uploads: Uploads | None = None,
    ) -> Iterator[Bound]:
        """Bind trial `row_trial[b]`'s insert to row b. Rows of one trial must stand together.

        Where an insert has an infix, `infix_starts` says in which column it starts in each row of the forward; as many
        columns from there on hold any token at all.
        With `targets`, rows (N,) and columns (N,), the head runs on those positions alone: logits are (N, vocabulary).
        In a headless forward the head runs on no position, and `Bound.hidden` is its input at the targets.
        With `cache` a forward is a step of decoding: its rows are one token each, and their attention sees the cache
        alone, and writes to it.
        With `line` the forward has one row, in which those of the binding stand one behind another; its inserts fit
        lines, its targets are places in that row, and its mask is not looked at.
        With `dropout` the model's own dropout is drawn for each row by its number in the step.
        `uploads` has the forward's tensors; it is sent when the binding's own have joined them.
        Keep the binding until backward has run: gradient checkpointing repeats the forward there.
        """
        assert self._bound is None, "a binding is already active"
        self._put = Uploads(self._model().device).add if uploads is None else uploads.add
        for insert in inserts:
            self._row_hooks.install(insert.functions)
        self._bound = self._laid_out(inserts, row_trial, infix_starts, line)
        self._bound.targets, self._bound.is_headless, self._bound.cache = targets, is_headless, cache
        if dropout is not None:
            self._number(self._bound, *dropout)
        if uploads is not None:
            self._prepare(self._bound)
            uploads.send()
        try:
            yield self._bound
        finally:
            self._bound = None

    def _laid_out(
        self, inserts: Sequence[Insert], row_trial: Sequence[int], infix_starts: Sequence[int], line: Ragged | None
    ) -> Bound:
        """The rows with what is in front of them."""
        rows = AttendingRows(
            row_trial=self._tensor(row_trial),
            sites=self._stacked(inserts) if line is None else {},
            infixes=place_infixes([insert.infix for insert in inserts], row_trial, infix_starts),
            is_even=is_even(row_trial, len(inserts)),
        )
        shifts = self._shifts(inserts, row_trial, line)
        edges = range(len(row_trial) + 1) if line is None else line.edges
        bound = Bound(rows, cut_segments(inserts, row_trial, edges), shifts, ragged=line)
        if line is not None:
            bound.make_groups = partial(self._groups, inserts, row_trial, line)
            bound.make_prefixes = partial(self._line_prefixes, inserts, row_trial, line)
        return bound

    def _prepare(self, bound: Bound) -> None:
        """Make what attention and hooks would make when they first run."""
        if bound.ragged is not None:
            _ = bound.line_prefixes if bound.ragged.is_prepared_unpadded else bound.groups
        self._row_hooks.prepare(bound, self._put)

    def _shifts(self, inserts: Sequence[Insert], row_trial: Sequence[int], line: Ragged | None) -> Tensor | None:
        shifts = [insert.num_positions() for insert in inserts]
        if not any(shifts):
            return None
        return self._tensor(shifts) if line is None else line.of_tokens([shifts[trial] for trial in row_trial])[None]

    def _number(self, bound: Bound, dropout: RowDropout, numbers: Sequence[int]) -> None:
        """Tell the rows that attend together their numbers."""
        line = bound.ragged
        every = [(bound.rows, range(len(numbers)))] if line is None else zip(bound.groups, line.groups, strict=True)
        for attending, rows in every:
            attending.dropout, attending.numbers = dropout, self._tensor([numbers[row] for row in rows])

    def has_long_prefix(self, insert: Insert) -> bool:
        """Whether rows of a trial should attend to its prefix apart from others' rows, in this mode of gradients."""
        longest = max((insert.num_seen(site) for site in insert.prefixes), default=0)
        is_long = backend_for(self._model().device).has_long_prefix(longest, self._model().dtype)
        return insert.infix is None and is_long

    def _groups(self, inserts: Sequence[Insert], row_trial: Sequence[int], line: Ragged) -> list[AttendingRows]:
        """The groups of ragged rows. A group whose rows are of one trial with a long prefix knows that trial alone."""
        trials = [[row_trial[row] for row in group] for group in line.groups]
        is_long = [len(set(own)) == 1 and self.has_long_prefix(inserts[own[0]]) for own in trials]
        mixed = {trial for own, long in zip(trials, is_long, strict=True) if not long for trial in own}
        shared = self._stacked([insert if trial in mixed else Insert() for trial, insert in enumerate(inserts)])
        single = {trial: self._stacked([insert]) for trial, insert in enumerate(inserts) if trial not in mixed}
        return [
            AttendingRows(self._tensor([0] * len(own)), single[own[0]], has_long_prefix=True)
            if own[0] in single
            else AttendingRows(self._tensor(own), shared)
            for own in trials
        ]

    def _line_prefixes(
        self, inserts: Sequence[Insert], row_trial: Sequence[int], line: Ragged
    ) -> Sequence[LinePrefix | None] | None:
        """The prefixes of ragged rows, see `Bound.line_prefixes`; a model that has lines has one site."""
        counts = [insert.num_seen("decoder") for insert in inserts]
        if not any(counts):
            return [None] * self._num_layers
        if not all(counts):
            return None
        spans = line.prefix_spans(row_trial, counts)
        return [(*layer, spans) for layer in prefixes_in_line(inserts, "decoder", self._model().dtype)]

    def _stacked(self, inserts: Sequence[Insert]) -> dict[str, SitePrefix]:
        return stack_prefixes(inserts, dtype=self._model().dtype, put=self._put)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return self._put(torch.tensor(values))

    def _current(self) -> Bound | None:
        return self._bound

    def _shift_positions(
        self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A hook before the decoder: positions start behind the prefix."""
        if self._bound is None or self._bound.shifts is None:
            return None
        positions = inputs.get("position_ids")
        assert positions is not None, "position_ids are always passed to a decoder-only model"
        input_ids = args[0] if args else inputs.get("input_ids")
        num_rows = (input_ids if input_ids is not None else inputs["inputs_embeds"]).shape[0]
        rows, shifts, ragged = self._bound.rows, self._bound.shifts, self._bound.ragged
        shift = shifts if ragged is not None else shifts[rows.row_trials(num_rows)][:, None]  # (1, N) or (B, 1)
        return args, {**inputs, "position_ids": positions + shift}

    def _embed_infixes(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        """A hook behind the word embeddings: the infixes' embeddings in place of what their columns hold."""
        infixes = None if self._bound is None else self._bound.rows.infixes
        return None if infixes is None else infixes.embed(embedded)

    def _select_targets(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook before the head: its input at the bound target positions, (B, S, width) -> (N, width)."""
        beat()
        if self._bound is None or self._bound.targets is None:
            return None
        picked = args[0][self._bound.targets]
        if self._bound.is_headless:
            self._bound.hidden, picked = picked, picked[:0]
        return (picked, *args[1:])

    def _ffn_targets(self) -> Targets | None:
        """The positions at which the last block's feed-forward network is needed; None: all, as functions take rows."""
        return None if self._bound is None or self._bound.has_functions() else self._bound.targets
