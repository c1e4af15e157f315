"""The learning rate of each step, and the seeds of each trial."""

import math
from collections.abc import Callable

import pytest
import torch
from support.packs import (
    FLAT,
    MIXED,
    SEEDS,
    THREE,
    TOLERANCE,
    MakeBase,
    assert_same,
    pack_of,
    run_steps,
    state_of,
    trial_of,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from prefixray.config.trials import LoraTrial
from prefixray.model import backend
from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.model.fast_cuda.backend import CUDABackend
from prefixray.model.plain import PlainBackend
from prefixray.training.member import Member, Seeds, learning_rate, norms_of, tensor_norms, update
from prefixray.training.pack import Pack

Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR]


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(6, 0), (6, 2), (6, 5), (40, 4), (2, 1), (1, 0)])
def test_every_steps_learning_rate_is_that_of_transformers(num_steps: int, warmup_steps: int) -> None:
    theirs: dict[str, Schedule] = {
        "linear": lambda one: get_linear_schedule_with_warmup(one, warmup_steps, num_steps),
        "cosine": lambda one: get_cosine_schedule_with_warmup(one, warmup_steps, num_steps),
        "constant": lambda one: get_constant_schedule_with_warmup(one, warmup_steps),
    }
    for name, make in theirs.items():
        trial = trial_of(FLAT.method, 8.0, num_steps=num_steps, warmup_steps=warmup_steps, schedule=name)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
        schedule, rates = make(optimizer), []
        for _ in range(num_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert [learning_rate(trial, step) for step in range(num_steps)] == pytest.approx(rates, rel=1e-12), name


def test_the_seeds_of_a_replicate_are_shared_and_each_has_its_purpose() -> None:
    assert Seeds.derive(1, 0) == SEEDS
    all_of_them = [Seeds.derive(seed, replicate) for seed in (1, 2) for replicate in (0, 1)]
    assert len({number for seeds in all_of_them for number in (seeds.data, seeds.init, seeds.dropout)}) == 12


def _optimiser_of(member: Member, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser that a trial had when each stepped its own: fused, weight decay on matrices alone."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": member.config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_of_many_is_to_the_bit_that_of_each_ones_own_optimiser(
    make_base: MakeBase, dtype: torch.dtype
) -> None:
    recipes = {**THREE, "adapter": MIXED["adapter"], "clipped": trial_of(LoraTrial(rank=2), 3e-2, max_grad_norm=0.01)}
    members = list(pack_of(make_base("gpt2", dtype), recipes).members.values())
    copies = [[torch.nn.Parameter(p.detach().clone()) for p in member.method.parameters()] for member in members]
    theirs = [_optimiser_of(member, own) for member, own in zip(members, copies, strict=True)]
    for step in range(3):
        for member, own, optimiser in zip(members, copies, theirs, strict=True):
            for parameter, copied in zip(member.method.parameters(), own, strict=True):
                parameter.grad = torch.randn_like(parameter)
                copied.grad = parameter.grad.clone()
            limit = member.config.max_grad_norm
            in_order = [p for group in optimiser.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(in_order, math.inf if limit is None else limit)
            of_tensors = tensor_norms([member])
            assert torch.equal(norms_of([member], of_tensors.tolist(), of_tensors.dtype)[0], norm)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(member.config, step)
            optimiser.step()
        of_tensors = tensor_norms(members)
        update(members, norms_of(members, of_tensors.tolist(), of_tensors.dtype))
        for member, own, optimiser in zip(members, copies, theirs, strict=True):
            assert member.step == step + 1
            for parameter, copied in zip(member.method.parameters(), own, strict=True):
                assert torch.equal(parameter, copied)
                ours, wanted = member.optimizer.state[parameter], optimiser.state[copied]
                assert list(ours) == list(wanted) == ["step", "exp_avg", "exp_avg_sq"]
                assert all(torch.equal(ours[kind], wanted[kind]) for kind in wanted)
                assert all(ours[kind].dtype == wanted[kind].dtype for kind in wanted)


def test_trials_updated_together_are_those_updated_one_by_one_and_one_that_is_not_finite_ends_alone(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, final = make_base("gpt2", torch.float64), []
    for way in (CUDABackend(), PlainBackend()):
        monkeypatch.setitem(backend._FAST, "cpu", way)
        pack = pack_of(base, THREE)
        assert pack.step([]) == {}, "all may wait at a rung"
        outcomes = run_steps(pack, THREE, 2)
        before = state_of(pack.members["network"])
        with torch.no_grad():
            next(pack.members["network"].method.parameters()).view(-1)[0] = math.nan
        poisoned = state_of(pack.members["network"])
        outcomes += run_steps(pack, THREE, 1)
        assert outcomes[-1]["network"].failed == "loss is not finite at step 3" and poisoned != before
        assert state_of(pack.members["network"]) == poisoned and pack.members["network"].step == 2
        final.append(([state_of(pack.members[key]) for key in ("flat", "words")], outcomes[:-1]))
    assert final[0] == final[1]


def test_an_update_together_that_has_no_memory_is_repeated_one_by_one(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backend._FAST, "cpu", CUDABackend())
    base = make_base("gpt2", torch.float64)
    pack, undisturbed = pack_of(base, THREE), pack_of(base, THREE)
    whole, made = torch.zeros_like, list[torch.Tensor]()

    def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
        made.append(tensor)
        if len(made) == 4:
            raise torch.OutOfMemoryError("no more")
        return whole(tensor)

    with monkeypatch.context() as short:
        short.setattr("torch.zeros_like", zeros_like)
        outcomes = run_steps(pack, THREE, 2)
    assert len(made) > 4 and all(outcome.failed is None for step in outcomes for outcome in step.values())
    run_steps(undisturbed, THREE, 2)
    for key in THREE:
        assert_same(pack.members[key], undisturbed.members[key], TOLERANCE[torch.float64])


class _CountReads(TorchDispatchMode):
    """Counts the values that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.reads += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


def _reads(pack: Pack) -> int:
    """The values that the host reads in the forwards and backwards of a step."""
    members = list(pack.members.values())
    rows = [member.next_rows() for member in members]
    with _CountReads() as count:
        pack._losses(members, rows, train=True)
    return count.reads


def test_on_a_gpu_the_host_reads_nothing_in_a_step_before_its_end(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, reads = make_base("gpt2", torch.float32), {}
    trials = {**THREE, "smoothed": trial_of(FLAT.method, 1e-2, label_smoothing=0.1)}
    for way in (CUDABackend(), CPUBackend()):
        monkeypatch.setitem(backend._FAST, "cpu", way)
        reads[type(way)] = _reads(pack_of(base, trials))
    assert reads[CUDABackend] < reads[CPUBackend]
    assert reads[CUDABackend] == 0
