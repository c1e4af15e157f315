"""Attention of a line without padding, against plain attention under a mask, in float64: outputs, gradients, steps."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from support.flash_on_cpu import install
from support.packs import MakeBase
from torch import Tensor

from prefixray.batching.batches import collate_line
from prefixray.batching.rows import Row
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.model.base import Base, checkpointed
from prefixray.model.binding import attention
from prefixray.model.binding.binder import Binder
from prefixray.model.binding.insert import Insert
from prefixray.model.binding.ragged import Ragged
from prefixray.model.fast_cuda import unpadded
from prefixray.model.uploads import Uploads
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

TOLERANCE = 1e-10
LENGTHS, STARTS, ROW_TRIAL = [5, 9, 4, 3], [(), (3, 5, 6), (), (1, 2)], [0, 0, 1, 1]  # rows, their branches, trials
HEADS, KV_HEADS, DIM = 4, 2, 8
METHODS = {
    "short": PrefixTrial(preseqlen=3, mid_dim=8, init_token=None),
    "long": PrefixTrial(preseqlen=70, mid_dim=None, init_token=None, prefix_dropout=0.3),
}


@pytest.fixture
def flash_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases on this CPU run as on a GPU, whose flash attention also knows float64."""
    run_as_on_gpu(monkeypatch)


