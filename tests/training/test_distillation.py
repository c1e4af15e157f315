"""Trials that distill a teacher have the divergence's losses and gradients, alone and beside trials that do not."""

import math
from collections.abc import Sequence

import pytest
import torch
from support.packs import (
    EXAMPLES,
    INFIX,
    NETWORK,
    SEEDS,
    TOLERANCE,
    MakeBase,
    assert_same,
    pack_of,
    run_steps,
    trial_of,
)
from support.taught import taught_rows
from support.tiny_bases import stock_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from prefixray.batching.lessons import taught_tokens, teach
from prefixray.batching.rows import Row
from prefixray.config.trials import AdapterTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data.teacher import Teacher
from prefixray.errors import UserError
from prefixray.methods.prefix import Prefix
from prefixray.model.uploads import Uploads
from prefixray.training import loss
from prefixray.training.loss import Head, Objective, losses_of_hidden, losses_of_logits
from prefixray.training.pack import Pack

WIDTH, VOCABULARY, NUM_KEPT = 8, 50, 6
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}
DISTILLED = {
    "prefix": trial_of(NETWORK, 3e-3, batch_size=5, objective="distill"),
    "prefix, tempered": trial_of(
        PrefixTrial(preseqlen=3, mid_dim=None, init_token="food"), 1e-2, objective="distill", temperature=2.5
    ),
    "lora": trial_of(LoraTrial(rank=3, dropout=0.3), 1e-3, batch_size=3, objective="distill", temperature=0.7),
    "adapter": trial_of(AdapterTrial(bottleneck=5), 3e-3, batch_size=4, objective="distill"),
    "infix": trial_of(INFIX, 3e-3, objective="distill", grad_accumulation=2),
}
BESIDE = {
    "cross-entropy": trial_of(NETWORK, 3e-3, batch_size=4),
    "smoothed": trial_of(LoraTrial(rank=2), 3e-3, batch_size=3, objective="sentence_sum", label_smoothing=0.1),
}


def _outcomes(likelihoods: Tensor, ids: Tensor) -> Tensor:
    """Those of the tokens and of all others together, (n, k + 1)."""
    kept = likelihoods.gather(1, ids)
    is_other = torch.ones_like(likelihoods).scatter(1, ids, 0.0)
    return torch.cat([kept, (likelihoods * is_other).sum(dim=1, keepdim=True)], dim=1)


def _divergence(logits: Tensor, teacher: Teacher, temperature: float) -> Tensor:
    """The definition, over the whole vocabulary."""
    given = torch.cat([torch.tensor(teacher.log_p), torch.tensor(teacher.tail)[:, None]], dim=1).to(logits).exp()
    found = _outcomes(logits.softmax(dim=1), torch.tensor(teacher.ids).long())
    p, q = (part ** (1 / temperature) for part in (given, found))
    p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(dim=1)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("is_plain", [False, True], ids=["fast", "plain"])
def test_losses_and_gradients_are_those_of_the_definition_beside_other_losses(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_plain: bool
) -> None:
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1" if is_plain else "")
    monkeypatch.setattr(loss, "CHUNK_MULTIPLE", 4)
    monkeypatch.setitem(loss.CHUNK, "cpu", 5)
    monkeypatch.setitem(loss.BLOCK, "cpu", 2 * VOCABULARY)
    draw = torch.Generator().manual_seed(1)
    module = nn.Linear(WIDTH, VOCABULARY).to(dtype).requires_grad_(False)
    lengths, temperatures = (3, 4, 1, 7), (1.0, None, 3.0, 0.5)
    logits = [3 * torch.randn(length, VOCABULARY, generator=draw) for length in lengths]
    rows = [
        Row((1,) * (length + 1), 1, teacher=teach(of_row, NUM_KEPT))
        for length, of_row in zip(lengths, logits, strict=True)
    ]
    exact, count = torch.promote_types(dtype, torch.float32), sum(lengths)
    taught = taught_tokens(rows, temperatures, dtype=exact, to=Uploads(torch.device("cpu")))
    assert taught is not None and taught.others.tolist() == [3, 4, 5, 6]
    hidden = torch.randn(count, WIDTH, generator=draw).to(dtype)
    ids = torch.randint(0, VOCABULARY, (count,), generator=draw)
    smoothing = torch.zeros(count, dtype=exact).index_fill(0, taught.others, 0.1)
    weights = torch.rand(count, generator=draw, dtype=exact)

    ours, whole, defined = (hidden.clone().requires_grad_() for _ in range(3))
    objective = Objective(weights, smoothing)
    found = losses_of_hidden(Head(module), ours, ids, objective, taught)
    from_logits = losses_of_logits(module(whole), ids, objective, taught)
    student = module(defined).to(exact)
    expected = -student.log_softmax(dim=1).gather(1, ids[:, None])[:, 0]
    smoothed = (1 - smoothing) * expected - smoothing * student.log_softmax(dim=1).mean(dim=1)
    parts = []
    for of_row, nll, row, temperature in zip(
        student.split(lengths), smoothed.split(lengths), rows, temperatures, strict=True
    ):
        assert row.teacher is not None
        parts.append(nll if temperature is None else _divergence(of_row, row.teacher, temperature))
    defined_losses = torch.cat(parts)
    (weights * defined_losses).sum().backward()

    tolerance = EXACT[dtype]
    assert ours.grad is not None and whole.grad is not None and defined.grad is not None
    for gradient in (ours.grad, whole.grad):
        assert torch.allclose(gradient, defined.grad, atol=tolerance) and gradient[taught.tokens].abs().max() > 0.05
    reported = torch.where(smoothing > 0, expected, defined_losses)
    for losses in (found, from_logits, losses_of_hidden(Head(module), hidden, ids, None, taught)):
        assert torch.allclose(losses, reported, atol=tolerance)


