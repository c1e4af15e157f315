"""What a base can be used for, found by running a few tokens through it.

Families differ in more than their configurations say; what a pack relies on is tried once when it is made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prefixray.batching.batches import collate, collate_line
from prefixray.batching.rows import Row, Tree
from prefixray.errors import UserError, first_line
from prefixray.model.attention import Binder, Insert
from prefixray.model.base import Base
from prefixray.model.ragged import Ragged
from prefixray.training.prefill import Prompt, extended

_UNFIT = "rows do not go on from the keys and values of their beginnings, which prefixes and shared prompts need"


def check_continued(base: Base, binder: Binder) -> None:
    """Refuse a decoder-only base of which rows, cut in two, are not what they are whole.

    Its tokens look ahead, or hand on more than the keys and values of one attention per layer: a state, say. Losses of
    rows that share a prompt would be wrong, and whatever is decoded. In bf16 a deep base's own rounding reaches a tenth
    of the logits.
    """
    if base.shape.is_encoder_decoder:
        return
    ids = torch.arange(1, 1 + min(6, base.shape.max_positions or 6), device=base.device)[None]
    begun, rest = ids.tensor_split([ids.shape[1] // 2], dim=1)
    prompt = Prompt(0, tuple(begun[0].tolist()), begun.shape[1])
    try:
        with torch.no_grad():
            whole, before = (base.model(input_ids=some, use_cache=False).logits.double() for some in (ids, begun))
            inserts = extended(binder, [Insert()], [prompt], pad_id=0, device=base.device)
            places = torch.arange(rest.shape[1], device=base.device)[None]
            with binder.bind(inserts, [0]):
                after = base.model(input_ids=rest, position_ids=places, use_cache=False).logits.double()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(f"base: {base.name}: {_UNFIT}: {first_line(error)}; take another base") from error
    apart = float((torch.cat([before, after], dim=1) - whole).abs().max() / whole.abs().max())
    if not apart <= (0.3 if base.model.dtype in (torch.bfloat16, torch.float16) else 0.01):
        raise UserError(f"base: {base.name}: {_UNFIT} (logits are {apart:.0%} apart); take another base")


def knows_lines(base: Base, binder: Binder) -> bool:
    """Whether rows that run one behind another have the logits that they have side by side.

    In a line a token looks at all of its row so far. A base that looks back less far is given no longer rows (see
    `describe`); one whose attention is cut into chunks does not run lines. What bf16 rounds otherwise grows from layer
    to layer, to a tenth of the logits in a deep base: there a line is known by what it may and may not depend on.
    """
    if base.shape.is_encoder_decoder or getattr(base.model.config, "attention_chunk_size", None) is not None:
        return False
    forked, alone = Tree((1, 2), (Row((3, 4), 1), Row((3, 5, 4), 1))), Row((5, 4, 3, 2, 1), 1)
    batch = collate([Row((1, 2, 3, 4), 3), Row((1, 2, 3, 5, 4), 3), alone], pad_id=0, device=base.device)
    with binder.bind([Insert()], [0, 0, 0], targets=batch.targets), torch.no_grad():
        beside = base.model(**batch.inputs, use_cache=False).logits.double()
    in_line = torch.cat(_line_logits(base, binder, [forked, alone])).double()
    apart = (in_line - beside).abs().max() / beside.abs().max()
    if base.model.dtype not in (torch.bfloat16, torch.float16):
        return bool(apart <= 1e-3)
    return bool(apart <= 0.05 or (apart <= 0.3 and _is_row_by_row(base, binder)))


def _is_row_by_row(base: Base, binder: Binder) -> bool:
    """Whether a row of a line looks back over itself alone and has the same logits, to the bit, wherever it stands.

    And whether a branch of a tree looks back over itself and the trunk alone.
    """
    row, other, third = (1, 2, 3, 4, 5), Row((4, 4, 2, 1), 1), Row((5, 3, 1, 2, 4), 1)

    def first(*ids: int) -> Tensor:
        return _line_logits(base, binder, [Row(ids, 1), other, third])[0]

    def second_branch(trunk: int, before: int) -> Tensor:
        tree = Tree((trunk, 2), (Row((5, before, 1), 1), Row((5, 3, 2), 1)))
        return _line_logits(base, binder, [tree, other])[0][-2:]

    own, early, late = first(*row), first(6, *row[1:]), first(*row[:3], 6, 5)
    *_, behind = _line_logits(base, binder, [third, other, Row(row, 1)])
    if not (torch.equal(own, behind) and torch.equal(own[:3], late[:3]) and not torch.equal(own[3], early[3])):
        return False
    branch = second_branch(1, 4)
    return torch.equal(branch, second_branch(1, 6)) and not torch.equal(branch, second_branch(6, 4))


def _line_logits(base: Base, binder: Binder, rows: Sequence[Row | Tree]) -> list[Tensor]:
    """At the targets of each row, (num_targets, V), in one line without prefixes."""
    batch, starts = collate_line(rows, device=base.device), [row.starts for row in rows]
    line = Ragged([row.num_inputs for row in rows], [range(len(rows))], base.device, starts=starts)
    with binder.bind([Insert()], [0] * len(rows), targets=batch.targets, line=line), torch.no_grad():
        logits: Tensor = base.model(**batch.inputs, use_cache=False).logits
    return list(logits.split([row.num_targets for row in rows]))
