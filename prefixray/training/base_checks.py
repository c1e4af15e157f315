"""What a base can be used for: whether rows may be cut in two or run in a line, and which trials it has room for.

Families differ in more than their configurations say. So a new pack runs a few tokens through the base and looks
whether the logits are those that it relies on.
"""

# B rows, N target tokens, V vocabulary

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import transformers
from torch import Tensor

from prefixray.batching.batches import collate, collate_line
from prefixray.batching.rows import Row, Tree
from prefixray.batching.template import Template
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import AnyTrial
from prefixray.data import Sourced
from prefixray.data.documents import Document
from prefixray.errors import UserError, first_line
from prefixray.methods import build_method
from prefixray.methods.contract import Method, Recorder
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.binding.ragged import Ragged
from prefixray.model.uploads import Uploads
from prefixray.training.prefill import Prompt, extended

_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
_OF_DEVICE = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS")
_UNFIT = "rows do not go on from the keys and values of their beginnings, which prefixes and shared prompts need"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no more memory; torch has no class for a CPU's, nor for that of CUDA's libraries."""
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError)


def has_device_failed(error: BaseException) -> bool:
    """Whether the device or its libraries have failed, not for want of memory: the process can use it no more."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or any(text in str(error) for text in _OF_DEVICE)


def shown(method: AnyTrial) -> str:
    """The values of a method, for messages."""
    return ", ".join(f"{key} {value}" for key, value in method.model_dump(exclude_none=True).items())


