"""Per-row prefixes, adapters and low-rank updates inside the forward of one frozen transformers model.

`Binder` attaches to a model once. While something is bound, every row of a batch belongs to a trial: attention puts
that trial's keys and values in front of the row's own, and hooks on blocks and projections apply that trial's adapters.
Rows of different trials share one forward. With nothing bound the model is the stock model.

Attention stands at one of three sites: a decoder-only model has the decoder's alone, an encoder-decoder model also the
encoder's own and the cross-attention from decoder to encoder. Positions of a decoder-only model are shifted by the
number of prefix positions; those of an encoder-decoder model are not (the original's policies for GPT-2 and BART).

An infix stands inside a row, behind its source: its columns run as virtual embeddings, and what comes after them looks
at copies of their keys and values that the trial has added to. Those copies take the place of a prefix.

What is the same for all layers of a site is made once per forward: the additive mask. What beams share is kept once: in
decoding, all rows of a trial look at one copy of its prefix.

The way in is transformers' attention interface: a function registered by name for attention and for masks.
"""

# B rows, T trials, L layers of a site, H query heads, K key/value heads, G = H / K, S tokens, P prefix positions,
# D head dim

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefixray.model.attention_sites import attentions
from prefixray.model.backend import backend_for
from prefixray.model.beam_cache import BeamCache
from prefixray.model.infix import Infixes, place_infixes
from prefixray.model.last_ffn import Targets, run_on_targets
from prefixray.model.ragged import Ragged
from prefixray.system.heartbeat import beat

RowFunction = Callable[[Tensor, Tensor], Tensor]  # (input of the module, output of the module) -> new output


@dataclass(frozen=True)
class Insert:
    """What one trial puts into the model: prefixes, or functions on the outputs of named modules, or nothing."""

    prefixes: Mapping[str, Tensor] = field(default_factory=dict)  # site -> (2, L, K, P, D): keys, values of each layer
    functions: Mapping[str, RowFunction] = field(default_factory=dict)
    infix: Tensor | None = None  # (P, width): virtual embeddings inside the row, to whose K/V the prefix is added

    def num_positions(self, site: str = "decoder") -> int:
        """How many prefix positions come before the row's first token at a site."""
        return self.prefixes[site].shape[3] if site in self.prefixes and self.infix is None else 0

    @property
    def infix_length(self) -> int:
        """How many columns of a row the infix takes."""
        return 0 if self.infix is None else self.infix.shape[0]


@dataclass
class _SitePrefix:
    """The prefixes of all bound trials at one site."""

    lengths: Tensor  # (T,) prefix positions of each trial
    layers: tuple[Tensor, ...]  # per layer (T, 2, K, P, D), padded on the right of P


@dataclass
class _Bound:
    row_trial: Tensor  # (B,)
    sites: Mapping[str, _SitePrefix]  # those where a trial has a prefix
    segments: list[tuple[Mapping[str, RowFunction], int, int]]  # (functions, first row, end row)
    even: bool  # the rows are as many of trial 0, then as many of trial 1, ...
    shifts: Tensor | None = None  # (T,) prefix positions before a row's first token; None where there are none
    targets: Targets | None = None  # that the head is run on
    infixes: Infixes | None = None  # None where no row has one
    cache: BeamCache | None = None  # what the rows, each one token of a beam, look at
    line: Ragged | None = None  # in which the rows run
    groups: "Sequence[_Bound]" = ()  # the line's, as rows that attend
    has_long_prefix: bool = False  # the rows are all of one trial, with a long prefix
    is_headless: bool = False
    hidden: Tensor | None = None
    """Where the forward is headless: the head's input at the targets, (N, width)."""
    masks: dict[str, tuple[Tensor, Tensor | None, Tensor]] = field(default_factory=dict)
    """By site, this forward's mask and position bias, and what `mask` made of them."""

    def row_trials(self, num_rows: int) -> Tensor:
        """The trial of each row; beam search repeats rows in place."""
        repeats = num_rows // self.row_trial.shape[0]
        return self.row_trial if repeats == 1 else self.row_trial.repeat_interleave(repeats)

    def mask(self, site: str, own: Tensor, query: Tensor, bias: Tensor | None) -> Tensor:
        """What is added to scores: (B, 1 or H, S, P + S'), prefix first. -inf where a query may not look.

        `bias` is T5's for the tokens' distance, (1, H, S, S'); to a prefix there is no distance.
        """
        known = self.masks.get(site)
        if known is not None and known[0] is own and known[1] is bias and known[2].dtype == query.dtype:
            return known[2]
        num_rows, _, num_queries, _ = query.shape
        both = own.expand(num_rows, 1, num_queries, -1)
        if site in self.sites:
            prefix = self.sites[site]
            columns = torch.arange(prefix.layers[0].shape[3], device=own.device)
            seen = columns < prefix.lengths[self.row_trials(num_rows)][:, None]  # (B, P)
            seen = seen[:, None, None].expand(-1, 1, num_queries, -1)
            if self.infixes is not None:  # what is behind an infix looks at the copies, its own columns at themselves
                behind = self.infixes.behind(num_queries)[:, None, :, None]
                seen = seen & behind
                both = both & ~(behind & self.infixes.inside(both.shape[3])[:, None, None])
            both = torch.cat([seen, both], dim=3)
        zeros = torch.zeros(both.shape, dtype=query.dtype, device=own.device)
        mask = zeros.masked_fill_(~both, float("-inf"))
        if bias is not None:
            mask = mask + functional.pad(bias, (mask.shape[3] - bias.shape[3], 0))
        if not mask.requires_grad:  # a trained bias may be seen by one checkpointed block alone
            self.masks[site] = (own, bias, mask)
        return mask


