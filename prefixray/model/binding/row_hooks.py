"""Functions of trials on the outputs of modules: adapters and low-rank updates, each on its own trial's rows."""

# B rows, S tokens

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefixray.model.binding.bound import Bound, Segment
from prefixray.model.binding.insert import SharedUpdate, Slot, StackedRows
from prefixray.model.uploads import Uploads

Put = Callable[[Tensor], Tensor]  # moves a small tensor to the device


class RowHooks:
    """Hooks on the modules of a model; a module gets one hook when a function first names it."""

    def __init__(self, model: nn.Module, bound: Callable[[], Bound | None]) -> None:
        self._modules, self._bound = dict(model.named_modules()), bound
        self._hooked: set[str] = set()

    def install(self, names: Iterable[str]) -> None:
        """Hook these modules, unless they are hooked already."""
        for name in names:
            if name not in self._hooked:
                self._hooked.add(name)
                hook = functools.partial(self._apply, name)
                self._modules[name].register_forward_hook(hook, with_kwargs=True)

    def prepare(self, bound: Bound, num_rows: int, put: Put) -> None:
        """Find where the rows of trials that share updates stand; all modules of a trial share them with the same."""
        for name in dict.fromkeys(
            name for segment in bound.segments for name in itertools.islice(segment.functions, 1)
        ):
            for shared, segments in _sharing(bound.segments, name):
                _rows_of(bound, segments, shared.num_trials, (num_rows, 1), put)

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
        repeats = plain.shape[0] // bound.rows.row_trial.shape[0]  # beam search repeats rows in place
        changed = _apart(bound.segments, name, given, plain, repeats)
        for shared, segments in _sharing(bound.segments, name):
            put = Uploads(plain.device).add
            rows = _rows_of(bound, segments, shared.num_trials, (plain.shape[0], repeats), put)
            changed = rows.add(changed, shared(rows.take(plain if shared.reads_output else given), rows))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _apart(segments: Sequence[Segment], name: str, given: Tensor, plain: Tensor, repeats: int) -> Tensor:
    """The output after the functions of trials that share no update."""
    pieces, has_any = [], False
    for segment in segments:
        rows = slice(segment.start * repeats, segment.end * repeats)
        function = segment.functions.get(name)
        if function is None or isinstance(function, Slot):
            pieces.append(plain[rows])
        else:
            has_any = True
            pieces.append(function(given[rows], plain[rows]))
    if not has_any:
        return plain
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
    bound: Bound, segments: Sequence[tuple[int, Segment]], num_trials: int, size: tuple[int, int], put: Put
) -> StackedRows:
    """Where the rows of these trials stand. It is found once for all modules.

    `size`: the number of rows, and how often each stands there.
    """
    num_rows, repeats = size
    key = tuple((index, segment.start * repeats, segment.end * repeats) for index, segment in segments)
    if key not in bound.stacked_rows:
        bound.stacked_rows[key] = _place(key, num_trials, num_rows, put)
    return bound.stacked_rows[key]


def _place(segments: Sequence[tuple[int, int, int]], num_trials: int, num_rows: int, put: Put) -> StackedRows:
    indices = [index for index, _, _ in segments]
    counts = [end - start for _, start, end in segments]
    most = max(counts)
    chosen = None if indices == list(range(num_trials)) else put(torch.tensor(indices))
    if min(counts) == most and sum(counts) == num_rows:
        return StackedRows(indices, chosen, most, None)
    rows = [row for _, start, end in segments for row in range(start, end)]
    places = [most * trial + row for trial, count in enumerate(counts) for row in range(count)]
    sources = [num_rows] * (most * len(segments))
    for row, place in zip(rows, places, strict=True):
        sources[place] = row
    moved = put(torch.tensor([*sources, *rows, *places])).split([len(sources), len(rows), len(rows)])
    return StackedRows(indices, chosen, most, *moved)
