"""A packed trial's numbers are those of the trial alone, and those of the plain formulas on the stock model."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest
import torch
from support.tiny_bases import stock_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from prefixray.batching.batches import encode
from prefixray.batching.rows import Row
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.methods.prefix import Prefix
from prefixray.model.base import Base
from prefixray.model.binding.insert import Insert
from prefixray.model.binding.ragged import Ragged
from prefixray.training.member import Member, Seeds, learning_rate
from prefixray.training.pack import Pack, StepResult, _is_out_of_memory

MakeBase = Callable[[str, torch.dtype], Base]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of every parameter after all steps
NUM_STEPS = 25
FEW_STEPS = 8
SEEDS = Seeds.derive(1, 0)
EXAMPLES = tuple(
    Example(f"name : {name} | food : {food}" + " | area : riverside" * (i % 3), f"{name} serves {food}." + " Go." * i)
    for i, (name, food) in enumerate(
        [("The Eagle", "Chinese"), ("The Mill", "French"), ("Aromi", "English food and wine"), ("The Vaults", "tea")]
        * 3
    )
)
NETWORK = PrefixTrial(preseqlen=7, mid_dim=12, init_token=None, prefix_dropout=0.1)
INFIX = PrefixTrial(preseqlen=4, mid_dim=6, init_token=None, prefix_dropout=0.1, format_mode="infix")


def _trial(method: AnyTrial, learning_rate: float, *, batch_size: int = 2, **recipe: object) -> TrialConfig:
    whole = {
        "arm": "tested",
        "num_steps": NUM_STEPS,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        **recipe,
    }
    return TrialConfig(method=method, **whole)  # type: ignore[arg-type]


FLAT = _trial(PrefixTrial(preseqlen=3, mid_dim=None, init_token="restaurant"), 1e-2, batch_size=2, warmup_steps=4)
THREE = {
    "flat": FLAT,
    "network": _trial(NETWORK, 3e-3, batch_size=5, schedule="cosine", objective="sentence_sum", weight_decay=0.1),
    "words": _trial(
        PrefixTrial(preseqlen=None, mid_dim=8, init_token="table-to-text: food"),
        1e-3,
        batch_size=3,
        grad_accumulation=2,
    ),
}
MIXED = {
    "prefix": FLAT,
    "adapter": _trial(AdapterTrial(bottleneck=5), 3e-3, batch_size=4),
    "lora": _trial(LoraTrial(rank=3), 1e-3, batch_size=3, schedule="constant", max_grad_norm=None),
    "lora with dropout": _trial(LoraTrial(rank=2, alpha=3.0, dropout=0.3), 3e-3, batch_size=5),
    "infix": _trial(INFIX, 3e-3, batch_size=2),
    "infix of words": _trial(INFIX.model_copy(update={"mid_dim": None, "init_token": "food"}), 1e-2, batch_size=3),
    "embedding": _trial(NETWORK.model_copy(update={"prefix_mode": "embedding"}), 1e-3, batch_size=3),
    "adapters in sub-layers": _trial(AdapterTrial(bottleneck=4, design=2), 3e-3, batch_size=2),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
def test_packed_and_alone_agree_in_every_parameter(
    make_base: MakeBase, architecture: str, dtype: torch.dtype, trials: Mapping[str, TrialConfig]
) -> None:
    base = make_base(architecture, dtype)
    packed = _pack(base, trials)
    together = _steps(packed, trials, NUM_STEPS)
    scores = packed.evaluate(trials, _rows(base))
    for key, config in trials.items():
        lone = _pack(base, {key: config})
        outcomes = _steps(lone, [key], NUM_STEPS)
        _assert_same(packed.members[key], lone.members[key], TOLERANCE[dtype])
        for step, (ours, alone) in enumerate(zip(together, outcomes, strict=True)):
            assert ours[key].loss == pytest.approx(alone[key].loss, abs=TOLERANCE[dtype]), step
            assert ours[key].num_tokens == alone[key].num_tokens
        assert scores[key] == pytest.approx(lone.evaluate([key], _rows(base))[key], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_one_that_joins_and_one_that_leaves_change_nothing_for_the_third(
    make_base: MakeBase, architecture: str
) -> None:
    base, tolerance = make_base(architecture, torch.float64), TOLERANCE[torch.float64]
    changing = _pack(base, {"leaves": FLAT, "stays": THREE["network"]})
    _steps(changing, ["leaves", "stays"], 8)
    changing.drop("leaves")
    _steps(changing, ["stays"], 3)
    changing.admit("joins", THREE["words"], SEEDS)
    _steps(changing, ["joins", "stays"], NUM_STEPS - 11)
    for key, config, num_steps in (("stays", THREE["network"], NUM_STEPS), ("joins", THREE["words"], NUM_STEPS - 11)):
        lone = _pack(base, {key: config})
        _steps(lone, [key], num_steps)
        _assert_same(changing.members[key], lone.members[key], tolerance)


def test_one_that_pauses_goes_on_where_it_was(make_base: MakeBase) -> None:
    base = make_base("llama", torch.float64)
    pack, lone = _pack(base, THREE), _pack(base, {"flat": FLAT})
    _steps(lone, ["flat"], 10)
    _steps(pack, THREE, 4)
    _steps(pack, ["network", "words"], 3)
    _steps(pack, THREE, 6)
    _assert_same(pack.members["flat"], lone.members["flat"], TOLERANCE[torch.float64])


@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
def test_a_token_budget_that_cuts_into_many_micro_batches_gives_the_same_numbers(
    make_base: MakeBase, trials: Mapping[str, TrialConfig]
) -> None:
    base = make_base("gpt2", torch.float64)
    whole, cut = _pack(base, trials), _pack(base, trials, token_budget=60)
    _steps(whole, trials, FEW_STEPS)
    calls = _count_forwards(cut)
    _steps(cut, trials, FEW_STEPS)
    assert len(calls) > 5 * FEW_STEPS
    for key in trials:
        _assert_same(whole.members[key], cut.members[key], TOLERANCE[torch.float64])
    rows = _rows(base)
    assert cut.evaluate(trials, rows) == pytest.approx(whole.evaluate(trials, rows), abs=TOLERANCE[torch.float64])


@pytest.mark.parametrize("objective", ["token_mean", "sentence_sum"])
@pytest.mark.parametrize("method", [FLAT.method, NETWORK, LoraTrial(rank=2, dropout=0.3)], ids=lambda m: m.method)
def test_gradient_accumulation_equals_the_larger_batch(make_base: MakeBase, objective: str, method: AnyTrial) -> None:
    trials = {
        "large": _trial(method, 1e-2, batch_size=6, objective=objective),
        "accumulated": _trial(method, 1e-2, batch_size=2, grad_accumulation=3, objective=objective),
    }
    pack = _pack(make_base("llama", torch.float64), trials)
    _steps(pack, trials, FEW_STEPS)
    _assert_same(pack.members["large"], pack.members["accumulated"], TOLERANCE[torch.float64])


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
    trial = _trial(method, 1e-2, batch_size=len(EXAMPLES), **recipe)
    pack = _pack(base, {"network": THREE["network"], "checked": trial})
    made = pack.members["checked"].method
    assert isinstance(made, Prefix)
    tensors = {name: p.detach().clone().requires_grad_() for name, p in made.named_parameters()}
    stock, rows = stock_model(base), _rows(base)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in tensors.items()}
    for step, rate in enumerate((0.5e-2, 1e-2, 1e-2, 0.5e-2), start=1):
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
    trial = _trial(FinetuneTrial(), 1e-3, batch_size=len(EXAMPLES), schedule="constant", weight_decay=0.1)
    pack = _pack(base, {"finetune": trial})
    stock, rows = stock_model(base), _rows(base)
    stock.requires_grad_(True)
    parameters = dict(stock.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, foreach=False)
    for _ in range(4):
        nll = sum((_naive_nll(stock, row, None) for row in rows), torch.zeros(()))
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
    trials = {"finetune": _trial(FinetuneTrial(), 1e-3), "prefix": FLAT}
    pack = _pack(base, trials)
    initial = _parameters(pack.members["finetune"])
    _steps(pack, trials, 6)
    after = pack.base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in base.model.state_dict().items())
    moved = _parameters(pack.members["finetune"])
    assert [name for name in initial if torch.equal(initial[name], moved[name])] == []
    for key, config in trials.items():
        torch.manual_seed(99)  # its dropout draws from its own seed and step
        lone = _pack(base, {key: config})
        _steps(lone, [key], 6)
        _assert_same(pack.members[key], lone.members[key], TOLERANCE[torch.float64])


def test_a_finetune_has_the_models_own_dropout_in_training_only(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    pack = _pack(base, {"finetune": _trial(FinetuneTrial(), 1e-9, batch_size=len(EXAMPLES))})
    first, second = (outcomes["finetune"].loss for outcomes in _steps(pack, ["finetune"], 2))
    evaluated = pack.evaluate(["finetune"], _rows(base))["finetune"]
    assert abs(first - second) > 1e-4 < abs(first - evaluated)
    assert pack.evaluate(["finetune"], _rows(base))["finetune"] == evaluated


def test_a_low_precision_base_is_finetuned_in_full_precision(make_base: MakeBase) -> None:
    base = make_base("llama", torch.bfloat16)
    pack = _pack(base, {"finetune": _trial(FinetuneTrial(), 1e-5), "prefix": FLAT})
    initial = _parameters(pack.members["finetune"])
    outcomes = _steps(pack, pack.members, 3)
    moved = _parameters(pack.members["finetune"])
    assert {tensor.dtype for tensor in moved.values()} == {torch.float32}
    assert all(not torch.equal(initial[name], moved[name]) for name in initial)
    assert pack.base.model.dtype == torch.bfloat16
    assert all(math.isfinite(outcome.loss) for step in outcomes for outcome in step.values())


def test_a_low_precision_base_gives_the_same_losses_packed_and_alone(make_base: MakeBase) -> None:
    base = make_base("llama", torch.bfloat16)
    together = _steps(_pack(base, THREE), THREE, 10)
    for key, config in THREE.items():
        alone = _steps(_pack(base, {key: config}), [key], 10)
        assert [step[key].loss for step in together] == pytest.approx([step[key].loss for step in alone], abs=0.05)


@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_trial_whose_loss_is_not_finite_ends_alone(
    make_base: MakeBase, trials: Mapping[str, TrialConfig], poison: float
) -> None:
    base = make_base("llama", torch.float64)
    ends, *others = trials
    final = []
    for poisoned in (True, False):
        pack = _pack(base, trials)
        _steps(pack, trials, 5)
        if poisoned:
            with torch.no_grad():
                next(pack.members[ends].method.parameters()).fill_(poison)
            before = _state(pack.members[ends])
        outcomes = pack.step(trials)
        if poisoned:
            assert outcomes[ends].failed == "loss is not finite at step 6"
            assert pack.members[ends].step == 5
            assert _state(pack.members[ends]) == before
        assert [outcomes[key].failed for key in others] == [None] * len(others)
        pack.drop(ends)
        _steps(pack, others, 4)
        final.append([_state(pack.members[key]) for key in others])
    assert final[0] == final[1]


def test_a_learning_rate_that_is_far_too_high_ends_its_own_trial(make_base: MakeBase) -> None:
    trials = {"mad": _trial(FLAT.method, 3e38), "sane": FLAT}
    pack = _pack(make_base("gpt2", torch.float32), trials)
    for _ in range(NUM_STEPS):
        outcomes = pack.step(pack.members)
        if outcomes["mad"].failed is not None:
            break
    assert outcomes["mad"].failed is not None and outcomes["sane"].failed is None
    pack.drop("mad")
    assert all(math.isfinite(step["sane"].loss) for step in _steps(pack, ["sane"], 3))


def test_a_gradient_that_is_not_finite_ends_its_trial_before_its_update(make_base: MakeBase) -> None:
    base = make_base("llama", torch.float64)
    pack, lone = _pack(base, {"ends": FLAT, "stays": MIXED["lora"]}), _pack(base, {"stays": MIXED["lora"]})
    _steps(lone, ["stays"], 3)
    _steps(pack, pack.members, 2)
    next(pack.members["ends"].method.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = _state(pack.members["ends"])
    outcomes = pack.step(pack.members)
    assert outcomes["ends"].failed == "gradient is not finite at step 3" and math.isfinite(outcomes["ends"].loss)
    assert _state(pack.members["ends"]) == before
    _assert_same(pack.members["stays"], lone.members["stays"], TOLERANCE[torch.float64])


@pytest.mark.parametrize("nth_forward", [1, 4])
def test_out_of_memory_halves_the_budget_and_loses_nothing(make_base: MakeBase, nth_forward: int) -> None:
    base = make_base("gpt2", torch.float64)
    trials = {**THREE, "lora": MIXED["lora with dropout"]}
    undisturbed, pack = _pack(base, trials), _pack(base, trials, token_budget=200)
    _steps(undisturbed, trials, 8)
    _steps(pack, trials, 3)
    _fail_once(pack, nth_forward)
    outcomes = _steps(pack, trials, 5)
    assert pack.token_budget == 100
    assert all(outcome.failed is None for step in outcomes for outcome in step.values())
    for key in trials:
        _assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])


def test_out_of_memory_in_an_evaluation_is_evaluated_again(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    pack, rows = _pack(base, THREE, token_budget=200), _rows(base)
    wanted = pack.evaluate(THREE, rows)
    _fail_once(pack, 2)
    assert pack.evaluate(THREE, rows) == pytest.approx(wanted, abs=TOLERANCE[torch.float64])
    assert pack.token_budget == 100


def test_a_trial_that_does_not_fit_alone_ends_with_its_configuration_named_and_the_others_take_turns(
    make_base: MakeBase,
) -> None:
    base = make_base("gpt2", torch.float64)
    large = THREE | {"large": _trial(PrefixTrial(preseqlen=40, mid_dim=None, init_token=None), 1e-3)}
    undisturbed, pack = _pack(base, THREE), _pack(base, large, token_budget=200)
    _steps(undisturbed, THREE, 1)
    with _memory_for(pack, num_members=2, num_positions=30):
        outcomes = pack.step(large)
        assert math.isnan(pack.evaluate(["large"], _rows(base))["large"])
    assert [key for key, outcome in outcomes.items() if outcome.failed is not None] == ["large"]
    assert str(outcomes["large"].failed).startswith("out of memory alone and with one example at a time: method prefix")
    assert "preseqlen 40" in str(outcomes["large"].failed)
    assert pack.token_budget == 200, "the others go back to larger pieces"
    for key in THREE:
        _assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])


def test_a_cpu_without_memory_is_one_that_has_run_out_of_it() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    assert _is_out_of_memory(refused.value)
    assert not _is_out_of_memory(RuntimeError("the shapes differ"))


def test_an_evaluation_leaves_no_trace(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    trials = {**THREE, **MIXED}
    plain, pack = _pack(base, trials), _pack(base, trials)
    _steps(plain, trials, 4)
    for _ in range(4):
        assert pack.evaluate(trials, _rows(base)) == pack.evaluate(trials, _rows(base))
        pack.step(trials)
    assert [_state(pack.members[key]) for key in trials] == [_state(plain.members[key]) for key in trials]


def test_learning_rates_are_the_hand_worked_ones() -> None:
    def rates(schedule: str, warmup_steps: int) -> list[float]:
        trial = _trial(FLAT.method, 8.0, num_steps=6, warmup_steps=warmup_steps, schedule=schedule)
        return [learning_rate(trial, step) for step in range(6)]

    assert rates("linear", 2) == pytest.approx([4, 8, 8, 6, 4, 2])
    assert rates("linear", 0) == pytest.approx([8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6])
    half = 8 * (1 + math.sqrt(0.5)) / 2
    assert rates("cosine", 2) == pytest.approx([4, 8, 8, half, 4, 8 - half])
    assert rates("constant", 4) == pytest.approx([2, 4, 6, 8, 8, 8])
    assert rates("linear", 5) == pytest.approx([1.6, 3.2, 4.8, 6.4, 8, 8])


def test_the_seeds_of_a_replicate_are_shared_and_each_has_its_purpose() -> None:
    assert Seeds.derive(1, 0) == SEEDS
    all_of_them = [Seeds.derive(seed, replicate) for seed in (1, 2) for replicate in (0, 1)]
    assert len({number for seeds in all_of_them for number in (seeds.data, seeds.init, seeds.dropout)}) == 12


def _rows(base: Base) -> list[Row]:
    return encode(EXAMPLES, make_template(base, TaskConfig(name="e2e")))


def _pack(base: Base, trials: Mapping[str, TrialConfig], *, token_budget: int | None = None) -> Pack:
    """A pack with these members, on a copy of the base: the base itself stays as it is loaded."""
    own = replace(base, model=copy.deepcopy(base.model))
    pack = Pack(own, _rows(base), pad_id=0, token_budget=token_budget)
    for key, config in trials.items():
        pack.admit(key, config, SEEDS)
    return pack


def _steps(pack: Pack, keys: Iterable[str], count: int) -> list[dict[str, StepResult]]:
    names = list(keys)
    return [pack.step(names) for _ in range(count)]


def _parameters(member: Member) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in member.method.named_parameters()}


def _state(member: Member) -> dict[str, bytes]:
    """Every bit of a member's parameters and optimiser."""
    state = {}
    for name, parameter in member.method.named_parameters():
        state[name] = parameter.detach().numpy().tobytes()
        for kind, value in member.optimizer.state[parameter].items():
            state[f"{name} {kind}"] = value.numpy().tobytes()
    return state


