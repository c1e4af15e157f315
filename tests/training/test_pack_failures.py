"""Trials whose numbers are not finite, or that memory has no room for: the others train on as if nothing had been."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from support.packs import (
    FLAT,
    MIXED,
    NUM_STEPS,
    THREE,
    TOLERANCE,
    MakeBase,
    assert_same,
    count_forwards,
    pack_of,
    rows_of,
    run_steps,
    state_of,
    trial_of,
)
from torch import Tensor, nn

from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.model.binding.insert import Insert
from prefixray.model.binding.ragged import Ragged
from prefixray.training.base_checks import is_out_of_memory
from prefixray.training.pack import Pack


@pytest.mark.parametrize("trials", [THREE, MIXED], ids=["three prefixes", "mixed methods"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_trial_whose_loss_is_not_finite_ends_alone(
    make_base: MakeBase, trials: Mapping[str, TrialConfig], poison: float
) -> None:
    base = make_base("llama", torch.float64)
    ends, *others = trials
    final = []
    for poisoned in (True, False):
        pack = pack_of(base, trials)
        run_steps(pack, trials, 5)
        if poisoned:
            with torch.no_grad():
                next(pack.members[ends].method.parameters()).fill_(poison)
            before = state_of(pack.members[ends])
        outcomes = pack.step(trials)
        if poisoned:
            assert outcomes[ends].failed == "loss is not finite at step 6"
            assert pack.members[ends].step == 5
            assert state_of(pack.members[ends]) == before
        assert [outcomes[key].failed for key in others] == [None] * len(others)
        pack.drop(ends)
        run_steps(pack, others, 4)
        final.append([state_of(pack.members[key]) for key in others])
    assert final[0] == final[1]


def test_a_learning_rate_that_is_far_too_high_ends_its_own_trial(make_base: MakeBase) -> None:
    trials = {"mad": trial_of(FLAT.method, 3e38), "sane": FLAT}
    pack = pack_of(make_base("gpt2", torch.float32), trials)
    for _ in range(NUM_STEPS):
        outcomes = pack.step(pack.members)
        if outcomes["mad"].failed is not None:
            break
    assert outcomes["mad"].failed is not None and outcomes["sane"].failed is None
    pack.drop("mad")
    assert all(math.isfinite(step["sane"].loss) for step in run_steps(pack, ["sane"], 3))


def test_a_gradient_that_is_not_finite_ends_its_trial_before_its_update(make_base: MakeBase) -> None:
    base = make_base("llama", torch.float64)
    pack, lone = pack_of(base, {"ends": FLAT, "stays": MIXED["lora"]}), pack_of(base, {"stays": MIXED["lora"]})
    run_steps(lone, ["stays"], 3)
    run_steps(pack, pack.members, 2)
    next(pack.members["ends"].method.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = state_of(pack.members["ends"])
    outcomes = pack.step(pack.members)
    assert outcomes["ends"].failed == "gradient is not finite at step 3" and math.isfinite(outcomes["ends"].loss)
    assert state_of(pack.members["ends"]) == before
    assert_same(pack.members["stays"], lone.members["stays"], TOLERANCE[torch.float64])


@pytest.mark.parametrize("nth_forward", [1, 4])
def test_out_of_memory_halves_the_budget_and_loses_nothing(make_base: MakeBase, nth_forward: int) -> None:
    base = make_base("gpt2", torch.float64)
    trials = {**THREE, "lora": MIXED["lora with dropout"]}
    undisturbed, pack = pack_of(base, trials), pack_of(base, trials, token_budget=200)
    run_steps(undisturbed, trials, 8)
    run_steps(pack, trials, 3)
    _fail_once(pack, nth_forward)
    outcomes = run_steps(pack, trials, 5)
    assert pack.token_budget == 100
    assert all(outcome.failed is None for step in outcomes for outcome in step.values())
    for key in trials:
        assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])


def test_out_of_memory_in_an_evaluation_is_evaluated_again(make_base: MakeBase) -> None:
    base = make_base("gpt2", torch.float64)
    pack, rows = pack_of(base, THREE, token_budget=200), rows_of(base)
    wanted = pack.evaluate(THREE, rows)
    _fail_once(pack, 2)
    assert pack.evaluate(THREE, rows) == pytest.approx(wanted, abs=TOLERANCE[torch.float64])
    assert pack.token_budget == 100


def test_halving_begins_at_the_largest_piece_that_there_is(make_base: MakeBase) -> None:
    """The first budget is far larger than a step."""
    pack = pack_of(make_base("gpt2", torch.float64), {"flat": FLAT}, token_budget=1 << 16)
    num_tokens = sum(sum(row.lengths) for row in pack.members["flat"].next_rows())
    _fail_once(pack, 1)
    calls = count_forwards(pack)
    assert pack.step(["flat"])["flat"].failed is None
    assert pack.token_budget == num_tokens // 2 and len(calls) == 2, "the next attempt is in halves"


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_out_of_memory_in_an_update_is_done_again_alone_or_ends_that_trial(
    make_base: MakeBase, num_failures: int
) -> None:
    """The gradients of a network may be what does not fit."""
    base = make_base("gpt2", torch.float64)
    pack, undisturbed = pack_of(base, MIXED | THREE), pack_of(base, MIXED | THREE)
    failures = iter([_no_memory] * num_failures)
    network, lora = pack.members["network"], pack.members["lora"]
    for member in (network, lora):
        _fail_first(member.method, "push_gradients", failures)
    outcomes = pack.step(pack.members)
    undisturbed.step(undisturbed.members)
    failed = {key: outcome.failed for key, outcome in outcomes.items() if outcome.failed is not None}
    assert list(failed) == ([] if num_failures < 3 else ["lora"])
    assert all(
        "out of memory alone in its update" in str(reason) and "rank 3" in str(reason) for reason in failed.values()
    )
    for key in pack.members.keys() - failed.keys():
        assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])
    for key in failed:
        assert pack.members[key].step == 0 and all(p.grad is None for p in pack.members[key].method.parameters())


def test_the_moments_of_all_parameters_are_there_before_one_moves(make_base: MakeBase) -> None:
    """Without memory for the second group's moments, the first group is not updated either."""
    pack = pack_of(make_base("gpt2", torch.float64), {"adapter": MIXED["adapter"]})
    member = pack.members["adapter"]
    before, whole, made = state_of(member), torch.zeros_like, list[Tensor]()

    def zeros_like(tensor: Tensor) -> Tensor:
        made.append(tensor)
        if len(made) % 8 == 7:
            raise torch.OutOfMemoryError("no more")
        return whole(tensor)

    with pytest.MonkeyPatch.context() as short:
        short.setattr("torch.zeros_like", zeros_like)
        outcome = pack.step(["adapter"])["adapter"]
    assert len(made) >= 7 and outcome.failed is not None
    after = state_of(member)
    assert {name: after[name] for name in before} == before
    assert run_steps(pack, ["adapter"], 1)[0]["adapter"].failed is None


