"""Per-row prefixes, adapters and low-rank updates inside the forward of one frozen transformers model.

`Binder` attaches to a model once. While something is bound, every row of a batch belongs to a trial: attention puts that
trial's keys and values in front of the row's own, positions are shifted by its number of prefix positions, and hooks on
blocks and projections apply that trial's adapters. Rows of different trials share one forward. With nothing bound the
model is the stock model.

The way in is transformers' attention interface: a function registered by name for attention and for masks.
"""

# B rows, T trials, L layers, H query heads, K key/value heads, G = H / K, S tokens, P prefix positions, D head dim

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

RowFunction = Callable[[Tensor, Tensor], Tensor]  # (input of the module, output of the module) -> new output


@dataclass(frozen=True)
class Insert:
    """What one trial puts into the model: a prefix, or functions on the outputs of named modules, or nothing."""

    prefix: Tensor | None = None  # (2, L, K, P, D): keys and values of every layer
    functions: Mapping[str, RowFunction] = field(default_factory=dict)

    @property
    def num_positions(self) -> int:
        """P: how many prefix positions come before the row's first token."""
        return 0 if self.prefix is None else self.prefix.shape[3]


@dataclass
class _Bound:
    row_trial: Tensor  # (B,)
    lengths: Tensor  # (T,) prefix positions of each trial
    prefixes: Tensor | None  # (T, 2, L, K, P, D), padded on the right of P
    functions: list[Mapping[str, RowFunction]]  # per trial
    segments: list[tuple[int, int, int]]  # (trial, first row, end row): rows of a trial stand together
    padded: bool  # some trial has fewer than P positions
    targets: tuple[Tensor, Tensor] | None  # rows (N,) and columns (N,) that the head is run on

    def row_trials(self, num_rows: int) -> Tensor:
        """The trial of each row; beam search repeats rows in place."""
        repeats = num_rows // self.row_trial.shape[0]
        return self.row_trial if repeats == 1 else self.row_trial.repeat_interleave(repeats)


