"""Functions of trials on the outputs of modules: adapters and low-rank updates, each on its own trial's rows."""

# B rows, S tokens; in a line B tokens, and S is 1

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefixray.model.binding.bound import Bound, Segment
from prefixray.model.binding.insert import LineTokens, SharedUpdate, Slot, StackedRows
from prefixray.model.binding.model_ref import ModelRef
from prefixray.model.binding.ragged import Ragged
from prefixray.model.uploads import Uploads

Put = Callable[[Tensor], Tensor]  # moves a small tensor to the device


class RowHooks:
    """Hooks on the modules of a model; a module gets one hook when a function first names it."""

    def __init__(self, model: ModelRef, bound: Callable[[], Bound | None]) -> None:
        self._model, self._bound = model, bound
        self._hooked: set[str] = set()

    def install(self, names: Iterable[str]) -> None:
        """Hook these modules, unless they are hooked already."""
        for name in names:
            if name not in self._hooked:
                self._hooked.add(name)
                hook = functools.partial(self._apply, name)
                self._model().get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    def prepare(self, bound: Bound, put: Put) -> None:
        """Find where the rows of trials that share updates stand; all modules of a trial share them with the same."""
        for name in dict.fromkeys(
            name for segment in bound.segments for name in itertools.islice(segment.functions, 1)
        ):
            for shared, segments in _sharing(bound.segments, name):
                _rows_of(bound, shared, segments, 1, put)

    def _apply(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        named: dict[str, Any],
        output: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Give each trial's rows of the module's input and output to that trial's function."""
        bound = self._bound()
        if bound is None or not bound.has_functions(name):
            return None
        given: Tensor = args[0] if args else named["hidden_states"]
        plain = output[0] if isinstance(output, tuple) else output  # (B, S, width)
        num_rows, is_flat = bound.segments[-1].end, plain.ndim == 2  # of OPT's feed-forward layers: (B * S, width)
        if is_flat:
            given, plain = given.unflatten(0, (num_rows, -1)), plain.unflatten(0, (num_rows, -1))
        elif bound.ragged is not None:
            given, plain = given.transpose(0, 1), plain.transpose(0, 1)
        repeats = plain.shape[0] // num_rows  # beam search repeats rows in place
        changed = _apart(bound.segments, name, given, plain, repeats)
        for shared, segments in _sharing(bound.segments, name):
            rows = _rows_of(bound, shared, segments, repeats, Uploads(plain.device).add)
            changed = shared(given, changed, rows)
        if is_flat:
            changed = changed.flatten(0, 1)
        elif bound.ragged is not None:
            changed = changed.transpose(0, 1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _apart(segments: Sequence[Segment], name: str, given: Tensor, plain: Tensor, repeats: int) -> Tensor:
    """The output after the functions of trials that share no update."""
    functions = [segment.functions.get(name) for segment in segments]
    if all(function is None or isinstance(function, Slot) for function in functions):
        return plain
    pieces = []
    for function, segment in zip(functions, segments, strict=True):
        rows = slice(segment.start * repeats, segment.end * repeats)
        if function is None or isinstance(function, Slot):
            pieces.append(plain[rows])
        else:
            pieces.append(function(given[rows], plain[rows]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _sharing(segments: Sequence[Segment], name: str) -> Iterable[tuple[SharedUpdate, list[tuple[int, Segment]]]]:
    """The updates that trials share at a module: each with those trials' numbers in it, and their rows."""
    found: dict[int, tuple[SharedUpdate, list[tuple[int, Segment]]]] = {}
    for segment in segments:
        slot = segment.functions.get(name)
        if isinstance(slot, Slot):
            found.setdefault(id(slot.shared), (slot.shared, []))[1].append((slot.index, segment))
    return found.values()


def _rows_of(
    bound: Bound, shared: SharedUpdate, segments: Sequence[tuple[int, Segment]], repeats: int, put: Put
) -> StackedRows:
    """Where the rows of the trials that share an update stand, each so often. It is found once for all modules."""
    places = tuple((index, segment.start * repeats, segment.end * repeats) for index, segment in segments)
    key = shared.is_gated and bound.ragged is not None, places
    if key not in bound.stacked_rows:
        line = None if bound.ragged is None else _line_tokens(bound.ragged, places, shared.num_trials, put)
        if key[0]:
            rows = StackedRows([], None, 0, None)
        else:
            rows = _stacked(places, shared.num_trials, bound.segments[-1].end * repeats, put)
        bound.stacked_rows[key] = replace(rows, line=line)
    return bound.stacked_rows[key]


def _stacked(segments: Sequence[tuple[int, int, int]], num_trials: int, num_rows: int, put: Put) -> StackedRows:
    """The rows from a start to an end, of each of these trials of an update."""
    indices = [index for index, _, _ in segments]
    counts = [end - start for _, start, end in segments]
    most = max(counts)
    chosen = None if indices == list(range(num_trials)) else put(torch.tensor(indices))
    if min(counts) == most and sum(counts) == num_rows:
        return StackedRows(indices, chosen, most, None)
    own = [torch.arange(count) for count in counts]
    rows = torch.cat([start + numbers for numbers, (_, start, _) in zip(own, segments, strict=True)])
    places = torch.cat([most * trial + numbers for trial, numbers in enumerate(own)])
    sources = torch.tensor([start for _, start, _ in segments]).repeat_interleave(most)
    sources[places] = rows
    return StackedRows(indices, chosen, most, put(sources), put(rows), put(places))


def _line_tokens(line: Ragged, segments: Sequence[tuple[int, int, int]], num_trials: int, put: Put) -> LineTokens:
    trials = torch.full((line.edges[-1],), num_trials)
    for index, start, end in segments:
        trials[start:end] = index
    num_positions = int(line.positions.max()) + 1
    positions = trials.clamp(max=num_trials - 1) * num_positions + line.positions  # of others' tokens any will do
    return LineTokens(put(trials), put(positions), num_positions)