class Binder:
    """Binds trials to the rows of a model's forwards."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._bound: _Bound | None = None
        self._recorded: dict[tuple[str, int], tuple[Tensor, Tensor]] | None = None
        self._hooked: set[str] = set()
        self._modules = dict(model.named_modules())
        for module, site, layer in attentions(model):
            module._prefixray = (self, site, layer)  # type: ignore[assignment]
        if not model.config.is_encoder_decoder:
            decoder = model.get_decoder()  # type: ignore[no-untyped-call]  # what OPT's head calls, past its base_model
            decoder.register_forward_pre_hook(self._shift_positions, with_kwargs=True)
            model.get_input_embeddings().register_forward_hook(self._embed_infixes)
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        assert head is not None, "a language model has a head"
        head.register_forward_pre_hook(self._select_targets)
        run_on_targets(model, self._last_wanted)
        model.set_attn_implementation("prefixray")

    @contextmanager
    def bind(
        self,
        inserts: Sequence[Insert],
        row_trial: Sequence[int],
        *,
        targets: Targets | None = None,
        infix_starts: Sequence[int] = (),
        is_headless: bool = False,
        cache: BeamCache | None = None,
        line: Ragged | None = None,
    ) -> Iterator[_Bound]:
        """Bind trial `row_trial[b]`'s insert to row b. Rows of one trial must stand together.

        Where an insert has an infix, `infix_starts` says in which column it starts in each row of the forward; as many
        columns from there on hold any token at all.
        With `targets`, rows (N,) and columns (N,), the head runs on those positions alone: logits are (N, vocabulary).
        In a headless forward it runs on none, and `hidden` of what is yielded is its input there.
        With `cache` a forward is a step of a beam search: its rows are tokens of the sources' beams, one each, and
        their attention looks at the cache alone, and writes to it.
        With `line` the forward has one row, in which those of the binding stand one behind another; its inserts have
        neither functions nor infixes, its targets are places in that row, and its mask is not looked at.
        Keep the binding until backward has run: gradient checkpointing repeats the forward there.
        """
        assert self._bound is None, "a binding is already active"
        for insert in inserts:
            self._hook(insert.functions)
        on_device, shifts = self._on_device, [insert.num_positions() for insert in inserts]
        self._bound = _Bound(
            row_trial=on_device(row_trial),
            sites=self._sites(inserts) if line is None else {},
            segments=_segments(inserts, row_trial),
            even=_is_even(row_trial, len(inserts)),
            shifts=on_device(shifts) if any(shifts) else None,
            targets=targets,
            infixes=place_infixes([insert.infix for insert in inserts], row_trial, infix_starts),
            cache=cache,
            line=line,
            groups=[] if line is None else self._groups(inserts, row_trial, line),
            is_headless=is_headless,
        )
        try:
            yield self._bound
        finally:
            self._bound = None

    def record(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every site's keys and values over token ids (1, S), or embeddings (1, S, width): (2, L, K, S, D) each.

        Of an encoder-decoder model both sides run over the tokens, in one forward, the decoder looking at the encoder.
        """
        return {site: rows[0] for site, rows in self.record_rows(tokens).items()}

    def record_rows(self, tokens: Tensor) -> dict[str, Tensor]:
        """Every site's keys and values over token ids (B, S), padded on the right: (B, 2, L, K, S, D) each.

        Embeddings (B, S, width) may stand in place of ids; gradients flow back to them. Where something is bound it is
        seen, but is not part of the result.
        """
        num_rows, length = tokens.shape[:2]
        kind = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
        inputs: dict[str, Any] = {kind: tokens, "use_cache": False}
        places = torch.arange(length, device=tokens.device).expand(num_rows, length)
        if self._model.config.is_encoder_decoder:
            inputs |= {f"decoder_{kind}": tokens, "attention_mask": torch.ones_like(places)}
            if tokens.is_floating_point():  # Pegasus' and Marian's encoder scales what comes from ids alone
                encoder = self._model.get_encoder()
                inputs[kind] = tokens * getattr(encoder, "embed_scale", 1.0)
        else:
            inputs["position_ids"] = places
        recorded = self._recorded = {}
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
                self._model.base_model(**inputs)
        finally:
            self._recorded = None
        found: dict[str, list[Tensor]] = {}
        for (site, _), (key, value) in sorted(recorded.items()):
            found.setdefault(site, []).append(torch.stack([key, value], dim=1))
        return {site: torch.stack(layers, dim=2) for site, layers in found.items()}

    def _groups(self, inserts: Sequence[Insert], row_trial: Sequence[int], line: Ragged) -> list[_Bound]:
        """A line's groups. One whose rows are of one trial with a long prefix knows that trial alone."""
        trials = [[row_trial[row] for row in group] for group in line.groups]
        apart = [len(set(own)) == 1 and self.has_long_prefix(inserts[own[0]]) for own in trials]
        mixed = {trial for own, is_apart in zip(trials, apart, strict=True) if not is_apart for trial in own}
        sites = self._sites([insert if trial in mixed else Insert() for trial, insert in enumerate(inserts)])
        alone = {trial: self._sites([insert]) for trial, insert in enumerate(inserts) if trial not in mixed}
        return [
            _Bound(self._on_device([0] * len(own)), alone[own[0]], [], even=False, has_long_prefix=True)
            if own[0] in alone
            else _Bound(self._on_device(own), sites, [], even=False)
            for own in trials
        ]

    def has_long_prefix(self, insert: Insert) -> bool:
        """Whether rows of a trial should attend to its prefix apart from others' rows, in this mode of gradients."""
        longest = max((_length(insert, site) for site in insert.prefixes), default=0)
        is_long = backend_for(self._model.device).has_long_prefix(longest, self._model.dtype)
        return insert.infix is None and is_long

    def _sites(self, inserts: Sequence[Insert]) -> dict[str, _SitePrefix]:
        found = {}
        for site in dict.fromkeys(site for insert in inserts for site in insert.prefixes):
            lengths = [_length(insert, site) for insert in inserts]
            if max(lengths) > 0:
                found[site] = _SitePrefix(self._on_device(lengths), self._layers(inserts, site))
        return found

    def _on_device(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._model.device)

    def _layers(self, inserts: Sequence[Insert], site: str) -> tuple[Tensor, ...]:
        """All trials' prefixes of a site, zeros behind a shorter one, layer by layer: (T, 2, K, P, D).

        One `unbind`, since the gradient of a slice per layer would be as large as the whole, each time.
        """
        longest = max(_length(insert, site) for insert in inserts)
        given = next(insert.prefixes[site] for insert in inserts if site in insert.prefixes)
        none = given.new_zeros(given.shape).narrow(3, 0, 0)
        parts = [insert.prefixes.get(site, none).to(self._model.dtype) for insert in inserts]
        short = [longest - part.shape[3] for part in parts]
        padded = [functional.pad(part, (0, 0, 0, n)) if n else part for part, n in zip(parts, short, strict=True)]
        return (torch.stack(padded) if len(padded) > 1 else padded[0][None]).unbind(2)

    def _shift_positions(
        self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Positions start behind the prefix."""
        if self._bound is None or self._bound.shifts is None:
            return None
        positions = inputs.get("position_ids")
        assert positions is not None, "position_ids are always passed to a decoder-only model"
        input_ids = args[0] if args else inputs.get("input_ids")
        num_rows = (input_ids if input_ids is not None else inputs["inputs_embeds"]).shape[0]
        shifts, line = self._bound.shifts, self._bound.line
        if line is None:
            shift = shifts[self._bound.row_trials(num_rows)][:, None]  # (B, 1)
        else:
            shift = shifts[self._bound.row_trial[line.token_rows]][None]  # (1, N)
        return args, {**inputs, "position_ids": positions + shift}

    def _embed_infixes(self, module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        """The bound infixes' embeddings in place of what their columns hold."""
        infixes = None if self._bound is None else self._bound.infixes
        return None if infixes is None else infixes.embed(embedded)

    def _select_targets(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The head's input at the bound target positions: (B, S, width) -> (N, width)."""
        beat()
        if self._bound is None or self._bound.targets is None:
            return None
        picked = args[0][self._bound.targets]
        if self._bound.is_headless:
            self._bound.hidden, picked = picked, picked[:0]
        return (picked, *args[1:])

    def _last_wanted(self) -> Targets | None:
        """The positions that are all that is wanted of the last block's feed-forward network."""
        bound = self._bound
        if bound is None or any(functions for functions, _, _ in bound.segments):  # these are given rows
            return None
        return bound.targets

    def _hook(self, names: Mapping[str, RowFunction]) -> None:
        for name in names:
            if name not in self._hooked:
                self._hooked.add(name)
                self._modules[name].register_forward_hook(self._row_hook(name), with_kwargs=True)

    def _row_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
        """A forward hook that gives each trial's rows to that trial's function."""

        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
            bound = self._bound
            if bound is None or not any(name in functions for functions, _, _ in bound.segments):
                return None
            given: Tensor = args[0] if args else named["hidden_states"]
            plain = output[0] if isinstance(output, tuple) else output  # (B, S, width)
            repeats = plain.shape[0] // bound.row_trial.shape[0]
            pieces = []
            for functions, start, end in bound.segments:
                rows = slice(start * repeats, end * repeats)
                function = functions.get(name)
                pieces.append(plain[rows] if function is None else function(given[rows], plain[rows]))
            changed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook


def _length(insert: Insert, site: str) -> int:
    """P: how many positions of its prefix a trial's rows see at a site, wherever they stand."""
    return insert.prefixes[site].shape[3] if site in insert.prefixes else 0


def _segments(inserts: Sequence[Insert], row_trial: Sequence[int]) -> list[tuple[Mapping[str, RowFunction], int, int]]:
    """Runs of rows with the same functions."""
    trials = list(dict.fromkeys(row_trial))
    assert sorted(row_trial, key=trials.index) == list(row_trial), "rows of one trial must stand together"
    segments: list[tuple[Mapping[str, RowFunction], int, int]] = []
    for row, trial in enumerate(row_trial):
        functions = inserts[trial].functions
        if segments and segments[-1][0] is functions:
            segments[-1] = (functions, segments[-1][1], row + 1)
        else:
            segments.append((functions, row, row + 1))
    return segments


def _is_even(row_trial: Sequence[int], num_trials: int) -> bool:
    repeats = len(row_trial) // num_trials
    return list(row_trial) == [trial for trial in range(num_trials) for _ in range(repeats)]


def _attention(
    module: nn.Module,
    query: Tensor,  # (B, H, S, D)
    key: Tensor,  # (B, K, S', D)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, S, S'), True where a query may look
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function under the name "prefixray"."""
    binder, site, layer = module._prefixray  # type: ignore[misc]
    bound = binder._bound
    if binder._recorded is not None:
        binder._recorded[site, layer] = (key, value)
    if bound is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if bound.cache is not None:
        return bound.cache.attend(layer, query, key, value, options.get("scaling")), None
    if bound.line is not None:
        queries, keys, values = (bound.line.spread(tokens) for tokens in (query, key, value))
        given = zip(bound.groups, queries, keys, values, bound.line.causal, strict=True)
        parts: list[Tensor] = []
        for _, sharing in itertools.groupby(given, key=lambda one: id(one[0].sites)):
            parts += _attend_groups(module, site, layer, list(sharing), **options)
        return bound.line.joined(parts), None
    assert attention_mask is not None, "the mask function never leaves the mask out"
    return _attend(bound, module, site, layer, query, key, value, attention_mask, **options), None


def _attend_groups(
    module: nn.Module,
    site: str,
    layer: int,
    groups: Sequence[tuple[_Bound, Tensor, Tensor, Tensor, Tensor]],
    **options: Any,  # noqa: ANN401
) -> Sequence[Tensor]:
    """Attention in groups that have the same prefixes."""
    bound = groups[0][0]
    is_plain = site in bound.sites and not options.get("dropout") and options.get("softcap") is None
    if is_plain and bound.has_long_prefix:
        prefix = bound.sites[site].layers[layer].squeeze(0)  # (2, K, P, D)
        rows = [(q, k, v, group.mask(site, own, q, None)[..., prefix.shape[2] :]) for group, q, k, v, own in groups]
        return backend_for(rows[0][0].device).attend_to_long_prefix(rows, prefix, options.get("scaling"))
    return [_attend(group, module, site, layer, q, k, v, own, **options) for group, q, k, v, own in groups]


def _attend(
    bound: _Bound,
    module: nn.Module,
    site: str,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    **options: Any,  # noqa: ANN401
) -> Tensor:
    """Attention of rows to their trials' prefixes and to themselves, (B, S, H, D)."""
    mask = bound.mask(site, attention_mask, query, options.pop("position_bias", None))
    if site in bound.sites:
        prefix = bound.sites[site].layers[layer]  # (T, 2, K, P, D)
        if query.shape[2] == 1 and bound.even and options.get("softcap") is None:
            return _attend_from_one_token(query, key, value, prefix, mask, options.get("scaling"))
        prefix_key, prefix_value = prefix.index_select(0, bound.row_trials(query.shape[0])).unbind(1)  # (B, K, P, D)
        if bound.infixes is not None:
            prefix_key, prefix_value = bound.infixes.added(prefix_key, key), bound.infixes.added(prefix_value, value)
        key = torch.cat([prefix_key, key], dim=2)
        value = torch.cat([prefix_value, value], dim=2)
    return backend_for(query.device).attend(module, query, key, value, mask, **options)


def _attend_from_one_token(
    query: Tensor, key: Tensor, value: Tensor, prefix: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Attention where S is 1, (B, 1, H, D): all rows of a trial, as beams are, look at one copy of its prefix."""
    num_rows, num_heads, _, dim = query.shape
    num_trials, _, num_kv, num_positions, _ = prefix.shape
    repeats, groups = num_rows // num_trials, num_heads // num_kv

    def by_trial(rows: Tensor) -> Tensor:  # (B, K, G, X) -> (T, K, rows of a trial * G, X)
        return rows.reshape(num_trials, repeats, num_kv, groups, -1).transpose(1, 2).flatten(2, 3)

    def by_row(trials: Tensor) -> Tensor:
        return trials.view(num_trials, num_kv, repeats, groups, -1).transpose(1, 2).flatten(0, 1)

    prefix_key, prefix_value = prefix.unbind(1)  # (T, K, P, D)
    query = query.view(num_rows, num_kv, groups, dim)
    if mask.shape[1] == num_heads:
        mask = mask.view(num_rows, num_kv, groups, -1)  # else (B, 1, 1, P + S')
    shared = by_row(by_trial(query) @ prefix_key.transpose(2, 3))  # (B, K, G, P)
    scores = torch.cat([shared, query @ key.transpose(2, 3)], dim=3) * (scaling or dim**-0.5) + mask
    weights = torch.softmax(scores, dim=3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    shared, own = weights.split([num_positions, key.shape[2]], dim=3)
    output: Tensor = by_row(by_trial(shared) @ prefix_value) + own @ value  # (B, K, G, D)
    return output.reshape(num_rows, 1, num_heads, dim)


def _mask(**arguments: Any) -> Tensor | None:  # noqa: ANN401
    """Transformers' mask function under the name "prefixray": sdpa's, never left out.

    sdpa's own causal flag is aligned to the upper left and would hide the prefix.
    """
    return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


ALL_ATTENTION_FUNCTIONS.register("prefixray", _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("prefixray", _mask)
