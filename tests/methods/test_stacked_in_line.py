"""Trials of LoRA and of adapters whose rows stand in one line, on a GPU, have the numbers of each alone on a CPU."""

from collections.abc import Mapping

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from support.packs import FLAT, SEEDS, TOLERANCE, MakeBase, assert_same, run_steps, trial_of
from torch import Tensor

from prefixray.batching.rows import Row
from prefixray.config.trials import AdapterTrial, FinetuneTrial, LoraTrial, TrialConfig
from prefixray.methods import lora
from prefixray.model.base import Base, checkpointed
from prefixray.model.binding import attention
from prefixray.training.member import Member
from prefixray.training.pack import Pack

EXACT = {"gpt2": TOLERANCE[torch.float64], "llama": 1e-6}  # Llama's norms: fp32
LORAS = {
    "lora": trial_of(LoraTrial(rank=3), 1e-3, batch_size=3),
    "lora of another rank": trial_of(LoraTrial(rank=5, alpha=3.0), 3e-3, batch_size=7),
    "lora with dropout": trial_of(LoraTrial(rank=2, dropout=0.3), 1e-3, batch_size=7),
}
ADAPTERS = {
    "adapter": trial_of(AdapterTrial(bottleneck=5), 3e-3, batch_size=4),
    "adapter of another size": trial_of(AdapterTrial(bottleneck=3), 1e-3, batch_size=2),
    "adapters in sub-layers": trial_of(AdapterTrial(bottleneck=4, design=2), 3e-3, batch_size=7),
}
PACKS: Mapping[str, Mapping[str, TrialConfig]] = {
    "one": {"lora with dropout": LORAS["lora with dropout"]},
    "one adapter": {"adapter": ADAPTERS["adapter"]},
    "loras": LORAS,
    "all": {**ADAPTERS, **LORAS},
    "all and a prefix": {"adapter": ADAPTERS["adapter"], "flat": FLAT, **LORAS},
}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases on this CPU run as on a GPU."""
    run_as_on_gpu(monkeypatch)


def _rows() -> list[Row]:
    """Rows of which three share a prompt, so that they form a tree where a step has two of them."""
    draw = torch.Generator().manual_seed(1)
    rows = [Row(tuple(torch.randint(5, 50, (n,), generator=draw).tolist()), 1 + n // 3) for n in (5, 9, 14, 3, 8)]
    return rows + [Row((*rows[2].ids[:5], *target), 5) for target in ((7, 8, 9), (9, 7))]


def _pack(base: Base, trials: Mapping[str, TrialConfig], *, token_budget: int | None = None) -> Pack:
    pack = Pack(base, _rows(), pad_id=0, token_budget=token_budget)
    for key, config in trials.items():
        pack.admit(key, config, SEEDS)
    return pack


@pytest.mark.parametrize("widest", [0, lora.WIDEST_GATE], ids=["sorted", "gated"])
@pytest.mark.parametrize("company", PACKS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_trials_in_a_line_have_the_numbers_of_each_alone(
    make_base: MakeBase, name: str, company: str, widest: int, on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_groups: list[int] = []
    attend_groups = attention._attend_groups
    monkeypatch.setattr(lora, "WIDEST_GATE", widest)
    monkeypatch.setattr(attention, "_attend_groups", lambda *a, **b: (in_groups.append(1), attend_groups(*a, **b))[1])
    trials = PACKS[company]
    pack = _pack(make_base(name, torch.float64), trials, token_budget=200)
    together, scores = run_steps(pack, trials, 3), pack.evaluate(trials, _rows())
    assert bool(in_groups) == ("flat" in trials), "those without a prefix attend without padding"
    monkeypatch.undo()
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1")
    for key, config in trials.items():
        lone = _pack(make_base(name, torch.float64), {key: config})
        for ours, theirs in zip(together, run_steps(lone, [key], 3), strict=True):
            assert ours[key].loss == pytest.approx(theirs[key].loss, abs=EXACT[name])
            assert ours[key].grad_norm == pytest.approx(theirs[key].grad_norm, abs=EXACT[name])
        assert_same(pack.members[key], lone.members[key], EXACT[name])
        assert scores[key] == pytest.approx(lone.evaluate([key], _rows())[key], abs=EXACT[name])


def test_trials_in_a_line_run_on_a_checkpointed_base(make_base: MakeBase, on_gpu: None) -> None:
    packs = [_pack(base, PACKS["all"]) for base in (make_base("gpt2", torch.float64), make_base("gpt2", torch.float64))]
    checkpointed(packs[1].base)
    for pack in packs:
        run_steps(pack, PACKS["all"], 2)
    for key in PACKS["all"]:
        assert_same(packs[0].members[key], packs[1].members[key], EXACT["gpt2"])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e300])
@pytest.mark.parametrize("place", ["down", "up"])
@pytest.mark.parametrize("trials", [LORAS, {"lora": LORAS["lora"], "flat": FLAT}], ids=["loras", "beside a prefix"])
def test_a_trial_whose_numbers_are_not_finite_ends_alone(
    make_base: MakeBase, on_gpu: None, trials: Mapping[str, TrialConfig], place: str, poison: float
) -> None:
    """The products that all tokens go through would spill them over the others."""
    ends, *others = trials
    packs = [_pack(make_base("gpt2", torch.float64), trials) for _ in range(2)]
    for pack in packs:
        run_steps(pack, trials, 2)
    with torch.no_grad():
        _tensors(packs[0].members[ends], place)[0].fill_(poison)
    outcomes, expected = (pack.step(trials) for pack in packs)
    assert "is not finite at step 3" in str(outcomes[ends].failed)
    assert [outcomes[key].failed for key in others] == [None] * len(others)
    scores, undisturbed = (pack.evaluate(trials, _rows()) for pack in packs)
    assert not torch.tensor(scores[ends]).isfinite()
    for key in others:
        assert outcomes[key].loss == pytest.approx(expected[key].loss, abs=EXACT["gpt2"])
        assert scores[key] == pytest.approx(undisturbed[key], abs=EXACT["gpt2"])
        assert_same(packs[0].members[key], packs[1].members[key], EXACT["gpt2"])


@pytest.mark.parametrize(
    "trials",
    [{"flat": FLAT, "other": FLAT}, {"own model": trial_of(FinetuneTrial(), 1e-3), **LORAS}],
    ids=["prefixes", "fine-tuning"],
)
def test_a_trial_that_no_other_reaches_fails_at_the_first_try(
    make_base: MakeBase, on_gpu: None, trials: Mapping[str, TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, *_ = trials
    pack = _pack(make_base("gpt2", torch.float64), trials)
    with torch.no_grad():
        for parameter in pack.members[ends].method.parameters():
            parameter.fill_(torch.nan)
    runs: list[int] = []
    run = pack._run
    monkeypatch.setattr(
        pack, "_run", lambda members, *a, **b: (runs.append(ends in {m.key for m in members}), run(members, *a, **b))[1]
    )
    assert "is not finite at step 1" in str(pack.step(trials)[ends].failed)
    assert torch.tensor(pack.evaluate(trials, _rows())[ends]).isnan()
    assert sum(runs) == 2, "a step and an evaluation"


def _tensors(member: Member, place: str) -> list[Tensor]:
    return [tensor for name, tensor in member.method.named_parameters() if name.startswith(place)]