def test_the_tails_inside_is_all_that_is_missing_of_the_whole_divergence() -> None:
    """The chain rule of the divergence; and with all but one token kept, nothing is missing."""
    draw = torch.Generator().manual_seed(2)
    teacher, student = (3 * torch.randn(40, VOCABULARY, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = teacher.softmax(dim=1), student.softmax(dim=1)
    whole = (p * (p / q).log()).sum(dim=1)
    missing = []
    for num_kept in (1, 5, 20, VOCABULARY - 1, 2 * VOCABULARY):
        row = Row((1,) * 41, 1, teacher=teach(teacher, num_kept))
        taught = taught_tokens([row], [1.0], dtype=torch.float64, to=Uploads(torch.device("cpu")))
        assert taught is not None
        is_other = torch.ones_like(p).scatter(1, taught.lessons.ids, 0.0)
        inside_p, inside_q = (part * is_other / (part * is_other).sum(dim=1, keepdim=True) for part in (p, q))
        terms = inside_p * (inside_p / inside_q).log()
        inside = (p * is_other).sum(dim=1) * torch.where(is_other > 0, terms, 0.0).sum(dim=1)
        found = losses_of_logits(student, torch.zeros(40).long(), None, taught)
        assert torch.allclose(found, whole - inside, atol=1e-5)  # the teacher is kept in float32
        missing.append(float((whole - found).mean()))
    assert missing[0] > 0.3 > missing[2] > 1e-3 and missing == sorted(missing, reverse=True)
    assert abs(missing[3]) < 1e-6 and abs(missing[4]) < 1e-6


def test_outcomes_that_are_next_to_impossible_have_losses_and_slopes() -> None:
    sure = Teacher(*(torch.tensor(part).numpy() for part in ([[0, 1]], [[0.0, -200.0]], [-math.inf])))  # type: ignore[arg-type]
    hidden = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    taught = taught_tokens([Row((1, 1), 1, teacher=sure)], [1.0], dtype=torch.float32, to=Uploads(torch.device("cpu")))
    module = nn.Linear(3, 3, bias=False).requires_grad_(False)
    module.weight.copy_(torch.eye(3))
    objective = Objective(torch.ones(1), torch.zeros(1), is_smoothed=False)
    found = losses_of_hidden(Head(module), hidden, torch.tensor([0]), objective, taught)
    assert found.tolist() == [300.0]
    assert hidden.grad is not None and hidden.grad.tolist() == [[-1.0, 1.0, 0.0]]


def test_a_model_is_no_distance_from_itself_at_any_temperature() -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3))
    row = Row((1,) * 6, 1, teacher=teach(logits, NUM_KEPT))
    for temperature in (0.3, 1.0, 4.0):
        taught = taught_tokens([row], [temperature], dtype=torch.float64, to=Uploads(torch.device("cpu")))
        assert taught is not None
        assert losses_of_logits(logits.double(), torch.zeros(5).long(), None, taught).abs().max() < 1e-9