class Binder:
    """Binds trials to the rows of a model's forwards."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._bound: _Bound | None = None
        self._recorded: list[tuple[Tensor, Tensor]] | None = None
        self._hooked: set[str] = set()
        self._modules = dict(model.named_modules())
        layer = 0
        for module in self._modules.values():
            if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx"):
                module._prefixray = (self, layer)  # type: ignore[assignment]
                layer += 1
        assert layer == model.config.get_text_config().num_hidden_layers, "one attention per layer"
        decoder = model.base_model
        decoder.register_forward_pre_hook(self._shift_positions, with_kwargs=True)
        head = model.get_output_embeddings()
        assert head is not None, "a language model has a head"
        head.register_forward_pre_hook(self._select_targets)
        model.set_attn_implementation("prefixray")

    @contextmanager
    def bind(
        self, inserts: Sequence[Insert], row_trial: Sequence[int], *, targets: tuple[Tensor, Tensor] | None = None
    ) -> Iterator[None]:
        """Bind trial `row_trial[b]`'s insert to row b. Rows of one trial must stand together.

        With `targets`, rows (N,) and columns (N,), the head runs on those positions alone: logits are (N, vocabulary).
        Keep the binding until backward has run: gradient checkpointing repeats the forward there.
        """
        assert self._bound is None, "a binding is already active"
        for insert in inserts:
            self._hook(insert.functions)
        device = self._model.device
        segments = _segments(row_trial)
        longest = max(insert.num_positions for insert in inserts)
        prefixes = None
        if longest > 0:
            prefixes = self._stack(inserts, longest)
        self._bound = _Bound(
            row_trial=torch.tensor(row_trial, device=device),
            lengths=torch.tensor([insert.num_positions for insert in inserts], device=device),
            prefixes=prefixes,
            functions=[insert.functions for insert in inserts],
            segments=segments,
            padded=any(insert.num_positions < longest for insert in inserts),
            targets=targets,
        )
        try:
            yield
        finally:
            self._bound = None

    def record(self, input_ids: Tensor) -> Tensor:
        """Run the model over tokens (1, S) and return every layer's keys and values: (2, L, K, S, D)."""
        self._recorded = []
        try:
            with torch.no_grad():
                self._model(input_ids=input_ids, use_cache=False)
            keys = torch.stack([key[0] for key, _ in self._recorded])
            values = torch.stack([value[0] for _, value in self._recorded])
        finally:
            self._recorded = None
        return torch.stack([keys, values])

    def _stack(self, inserts: Sequence[Insert], longest: int) -> Tensor:
        """All trials' prefixes as (T, 2, L, K, P, D), zeros behind a shorter one."""
        given = next(insert.prefix for insert in inserts if insert.prefix is not None)
        none = given.new_zeros(given.shape).narrow(3, 0, 0)
        parts = [none if insert.prefix is None else insert.prefix for insert in inserts]
        dtype = self._model.dtype
        return torch.stack([functional.pad(part.to(dtype), (0, 0, 0, longest - part.shape[3])) for part in parts])

    def _shift_positions(
        self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Positions start behind the prefix (the original's policy for GPT-2)."""
        if self._bound is None or self._bound.prefixes is None:
            return None
        positions = inputs.get("position_ids")
        assert positions is not None, "position_ids are always passed to a decoder-only model"
        input_ids = args[0] if args else inputs.get("input_ids")
        num_rows = (input_ids if input_ids is not None else inputs["inputs_embeds"]).shape[0]
        shift = self._bound.lengths[self._bound.row_trials(num_rows)][:, None]  # (B, 1)
        return args, {**inputs, "position_ids": positions + shift}

    def _select_targets(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The head's input at the bound target positions: (B, S, width) -> (N, width)."""
        if self._bound is None or self._bound.targets is None:
            return None
        return (args[0][self._bound.targets], *args[1:])

    def _hook(self, names: Mapping[str, RowFunction]) -> None:
        for name in names:
            if name not in self._hooked:
                self._hooked.add(name)
                self._modules[name].register_forward_hook(self._row_hook(name))

    def _row_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        """A forward hook that gives each trial's rows to that trial's function."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            bound = self._bound
            if bound is None or not any(name in functions for functions in bound.functions):
                return None
            plain = output[0] if isinstance(output, tuple) else output  # (B, S, width)
            repeats = plain.shape[0] // bound.row_trial.shape[0]
            pieces = []
            for trial, start, end in bound.segments:
                rows = slice(start * repeats, end * repeats)
                function = bound.functions[trial].get(name)
                pieces.append(plain[rows] if function is None else function(args[0][rows], plain[rows]))
            changed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook


def _segments(row_trial: Sequence[int]) -> list[tuple[int, int, int]]:
    segments: list[tuple[int, int, int]] = []
    for row, trial in enumerate(row_trial):
        if segments and segments[-1][0] == trial:
            segments[-1] = (trial, segments[-1][1], row + 1)
        else:
            assert all(trial != other for other, _, _ in segments), "rows of one trial must stand together"
            segments.append((trial, row, row + 1))
    return segments


def _attention(
    module: nn.Module,
    query: Tensor,  # (B, H, S, D)
    key: Tensor,  # (B, K, S', D)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, S, S'), True where a query may look
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function under the name "prefixray"."""
    binder, layer = module._prefixray  # type: ignore[misc]
    if binder._recorded is not None:
        binder._recorded.append((key, value))
    bound = binder._bound
    if bound is None or bound.prefixes is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert attention_mask is not None, "the mask function never leaves the mask out"
    rows = bound.row_trials(query.shape[0])
    num_trials, _, _, _, longest, _ = bound.prefixes.shape
    prefix = bound.prefixes[:, :, layer]  # (T, 2, K, P, D)
    if num_trials == 1:
        prefix_key, prefix_value = (part.expand(query.shape[0], -1, -1, -1) for part in prefix[0])
    else:
        prefix_key, prefix_value = prefix[:, 0][rows], prefix[:, 1][rows]  # (B, K, P, D)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
    if bound.padded:
        columns = torch.arange(longest, device=query.device)
        seen = (columns < bound.lengths[rows][:, None])[:, None, None]  # (B, 1, 1, P)
    seen = seen.expand(query.shape[0], 1, query.shape[2], longest)
    key = torch.cat([prefix_key, key], dim=2)
    value = torch.cat([prefix_value, value], dim=2)
    mask = torch.cat([seen, attention_mask.expand(query.shape[0], -1, -1, -1)], dim=3)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


def _mask(**arguments: Any) -> Tensor | None:
    """Transformers' mask function under the name "prefixray": sdpa's, never left out.

    sdpa's own causal flag is aligned to the upper left and would hide the prefix.
    """
    return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


ALL_ATTENTION_FUNCTIONS.register("prefixray", _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("prefixray", _mask)