def test_a_trial_that_does_not_fit_alone_ends_with_its_configuration_named_and_the_others_take_turns(
    make_base: MakeBase,
) -> None:
    base = make_base("gpt2", torch.float64)
    large = THREE | {"large": trial_of(PrefixTrial(preseqlen=40, mid_dim=None, init_token=None), 1e-3)}
    undisturbed, pack = pack_of(base, THREE), pack_of(base, large, token_budget=200)
    run_steps(undisturbed, THREE, 1)
    with _memory_for(pack, num_members=2, num_positions=30):
        outcomes = pack.step(large)
        assert math.isnan(pack.evaluate(["large"], rows_of(base))["large"])
    assert [key for key, outcome in outcomes.items() if outcome.failed is not None] == ["large"]
    assert str(outcomes["large"].failed).startswith("out of memory alone and with one example at a time: method prefix")
    assert "preseqlen 40" in str(outcomes["large"].failed)
    assert pack.token_budget == 200, "the others go back to larger pieces"
    for key in THREE:
        assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])


def test_a_trial_that_does_not_fit_alone_is_evaluated_once_beside_trials_that_share_products(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_as_on_gpu(monkeypatch)
    base = make_base("gpt2", torch.float64)
    large = trial_of(PrefixTrial(preseqlen=40, mid_dim=None, init_token=None), 1e-3)
    pack = pack_of(base, {"lora": MIXED["lora"], "another": MIXED["lora with dropout"], "large": large})
    with _memory_for(pack, num_members=3, num_positions=30):
        scores = pack.evaluate(pack.members, rows_of(base))
    assert [key for key, score in scores.items() if math.isnan(score)] == ["large"]
    assert caplog.text.count("out of memory alone") == 1 and pack.unfit == {"large"}
    pack.drop("large")
    assert not pack.unfit


def test_a_cpu_without_memory_is_one_that_has_run_out_of_it() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("the shapes differ"))


def test_an_allocation_that_fails_inside_cublas_is_out_of_memory() -> None:
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"  # a RuntimeError of torch
    assert is_out_of_memory(RuntimeError(said)) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))


def _no_memory() -> None:
    raise torch.OutOfMemoryError("no more")


def _fail_first(owner: object, name: str, failures: Iterator[Callable[[], None]]) -> None:
    """Let the next calls of a method run out of memory, as long as there are failures left."""
    whole = getattr(owner, name)

    def call(*args: object) -> object:
        next(failures, lambda: None)()
        return whole(*args)

    object.__setattr__(owner, name, call)


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
        **dropout: object,
    ) -> AbstractContextManager[object]:
        if len(inserts) > num_members or any(insert.num_positions() > num_positions for insert in inserts):
            raise torch.OutOfMemoryError("no more")
        more = {"infix_starts": infix_starts, "is_headless": is_headless, "line": line, **dropout}
        return whole(inserts, row_trial, targets=targets, **more)  # type: ignore[arg-type]

    pack.binder.bind = bind  # type: ignore[method-assign]
    yield
    pack.binder.bind = whole  # type: ignore[method-assign]


def _fail_once(pack: Pack, nth_forward: int) -> None:
    """Let the `nth_forward` from here on run out of memory."""
    calls = count_forwards(pack)

    def fail(module: nn.Module, args: object) -> None:
        if len(calls) == nth_forward:
            raise torch.OutOfMemoryError("no more")

    pack.base.blocks()[-1][1].register_forward_pre_hook(fail)