@pytest.mark.parametrize("starts", [[()] * 4, STARTS], ids=["rows", "trees"])
@pytest.mark.parametrize("num_positions", [(), (6, 2)], ids=["without prefixes", "with prefixes"])
def test_attention_without_padding_is_attention_under_a_mask(
    starts: Sequence[Sequence[int]], num_positions: Sequence[int]
) -> None:
    install()
    line = Ragged(LENGTHS, [[0, 1, 2, 3]], Uploads(torch.device("cpu")), starts=starts)
    num_tokens, num_prefix = len(line.token_rows), sum(num_positions)
    torch.manual_seed(1)
    fused = torch.randn(num_tokens, HEADS + 2 * KV_HEADS, DIM, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(2, num_prefix, KV_HEADS, DIM, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(num_tokens, HEADS, DIM, dtype=torch.float64)
    weights[sum(LENGTHS) :] = 0.0  # of fillers, whose output nobody reads

    def results(output: Tensor) -> list[Tensor]:
        wanted = (fused, prefix) if num_prefix else (fused,)
        return [output.detach() * (weights != 0), *torch.autograd.grad(output, wanted, weights)]

    split = fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    with_prefix = (*prefix.unbind(), line.prefix_spans(ROW_TRIAL, num_positions)) if num_prefix else None
    found = results(unpadded.attend(*split, line.own_spans, with_prefix, 0.3))

    # Plain: all tokens and all prefixes as keys, and a mask.
    query, key, value = split
    keys, values = (torch.cat([of_prefix, own]) for of_prefix, own in zip(prefix, (key, value), strict=True))
    mask = torch.cat([_sees_prefix(num_tokens, num_positions), _sees_own(num_tokens, starts)], dim=1)
    scores = torch.einsum("nhd,mhd->hnm", query, keys.repeat_interleave(HEADS // KV_HEADS, 1)) * 0.3
    shares = scores.masked_fill(~mask, -torch.inf).softmax(2)
    expected = results(torch.einsum("hnm,mhd->nhd", shares, values.repeat_interleave(HEADS // KV_HEADS, 1)))
    for ours, plain in zip(found, expected, strict=True):
        assert torch.allclose(ours, plain, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_pack_attends_without_padding_with_the_numbers_of_groups(
    make_base: MakeBase, name: str, is_checkpointed: bool, flash_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(attention, "_attend_groups", lambda *_, **__: calls.append(1))
    found = _steps(make_base(name, torch.float64), is_checkpointed=is_checkpointed)
    assert not calls
    monkeypatch.undo()
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1")
    for ours, plain in zip(found, _steps(make_base(name, torch.float64)), strict=True):
        assert torch.allclose(ours, plain, rtol=0, atol=TOLERANCE if name == "gpt2" else 1e-6)  # Llama's norms: fp32


def test_trials_with_and_without_prefixes_attend_in_groups(make_base: MakeBase, flash_here: None) -> None:
    base = make_base("gpt2", torch.float64)
    draw = torch.Generator().manual_seed(1)
    prefix = torch.randn(2, 2, 4, 3, 8, generator=draw, dtype=torch.float64)
    inserts, rows = [Insert(), Insert({"decoder": prefix})], [Row((7, 8, 9), 1), Row((5, 6, 5, 6), 2)]
    together = _logits(base, inserts, rows)
    alone = [_logits(base, [insert], [row]) for insert, row in zip(inserts, rows, strict=True)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=TOLERANCE)


def test_flash_takes_what_cudas_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, widest in (((7, 5), 0), ((8, 0), 256), ((8, 6), 192), ((9, 0), 256), ((12, 0), 256)):
        unpadded._widest_head.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda known=capability: known)
        sizes = [size for size in range(4, 300, 4) if unpadded.knows(torch.bfloat16, size)]
        assert sizes == list(range(8, widest + 1, 8))
        assert not unpadded.knows(torch.float32, 64)
    unpadded._widest_head.cache_clear()
    monkeypatch.undo()


def _logits(base: Base, inserts: Sequence[Insert], rows: Sequence[Row]) -> Tensor:
    """At the targets of rows in a line, the i-th under the i-th insert."""
    batch = collate_line(rows, to=Uploads(base.device))
    line = Ragged([row.num_inputs for row in rows], [range(len(rows))], Uploads(base.device))
    binding = Binder.of(base.model).bind(inserts, range(len(rows)), targets=batch.targets, line=line)
    with binding, torch.no_grad():
        logits: Tensor = base.model(**batch.inputs, use_cache=False).logits
    return logits


def _sees_own(num_tokens: int, starts: Sequence[Sequence[int]]) -> Tensor:
    """(N, N): a token sees its trunk and its own branch, up to itself."""
    mask, first = torch.eye(num_tokens, dtype=torch.bool), 0
    for length, own in zip(LENGTHS, starts, strict=True):
        edges = [0, *own, length]
        for start, end in itertools.pairwise(edges):
            for token in range(start, end):
                mask[first + token, first : first + edges[1]] = start > 0
                mask[first + token, first + start : first + token + 1] = True
        first += length
    return mask


def _sees_prefix(num_tokens: int, num_positions: Sequence[int]) -> Tensor:
    """(N, P of all trials)."""
    trials = [trial for length, trial in zip(LENGTHS, ROW_TRIAL, strict=True) for _ in range(length)]
    trials += [trials[-1]] * (num_tokens - len(trials))
    owners = [trial for trial, count in enumerate(num_positions) for _ in range(count)]
    return torch.tensor([[trial == owner for owner in owners] for trial in trials], dtype=torch.bool)


def _steps(base: Base, *, is_checkpointed: bool = False) -> list[Tensor]:
    """Losses, scores and trained tensors after three steps of two trials, in several micro-batches."""
    draw = torch.Generator().manual_seed(1)
    rows = [Row(tuple(torch.randint(5, 50, (n,), generator=draw).tolist()), 1 + n // 3) for n in (5, 9, 14, 3, 8)]
    rows += [Row((*rows[2].ids[:5], *target), 5) for target in ((7, 8, 9), (9, 7))]  # of the third one's source
    pack = Pack(checkpointed(base) if is_checkpointed else base, rows, pad_id=0, token_budget=60)
    assert pack.layout.knows_lines
    for key, method in METHODS.items():
        recipe = {"learning_rate": 1e-2, "num_steps": 3, "batch_size": 7}
        pack.admit(key, TrialConfig(arm=key, method=method, **recipe), Seeds(1, 2, 3))  # type: ignore[arg-type]
    losses = [outcome.loss for _ in range(3) for outcome in pack.step(METHODS).values()]
    scores = pack.evaluate(METHODS, rows)
    trained = [p.detach() for key in METHODS for p in pack.members[key].method.parameters()]
    return [torch.tensor([*losses, *scores.values()], dtype=torch.float64), *trained]