def _assert_same(one: Member, other: Member, tolerance: float) -> None:
    ours, theirs = _parameters(one), _parameters(other)
    assert list(ours) == list(theirs) and one.step == other.step
    differences = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    assert max(differences.values()) < tolerance, differences


def _count_forwards(pack: Pack) -> list[None]:
    calls: list[None] = []
    pack.base.blocks()[-1][1].register_forward_pre_hook(lambda module, args: calls.append(None))
    return calls


@contextmanager
def _memory_for(pack: Pack, *, num_members: int, num_positions: int) -> Iterator[None]:
    """Let every forward run out of memory with more members, or a longer prefix, than this."""
    whole = pack.binder.bind

    def bind(
        inserts: Sequence[Insert],
        row_trial: Sequence[int],
        *,
        targets: tuple[Tensor, Tensor] | None = None,
        infix_starts: Sequence[int] = (),
        is_headless: bool = False,
        line: Ragged | None = None,
    ) -> AbstractContextManager[object]:
        if len(inserts) > num_members or any(insert.num_positions() > num_positions for insert in inserts):
            raise torch.OutOfMemoryError("no more")
        more = {"infix_starts": infix_starts, "is_headless": is_headless, "line": line}
        return whole(inserts, row_trial, targets=targets, **more)  # type: ignore[arg-type]

    pack.binder.bind = bind  # type: ignore[method-assign]
    yield
    pack.binder.bind = whole  # type: ignore[method-assign]


def _fail_once(pack: Pack, nth_forward: int) -> None:
    """Let the `nth_forward` from here on run out of memory."""
    calls = _count_forwards(pack)

    def fail(module: nn.Module, args: object) -> None:
        if len(calls) == nth_forward:
            raise torch.OutOfMemoryError("no more")

    pack.base.blocks()[-1][1].register_forward_pre_hook(fail)


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
    ids = torch.tensor([row.ids])
    logits: Tensor = stock(input_ids=ids, past_key_values=_cached(prefix)).logits
    log_p = logits[0].log_softmax(-1)
    places = range(row.num_prompt, len(row.ids))
    return -torch.stack([log_p[place - 1, row.ids[place]] for place in places]).sum()


def _labelled_nll(stock: PreTrainedModel, row: Row, prefix: Tensor) -> float:
    """The same by transformers' own loss, which computes in float32."""
    ids = torch.tensor([row.ids])
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