# No Llama: its norm computes in float32, and rounds gradients of shared prompts once, those of whole rows one by one.
@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_packed_and_alone_agree_in_every_parameter(make_base: MakeBase, architecture: str) -> None:
    base, tolerance = make_base(architecture, torch.float64), TOLERANCE[torch.float64]
    trials = {**DISTILLED, **BESIDE}
    if base.shape.is_encoder_decoder:
        del trials["infix"]
    packed = _taught_pack(make_base, architecture, trials)
    together = run_steps(packed, trials, 4)
    scores = packed.evaluate(trials, packed.train)
    for key, config in trials.items():
        lone = _taught_pack(make_base, architecture, {key: config})
        outcomes = run_steps(lone, [key], 4)
        assert_same(packed.members[key], lone.members[key], tolerance)
        for ours, alone in zip(together, outcomes, strict=True):
            assert ours[key].loss == pytest.approx(alone[key].loss, abs=tolerance)
        assert scores[key] == pytest.approx(lone.evaluate([key], lone.train)[key], abs=tolerance)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_steps_and_the_dev_loss_are_those_of_the_plain_formula_on_the_stock_model(
    make_base: MakeBase, architecture: str
) -> None:
    """Rows one by one, unpadded, the whole vocabulary, the prefix as a cache, the teacher with its document."""
    method = PrefixTrial(preseqlen=4, mid_dim=None, init_token=None)
    recipe = {"objective": "distill", "temperature": 2.0, "max_grad_norm": None}
    trial = trial_of(method, 1e-2, batch_size=len(EXAMPLES), **recipe)
    pack = _taught_pack(make_base, architecture, {"checked": trial, "beside": BESIDE["smoothed"]})
    assert len({row.ids[: row.num_prompt] for row in pack.train}) < len(pack.train)  # some share their prompt
    base, rows = pack.base, pack.train
    stock, made = stock_model(base), pack.members["checked"].method
    assert isinstance(made, Prefix)
    prefix = made.fold()["decoder"].detach().requires_grad_()
    count = sum(row.num_targets for row in rows)
    dev_loss = pack.evaluate(["checked"], rows)["checked"]
    assert dev_loss == pytest.approx(float(_total(stock, rows, prefix.detach(), 1.0)) / count, abs=1e-10)
    mean = _total(stock, rows, prefix, 2.0) / count
    mean.backward()
    outcome = pack.step(["checked", "beside"])["checked"]
    assert outcome.loss == pytest.approx(float(mean.detach()), abs=1e-10)
    assert prefix.grad is not None
    assert outcome.grad_norm == pytest.approx(float(prefix.grad.norm()), rel=1e-10) and outcome.grad_norm > 0.01


def test_training_comes_nearer_to_the_teacher(make_base: MakeBase) -> None:
    trials = {
        "prefix": trial_of(PrefixTrial(preseqlen=8, mid_dim=None, init_token="food"), 0.1, objective="distill"),
        "finetuned": trial_of(FinetuneTrial(), 1e-3, batch_size=6, objective="distill"),
    }
    pack = _taught_pack(make_base, "llama", trials)
    before = pack.evaluate(trials, pack.train)
    run_steps(pack, trials, 15)
    after = pack.evaluate(trials, pack.train)
    assert all(0 < after[key] < 0.8 * before[key] for key in trials), (before, after)


def test_rows_without_a_teacher_are_not_distilled(make_base: MakeBase) -> None:
    with pytest.raises(UserError, match="arm tested: objective: distill: the task has no teacher"):
        pack_of(make_base("gpt2", torch.float32), {"lora": DISTILLED["lora"]})


def _taught_pack(make_base: MakeBase, architecture: str, trials: dict[str, TrialConfig]) -> Pack:
    base = make_base(architecture, torch.float64)
    pack = Pack(base, taught_rows(base, NUM_KEPT), pad_id=0)
    for key, config in trials.items():
        pack.admit(key, config, SEEDS)
    return pack


def _total(stock: PreTrainedModel, rows: Sequence[Row], prefix: Tensor, temperature: float) -> Tensor:
    """The divergences of all target tokens, given keys and values (2, L, K, P, D)."""
    losses = []
    for row in rows:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(prefix.unbind(1)):
            cache.update(keys[None], values[None], layer)
        logits = stock(input_ids=torch.tensor([row.ids[:-1]]), past_key_values=cache).logits[0, row.num_prompt - 1 :]
        assert row.teacher is not None
        losses.append(_divergence(logits, row.teacher, temperature).sum())
    return torch.stack(losses).sum()
