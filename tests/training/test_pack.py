"""A packed trial's numbers are those of the trial alone, and those of the plain formulas on the stock model."""

import math
from collections.abc import Mapping

import pytest
import torch
from support.packs import (
    EXAMPLES,
    FLAT,
    MIXED,
    NETWORK,
    NUM_STEPS,
    SEEDS,
    THREE,
    TOLERANCE,
    MakeBase,
    assert_same,
    count_forwards,
    pack_of,
    parameters_of,
    rows_of,
    run_steps,
    state_of,
    trial_of,
)
from support.tiny_bases import stock_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefixray.batching.rows import Row
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base, checkpointed
from prefixray.training.pack import Pack

FEW_STEPS = 8


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
def test_packed_and_alone_agree_in_every_parameter(
    make_base: MakeBase, architecture: str, dtype: torch.dtype, trials: Mapping[str, TrialConfig]
) -> None:
    base, tolerance = make_base(architecture, dtype), TOLERANCE[dtype]
    if architecture == "llama":  # its norms round to fp32: on an AMD EPYC (Zen 5) a sum's last bit decides where to
        tolerance = max(tolerance, 1e-6)
    packed = pack_of(base, trials)
    together = run_steps(packed, trials, NUM_STEPS)
    scores = packed.evaluate(trials, rows_of(base))
    for key, config in trials.items():
        lone = pack_of(base, {key: config})
        outcomes = run_steps(lone, [key], NUM_STEPS)
        assert_same(packed.members[key], lone.members[key], tolerance)
        for step, (ours, alone) in enumerate(zip(together, outcomes, strict=True)):
            assert ours[key].loss == pytest.approx(alone[key].loss, abs=tolerance), step
            assert ours[key].num_tokens == alone[key].num_tokens
        assert scores[key] == pytest.approx(lone.evaluate([key], rows_of(base))[key], abs=tolerance)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_one_that_joins_and_one_that_leaves_change_nothing_for_the_third(
    make_base: MakeBase, architecture: str
) -> None:
    base, tolerance = make_base(architecture, torch.float64), TOLERANCE[torch.float64]
    changing = pack_of(base, {"leaves": FLAT, "stays": THREE["network"]})
    run_steps(changing, ["leaves", "stays"], 8)
    changing.drop("leaves")
    run_steps(changing, ["stays"], 3)
    changing.admit("joins", THREE["words"], SEEDS)
    run_steps(changing, ["joins", "stays"], NUM_STEPS - 11)
    for key, config, num_steps in (("stays", THREE["network"], NUM_STEPS), ("joins", THREE["words"], NUM_STEPS - 11)):
        lone = pack_of(base, {key: config})
        run_steps(lone, [key], num_steps)
        assert_same(changing.members[key], lone.members[key], tolerance)


def test_one_that_pauses_goes_on_where_it_was(make_base: MakeBase) -> None:
    base = make_base("llama", torch.float64)
    pack, lone = pack_of(base, THREE), pack_of(base, {"flat": FLAT})
    run_steps(lone, ["flat"], 10)
    run_steps(pack, THREE, 4)
    run_steps(pack, ["network", "words"], 3)
    run_steps(pack, THREE, 6)
    assert_same(pack.members["flat"], lone.members["flat"], TOLERANCE[torch.float64])


@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
def test_a_token_budget_that_cuts_into_many_micro_batches_gives_the_same_numbers(
    make_base: MakeBase, trials: Mapping[str, TrialConfig]
) -> None:
    base = make_base("gpt2", torch.float64)
    whole, cut = pack_of(base, trials), pack_of(base, trials, token_budget=60)
    run_steps(whole, trials, FEW_STEPS)
    calls = count_forwards(cut)
    run_steps(cut, trials, FEW_STEPS)
    assert len(calls) > 5 * FEW_STEPS
    for key in trials:
        assert_same(whole.members[key], cut.members[key], TOLERANCE[torch.float64])
    rows = rows_of(base)
    assert cut.evaluate(trials, rows) == pytest.approx(whole.evaluate(trials, rows), abs=TOLERANCE[torch.float64])


