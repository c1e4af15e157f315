"""Functions of trials on the outputs of modules: adapters and low-rank updates, each on its own trial's rows."""

# B rows, S tokens

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prefixray.model.binding.bound import Bound


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
        pieces = []
        for segment in bound.segments:
            rows = slice(segment.start * repeats, segment.end * repeats)
            function = segment.functions.get(name)
            pieces.append(plain[rows] if function is None else function(given[rows], plain[rows]))
        changed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
