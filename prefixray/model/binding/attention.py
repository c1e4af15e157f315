"""Attention of rows to their trials' prefixes and to themselves, through transformers' attention interface.

The two functions at the end are registered under one name; a model that is set to that name calls them in every layer.
"""

# B rows, T trials, H query heads, K key/value heads, G = H / K, S queries, S' keys, P prefix positions, D head dim

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefixray.model.backend import backend_for
from prefixray.model.binding.bound import AttendingRows, Bound
from prefixray.model.binding.ragged import Ragged
from prefixray.model.binding.recorder import KVRecorder

IMPLEMENTATION = "prefixray"  # the name in transformers' interface


@dataclass(frozen=True)
class Place:
    """Where a model attends, and who knows what is bound there."""

    site: str
    layer: int
    bound: Callable[[], Bound | None]
    recorder: KVRecorder


@dataclass(frozen=True)
class _Group:
    """Tokens of rows that attend together, in rows of their own."""

    rows: AttendingRows
    query: Tensor  # (B, H, S, D)
    key: Tensor  # (B, K, S', D)
    value: Tensor
    mask: Tensor  # (B, 1, S, S'), True where a query may look


def set_place(module: nn.Module, place: Place) -> None:
    """Tell an attention module where in the model it stands."""
    vars(module)["_prefixray"] = place


def place_of(module: nn.Module) -> Place:
    """What `set_place` has told a module."""
    place: Place = vars(module)["_prefixray"]
    return place


def _attend(module: nn.Module, place: Place, group: _Group, **options: Any) -> Tensor:  # noqa: ANN401
    """Attention of rows to their trials' prefixes and to themselves, (B, S, H, D)."""
    rows, query, key, value = group.rows, group.query, group.key, group.value
    mask = rows.mask(place.site, group.mask, query, options.pop("position_bias", None))
    num_own = key.shape[2]
    if place.site in rows.sites:
        prefix = rows.sites[place.site].layers[place.layer]  # (T, 2, K, P, D)
        is_plain = options.get("softcap") is None and not options.get("dropout")
        if query.shape[2] == 1 and rows.is_even and is_plain:
            return _attend_from_one_token(query, key, value, prefix, mask, options.get("scaling"))
        prefix_key, prefix_value = prefix.index_select(0, rows.row_trials(query.shape[0])).unbind(1)  # (B, K, P, D)
        if rows.infixes is not None:
            prefix_key, prefix_value = rows.infixes.added(prefix_key, key), rows.infixes.added(prefix_value, value)
        key = torch.cat([prefix_key, key], dim=2)  # (B, K, P + S', D)
        value = torch.cat([prefix_value, value], dim=2)
    if options.get("dropout") and rows.dropout is not None and rows.numbers is not None:
        tensors = query, key, value
        return rows.dropout.attend(f"{place.site}/{place.layer}", tensors, mask, rows.numbers, options, num_own)
    return backend_for(query.device).attend(module, query, key, value, mask, **options)


def _attend_groups(
    module: nn.Module,
    place: Place,
    groups: Sequence[_Group],
    **options: Any,  # noqa: ANN401
) -> Sequence[Tensor]:
    """Attention in groups of rows that have the same prefixes."""
    rows = groups[0].rows
    is_plain = place.site in rows.sites and not options.get("dropout") and options.get("softcap") is None
    if not (is_plain and rows.has_long_prefix):
        return [_attend(module, place, group, **options) for group in groups]
    prefix = rows.sites[place.site].layers[place.layer].squeeze(0)  # (2, K, P, D)
    tensors = []
    for group in groups:
        mask = group.rows.mask(place.site, group.mask, group.query, None)
        tensors.append((group.query, group.key, group.value, mask[..., prefix.shape[2] :]))
    return backend_for(prefix.device).attend_to_long_prefix(tensors, prefix, options.get("scaling"))


def _attend_unpadded(
    place: Place, bound: Bound, line: Ragged, tensors: tuple[Tensor, Tensor, Tensor], options: dict[str, Any]
) -> Tensor | None:
    """Attention of a line's tokens, (1, N, H, D), where the device does without padding; None where it cannot."""
    backend = backend_for(tensors[0].device)
    is_plain = options.get("softcap") is None and not options.get("dropout")
    if not (is_plain and backend.attends_unpadded(tensors[0]) and bound.line_prefixes is not None):
        return None
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in tensors)  # (N, H, D), (N, K, D)
    prefix = bound.line_prefixes[place.layer]
    return backend.attend_unpadded(query, key, value, line.own_spans, prefix, options.get("scaling"))[None]


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

    # Scores of the prefix, trial by trial, and of the row's own keys, row by row.
    prefix_key, prefix_value = prefix.unbind(1)  # (T, K, P, D)
    query = query.view(num_rows, num_kv, groups, dim)
    if mask.shape[1] == num_heads:
        mask = mask.view(num_rows, num_kv, groups, -1)  # else (B, 1, 1, P + S')
    shared = by_row(by_trial(query) @ prefix_key.transpose(2, 3))  # (B, K, G, P)
    scores = torch.cat([shared, query @ key.transpose(2, 3)], dim=3) * (scaling or dim**-0.5) + mask

    # One softmax over both, and the values of both.
    weights = torch.softmax(scores, dim=3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    shared, own = weights.split([num_positions, key.shape[2]], dim=3)
    output: Tensor = by_row(by_trial(shared) @ prefix_value) + own @ value  # (B, K, G, D)
    return output.reshape(num_rows, 1, num_heads, dim)


def _attention(
    module: nn.Module,
    query: Tensor,  # (B, H, S, D)
    key: Tensor,  # (B, K, S', D)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, S, S'), True where a query may look
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function under our name."""
    place = place_of(module)
    bound = place.bound()
    place.recorder.note(place.site, place.layer, key, value)
    if bound is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if bound.cache is not None:
        return bound.cache.attend(place.layer, query, key, value, options.get("scaling")), None
    if bound.ragged is not None:
        output = _attend_unpadded(place, bound, bound.ragged, (query, key, value), options)
        if output is not None:
            return output, None
        tensors = (bound.ragged.spread(tokens) for tokens in (query, key, value))
        groups = itertools.starmap(_Group, zip(bound.groups, *tensors, bound.ragged.causal, strict=True))
        outputs: list[Tensor] = []
        for _, alike in itertools.groupby(groups, key=lambda group: id(group.rows.sites)):
            outputs += _attend_groups(module, place, list(alike), **options)
        return bound.ragged.joined(outputs), None
    assert attention_mask is not None, "the mask function never leaves the mask out"
    return _attend(module, place, _Group(bound.rows, query, key, value, attention_mask), **options), None


def _mask(**arguments: Any) -> Tensor | None:  # noqa: ANN401
    """Transformers' mask function under our name: sdpa's, never left out.

    sdpa's own causal flag is aligned to the upper left and would hide the prefix.
    """
    return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)