@pytest.mark.parametrize("objective", ["token_mean", "sentence_sum"])
@pytest.mark.parametrize("method", [FLAT.method, NETWORK, LoraTrial(rank=2, dropout=0.3)], ids=lambda m: m.method)
def test_gradient_accumulation_equals_the_larger_batch(make_base: MakeBase, objective: str, method: AnyTrial) -> None:
    trials = {
        "large": trial_of(method, 1e-2, batch_size=6, objective=objective),
        "accumulated": trial_of(method, 1e-2, batch_size=2, grad_accumulation=3, objective=objective),
    }
    pack = pack_of(make_base("llama", torch.float64), trials)
    run_steps(pack, trials, FEW_STEPS)
    assert_same(pack.members["large"], pack.members["accumulated"], TOLERANCE[torch.float64])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("objective", ["token_mean", "sentence_sum"])
@pytest.mark.parametrize("mid_dim", [None, 6])
def test_steps_are_those_of_the_plain_formula_on_the_stock_model(
    make_base: MakeBase, architecture: str, objective: str, mid_dim: int | None
) -> None:
    """Rows one by one, unpadded, the whole head, the prefix as a cache, AdamW and clipping written out."""
    base = make_base(architecture, torch.float64)
    method = PrefixTrial(preseqlen=4, mid_dim=mid_dim, init_token=None)
    recipe = {"num_steps": 4, "warmup_steps": 2, "objective": objective, "max_grad_norm": 0.03, "weight_decay": 0.2}
    trial = trial_of(method, 1e-2, batch_size=len(EXAMPLES), **recipe)
    pack = pack_of(base, {"network": THREE["network"], "checked": trial})
    made = pack.members["checked"].method
    assert isinstance(made, Prefix)
    tensors = {name: p.detach().clone().requires_grad_() for name, p in made.named_parameters()}
    stock, rows = stock_model(base), rows_of(base)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in tensors.items()}
    for step, rate in enumerate((0.0, 0.5e-2, 1e-2, 0.5e-2), start=1):
        nll = [_naive_nll(stock, row, _naive_prefix(tensors, base, num_positions=4)) for row in rows]
        num_tokens = sum(row.num_targets for row in rows)
        total = torch.stack(nll).sum()
        mean = total / (num_tokens if objective == "token_mean" else len(rows))
        gradients = dict(zip(tensors, torch.autograd.grad(mean, list(tensors.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        outcome = pack.step(["network", "checked"])["checked"]
        assert outcome.loss == pytest.approx(total.item() / num_tokens, abs=1e-10)
        assert outcome.grad_norm == pytest.approx(norm, rel=1e-10) and norm > 0.03
        assert outcome.num_tokens == num_tokens
        with torch.no_grad():
            for name, gradient in gradients.items():
                _naive_adamw(tensors[name], gradient * 0.03 / (norm + 1e-6), moments[name], step, rate)
    for name, parameter in made.named_parameters():
        assert (parameter - tensors[name]).abs().max() < 1e-10, name
    prefix = _naive_prefix(tensors, base, num_positions=4).detach()
    dev_loss = pack.evaluate(["checked"], rows)["checked"]
    naive = sum(_naive_nll(stock, row, prefix).item() for row in rows) / num_tokens
    assert dev_loss == pytest.approx(naive, abs=1e-10)
    labelled = sum(_labelled_nll(stock, row, prefix) for row in rows) / num_tokens
    assert dev_loss == pytest.approx(labelled, abs=1e-5)


def test_a_finetune_is_plain_training_of_the_stock_model(make_base: MakeBase) -> None:
    base = make_base("llama", torch.float64)  # its architecture has no dropout
    trial = trial_of(FinetuneTrial(), 1e-3, batch_size=len(EXAMPLES), schedule="constant", weight_decay=0.1)
    pack = pack_of(base, {"finetune": trial})
    stock, rows = stock_model(base), rows_of(base)
    stock.requires_grad_(True)
    parameters = dict(stock.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, foreach=False)
    for _ in range(4):
        nll = sum((_naive_nll(stock, row, None) for row in rows), torch.zeros((), device=stock.device))
        (nll / sum(row.num_targets for row in rows)).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        pack.step(["finetune"])
    own = pack.members["finetune"].method.own_model
    assert own is not None
    for name, parameter in own.named_parameters():
        assert (parameter - parameters[name]).abs().max() < 1e-10, name


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_finetune_trains_a_model_of_its_own_and_the_base_is_untouched(make_base: MakeBase, architecture: str) -> None:
    base = make_base(architecture, torch.float64)
    trials = {"finetune": trial_of(FinetuneTrial(), 1e-3), "prefix": FLAT}
    pack = pack_of(base, trials)
    initial = parameters_of(pack.members["finetune"])
    run_steps(pack, trials, 6)
    after = pack.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in base.model.state_dict().items())
    moved = parameters_of(pack.members["finetune"])
    assert [name for name in initial if torch.equal(initial[name], moved[name])] == []
    for key, config in trials.items():
        torch.manual_seed(99)  # its dropout draws from its own seed and step
        lone = pack_of(base, {key: config})
        run_steps(lone, [key], 6)
        assert_same(pack.members[key], lone.members[key], TOLERANCE[torch.float64])


def test_a_finetune_has_the_models_own_dropout_in_training_only(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    pack = pack_of(base, {"finetune": trial_of(FinetuneTrial(), 1e-9, batch_size=len(EXAMPLES))})
    first, second = (outcomes["finetune"].loss for outcomes in run_steps(pack, ["finetune"], 2))
    evaluated = pack.evaluate(["finetune"], rows_of(base))["finetune"]
    assert abs(first - second) > 1e-4 < abs(first - evaluated)
    assert pack.evaluate(["finetune"], rows_of(base))["finetune"] == evaluated


@pytest.mark.parametrize("architecture", ["gpt2", "bart", "t5"])
def test_the_dropout_of_a_finetune_does_not_depend_on_how_a_batch_was_cut(
    make_base: MakeBase, architecture: str
) -> None:
    config = trial_of(FinetuneTrial(), 1e-3, batch_size=len(EXAMPLES))
    packs = []
    for budget, is_checkpointed in ((2048, False), (64, True), (1, False)):
        base = make_base(architecture, torch.float64)
        base = checkpointed(base) if is_checkpointed else base
        packs.append(Pack(base, rows_of(base), pad_id=0, token_budget=budget))
        packs[-1].admit("finetune", config, SEEDS)
    losses = [[step["finetune"].loss for step in run_steps(pack, ["finetune"], 2)] for pack in packs]
    assert all(of_pack == pytest.approx(losses[0], rel=1e-9) for of_pack in losses[1:])
    for pack in packs[1:]:
        assert_same(pack.members["finetune"], packs[0].members["finetune"], 1e-9)


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_the_bases_dropout_is_each_trials_own_in_every_company(make_base: MakeBase, architecture: str) -> None:
    """Beside a trial without it, another with it, and in micro-batches of one row; never in an evaluation."""
    base = make_base(architecture, torch.float64)
    method = PrefixTrial(preseqlen=3, mid_dim=None, init_token=None)
    trials = {
        "drops": trial_of(method, 1e-2, batch_size=4, base_dropout=True),
        "adapter": trial_of(AdapterTrial(bottleneck=3), 1e-2, batch_size=3, base_dropout=True),
        "plain": trial_of(method, 1e-2, batch_size=4),
    }
    pack = pack_of(base, trials)
    before = pack.evaluate(trials, rows_of(base))
    together = run_steps(pack, trials, FEW_STEPS)
    assert before["drops"] == before["plain"] and abs(together[0]["drops"].loss - together[0]["plain"].loss) > 1e-4
    for key, config in trials.items():
        lone = pack_of(base, {key: config}, token_budget=1)
        run_steps(lone, [key], FEW_STEPS)
        assert_same(pack.members[key], lone.members[key], TOLERANCE[torch.float64])
    assert not base.model.training
    rows = rows_of(base)
    assert pack.evaluate(["drops"], rows) == pack.evaluate(["drops"], rows)


def test_the_bases_dropout_has_the_mean_of_stock_dropout(make_base: MakeBase) -> None:
    """The mean loss over 60 steps of a trial that does not move, against the stock model in training mode."""
    base = make_base("gpt2", torch.float64)
    method = PrefixTrial(preseqlen=3, mid_dim=None, init_token="restaurant")
    pack = pack_of(base, {"drops": trial_of(method, 1e-12, batch_size=len(EXAMPLES), num_steps=60, base_dropout=True)})
    ours = torch.tensor([step["drops"].loss for step in run_steps(pack, ["drops"], 60)])
    evaluated = pack.evaluate(["drops"], rows_of(base))["drops"]
    stock, rows = stock_model(base), rows_of(base)
    stock.train(True)
    torch.manual_seed(1)
    made = pack.members["drops"].method
    assert isinstance(made, Prefix)
    prefix = made.fold()["decoder"].detach()
    count = sum(row.num_targets for row in rows)
    with torch.no_grad():
        theirs = torch.tensor([sum(float(_naive_nll(stock, row, prefix)) for row in rows) / count for _ in range(60)])
    error = (ours.var() / 60 + theirs.var() / 60).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error, (ours.mean(), theirs.mean(), error)
    assert 0.5 < float(ours.std() / theirs.std()) < 2.0 and float(ours.std()) > 1e-5 and evaluated > 0


def test_a_low_precision_base_is_finetuned_in_full_precision(make_base: MakeBase) -> None:
    base = make_base("llama", torch.bfloat16)
    pack = pack_of(base, {"finetune": trial_of(FinetuneTrial(), 1e-5), "prefix": FLAT})
    initial = parameters_of(pack.members["finetune"])
    outcomes = run_steps(pack, pack.members, 3)
    moved = parameters_of(pack.members["finetune"])
    assert {tensor.dtype for tensor in moved.values()} == {torch.float32}
    assert all(not torch.equal(initial[name], moved[name]) for name in initial)
    assert pack.base.model.dtype == torch.bfloat16
    assert all(math.isfinite(outcome.loss) for step in outcomes for outcome in step.values())


def test_a_low_precision_base_gives_the_same_losses_packed_and_alone(make_base: MakeBase) -> None:
    base = make_base("llama", torch.bfloat16)
    together = run_steps(pack_of(base, THREE), THREE, 10)
    for key, config in THREE.items():
        alone = run_steps(pack_of(base, {key: config}), [key], 10)
        assert [step[key].loss for step in together] == pytest.approx([step[key].loss for step in alone], abs=0.05)


def test_an_evaluation_leaves_no_trace(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    trials = {**THREE, **MIXED}
    plain, pack = pack_of(base, trials), pack_of(base, trials)
    run_steps(plain, trials, 4)
    for _ in range(4):
        assert pack.evaluate(trials, rows_of(base)) == pack.evaluate(trials, rows_of(base))
        pack.step(trials)
    assert [state_of(pack.members[key]) for key in trials] == [state_of(plain.members[key]) for key in trials]


def _naive_prefix(tensors: Mapping[str, Tensor], base: Base, *, num_positions: int) -> Tensor:
    """Keys and values (2, L, K, P, D) from the trained tensors, as section 4.3 of the paper has them."""
    if "sites.decoder.rows.flat" in tensors:
        rows = tensors["sites.decoder.rows.flat"]
    else:
        embedding, w1, b1, w2, b2 = tensors.values()
        rows = torch.tanh(embedding @ w1.T + b1) @ w2.T + b2
    site = base.shape.sites["decoder"]
    by_layer = rows.view(num_positions, site.num_layers, 2, site.num_kv_heads, site.head_dim)
    return by_layer.permute(2, 1, 3, 0, 4)


def _cached(prefix: Tensor | None) -> DynamicCache:
    cache = DynamicCache()
    if prefix is not None:
        for layer, (keys, values) in enumerate(prefix.unbind(1)):
            cache.update(keys[None], values[None], layer)
    return cache


def _naive_nll(stock: PreTrainedModel, row: Row, prefix: Tensor | None) -> Tensor:
    """The negative log-likelihood of one row's target tokens."""
    ids = torch.tensor([row.ids], device=stock.device)
    logits: Tensor = stock(input_ids=ids, past_key_values=_cached(prefix)).logits
    log_p = logits[0].log_softmax(-1)
    places = range(row.num_prompt, len(row.ids))
    return -torch.stack([log_p[place - 1, row.ids[place]] for place in places]).sum()


def _labelled_nll(stock: PreTrainedModel, row: Row, prefix: Tensor) -> float:
    """The same by transformers' own loss, which computes in float32."""
    ids = torch.tensor([row.ids], device=stock.device)
    labels = ids.clone()
    labels[0, : row.num_prompt] = -100
    with torch.no_grad():
        loss = stock(input_ids=ids, labels=labels, past_key_values=_cached(prefix)).loss
    return float(loss) * row.num_targets


def _naive_adamw(parameter: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, rate: float) -> None:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with decay 0.2 on matrices."""
    first, second = moments
    first.mul_(0.9).add_(0.1 * gradient)
    second.mul_(0.999).add_(0.001 * gradient.square())
    decay = 0.2 if parameter.ndim > 1 else 0.0
    corrected = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    parameter -= rate * (corrected + decay * parameter)