def check_continued(base: Base, binder: Binder) -> None:
    """Refuse a base that prefixes do not reach, and rows of which have other logits when they are cut in two.

    Raises `UserError`, and errors of the device as they are.

    Tokens of such a base look ahead, or depend on more of what came before than the keys and values of one attention
    per layer: on a state, for example. Losses of rows that share a prompt would be wrong, and so would decoding. The
    tolerance is wide in bf16, where the rounding of a deep base reaches a tenth of the logits.
    """
    if base.shape.is_encoder_decoder:
        _check_reached(base, binder)
        return
    ids = torch.arange(1, 1 + min(6, base.shape.max_positions or 6), device=base.device)[None]
    first, second = ids.tensor_split([ids.shape[1] // 2], dim=1)
    prompt = Prompt(0, tuple(first[0].tolist()), first.shape[1])
    try:
        with torch.no_grad():
            uncut, before = (base.model(input_ids=part, use_cache=False).logits.double() for part in (ids, first))
            inserts = extended(binder, [Insert()], [prompt], pad_id=0, device=base.device)
            positions = torch.arange(second.shape[1], device=base.device)[None]
            with binder.bind(inserts, [0]):
                after = base.model(input_ids=second, position_ids=positions, use_cache=False).logits.double()
    except RuntimeError as error:
        if is_out_of_memory(error) or has_device_failed(error):
            raise
        raise UserError(f"base: {base.name}: {_UNFIT}: {first_line(error)}; take another base") from error
    apart = float((torch.cat([before, after], dim=1) - uncut).abs().max() / uncut.abs().max())
    if not apart <= (0.3 if base.model.dtype in (torch.bfloat16, torch.float16) else 0.01):
        raise UserError(f"base: {base.name}: {_UNFIT} (logits are {apart:.0%} apart); take another base")


def _check_reached(base: Base, binder: Binder) -> None:
    """Refuse an encoder-decoder whose logits are the same with a prefix at one of its sites as without one.

    T5 is such a base in versions of transformers where its attention does not call the common interface.
    """
    inserts, draw = [Insert()], torch.Generator().manual_seed(1)
    for name, site in base.shape.sites.items():
        drawn = torch.randn(2, site.num_layers, site.num_kv_heads, 3, site.head_dim, generator=draw)
        inserts.append(Insert({name: drawn.to(base.device, base.model.dtype)}))
    ids = torch.arange(1, 5, device=base.device).expand(len(inserts), -1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    with binder.bind(inserts, range(len(inserts))), torch.no_grad():
        plain, *changed = base.model(**inputs, use_cache=False).logits.double()
    apart = [float((logits - plain).abs().max() / plain.abs().max()) for logits in changed]
    missed = [name for name, share in zip(base.shape.sites, apart, strict=True) if share < 1e-6]
    if missed:
        raise UserError(
            f"base: {base.name}: prefixes do not reach the attention of {type(base.model).__name__} in transformers "
            f"{transformers.__version__} (sites: {', '.join(missed)}); install the version that prefixray asks for "
            "(pip install -U prefixray), or take another base"
        )


def knows_lines(base: Base, binder: Binder) -> bool:
    """Whether rows have the same logits one behind another, in a line, as side by side.

    In a line a token looks at all of its row so far. A base whose attention is cut into chunks does not run lines; a
    base that looks back less far is given no longer rows (see `describe`). In bf16 the rounding of a deep base reaches
    a tenth of the logits; so what the logits of a line may and may not depend on is tried as well.
    """
    if base.shape.is_encoder_decoder or getattr(base.model.config, "attention_chunk_size", None) is not None:
        return False
    forked, alone = Tree((1, 2), (Row((3, 4), 1), Row((3, 5, 4), 1))), Row((5, 4, 3, 2, 1), 1)
    batch = collate([Row((1, 2, 3, 4), 3), Row((1, 2, 3, 5, 4), 3), alone], pad_id=0, to=Uploads(base.device))
    with binder.bind([Insert()], [0, 0, 0], targets=batch.targets), torch.no_grad():
        beside = base.model(**batch.inputs, use_cache=False).logits.double()  # (N, V)
    in_line = torch.cat(_line_logits(base, binder, [forked, alone])).double()
    apart = (in_line - beside).abs().max() / beside.abs().max()
    if base.model.dtype not in (torch.bfloat16, torch.float16):
        return bool(apart <= 1e-3)
    return bool(apart <= 0.05 or (apart <= 0.3 and _is_row_by_row(base, binder)))


def _is_row_by_row(base: Base, binder: Binder) -> bool:
    """Whether rows of a line look back over themselves alone, and branches of a tree over themselves and the trunk.

    Then a row has the same logits, to the bit, wherever it stands in the line.
    """
    ids, other, third = (1, 2, 3, 4, 5), Row((4, 4, 2, 1), 1), Row((5, 3, 1, 2, 4), 1)

    def first_row(*ids: int) -> Tensor:
        return _line_logits(base, binder, [Row(ids, 1), other, third])[0]

    def second_branch(trunk: int, before: int) -> Tensor:
        tree = Tree((trunk, 2), (Row((5, before, 1), 1), Row((5, 3, 2), 1)))
        return _line_logits(base, binder, [tree, other])[0][-2:]

    # Logits must not depend on the row's place or on later tokens, and must depend on earlier tokens.
    in_front, changed_early, changed_late = first_row(*ids), first_row(6, *ids[1:]), first_row(*ids[:3], 6, 5)
    *_, behind = _line_logits(base, binder, [third, other, Row(ids, 1)])
    is_causal = torch.equal(in_front[:3], changed_late[:3]) and not torch.equal(in_front[3], changed_early[3])
    if not (torch.equal(in_front, behind) and is_causal):
        return False

    # A branch must not depend on the branch before it, and must depend on the trunk.
    branch = second_branch(1, 4)
    return torch.equal(branch, second_branch(1, 6)) and not torch.equal(branch, second_branch(6, 4))


def _line_logits(base: Base, binder: Binder, rows: Sequence[Row | Tree]) -> list[Tensor]:
    """At the targets of each row, (num_targets, V), in one line without prefixes."""
    uploads, starts = Uploads(base.device), [row.starts for row in rows]
    batch = collate_line(rows, to=uploads)
    line = Ragged([row.num_inputs for row in rows], [range(len(rows))], uploads, starts=starts)
    with binder.bind([Insert()], [0] * len(rows), targets=batch.targets, line=line), torch.no_grad():
        logits: Tensor = base.model(**batch.inputs, use_cache=False).logits
    return list(logits.split([row.num_targets for row in rows]))


class Room:
    """The positions that a decoder-only base has beside the longest rows: its rows share them with their prefix."""

    def __init__(
        self, base: Base, template: Template, test_sources: Sequence[Sourced], longest: int, max_new_tokens: int
    ) -> None:
        """`longest`: tokens of the longest example; `max_new_tokens`: what a tuned model will decode."""
        self._base, self._template, self._test_sources = base, template, test_sources
        self._longest, self._max_new_tokens = longest, max_new_tokens

    def check(self, method: Method) -> None:
        """Refuse a trial whose prefix leaves no room for the longest example, or for decoding the longest source."""
        insert, limit = method.insert(None), self._base.shape.max_positions
        num_positions = insert.num_positions() + insert.infix_length
        if limit is None or self._base.shape.is_encoder_decoder:  # there, positions are not shifted by a prefix
            return
        if num_positions + self._longest > limit:
            raise UserError(
                f"preseqlen: {num_positions}: with the longest example ({self._longest} tokens) beyond the {limit} "
                f"positions of {self._base.name}; lower preseqlen, task.max_source_tokens or task.max_target_tokens"
            )
        if num_positions + self._longest_source + self._max_new_tokens > limit:
            prefix = f" behind a prefix of {num_positions}" if num_positions else ""
            raise UserError(
                f"final.max_new_tokens: {self._max_new_tokens}: with the longest test source ({self._longest_source} "
                f"tokens{prefix}) beyond the {limit} positions of {self._base.name}; lower it"
                + (", preseqlen" if prefix else "")
                + " or task.max_source_tokens"
            )

    @cached_property
    def _longest_source(self) -> int:
        """Tokens of the longest prompt that the final stage decodes."""
        sources = [example.source for example in self._test_sources]
        return max(map(len, self._template.encode_sources(sources)), default=0)


def check_arms(
    arms: Sequence[ArmConfig], base: Base, binder: Binder, room: Room, *, document: Document | None = None
) -> None:
    """Refuse arms of which an end of a range cannot be built on this base: `UserError` with all that is wrong.

    `document` is that of the fewest tokens which trials are about, where the task has any.
    """
    problems: dict[str, None] = {}
    for arm in arms:
        methods = [arm.trial(values).method for values in arm.corners()] if not arm.exclusive else []
        sketches, record = {method.sketch(): method for method in methods}, recorded_once(binder.record)
        for sketch, method in sorted(sketches.items(), key=lambda pair: -(getattr(pair[0], "preseqlen", 0) or 0)):
            try:
                with torch.no_grad():
                    seeds = {"init_seed": 0, "dropout_seed": 0}
                    room.check(build_method(sketch, base, record, **seeds, document=document))
            except UserError as error:
                problems |= {f"arms.{arm.name}.{problem}": None for problem in error.problems}
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                problems[f"arms.{arm.name}: out of memory while it is built: {shown(method)}; make it smaller"] = None
    if problems:
        raise UserError(*problems)


def recorded_once(record: Recorder) -> Recorder:
    """Record token ids as `record` does; where others that have run begin with them, take their part of that.

    An encoder sees later tokens too, so what it gives here is good for a look at shapes, not for training.
    """
    runs: list[tuple[list[int], Mapping[str, Tensor]]] = []

    def recorded(tokens: Tensor) -> Mapping[str, Tensor]:
        if tokens.is_floating_point():  # embeddings
            return record(tokens)
        (ids,) = tokens.tolist()
        for longer, parts in runs:
            if longer[: len(ids)] == ids:
                return {site: part[..., : len(ids), :] for site, part in parts.items()}
        runs.append((ids, record(tokens)))
        return runs[-1][1]

    return recorded
