"""Trials whose products run as one have the numbers of each trial by itself, whatever company they are in."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from support.as_on_gpu import run_as_on_gpu
from support.packs import MIXED, SEEDS, TOLERANCE, MakeBase, assert_same, pack_of, rows_of, run_steps, trial_of
from torch.utils._python_dispatch import TorchDispatchMode

from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, LoraTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.methods.stacked import insert_all
from prefixray.model import backend
from prefixray.model.base import Base
from prefixray.model.fast_cuda.backend import CUDABackend
from prefixray.model.plain import PlainBackend
from prefixray.training.pack import Pack

EXACT = TOLERANCE[torch.float64]
LORAS = {
    "lora": trial_of(LoraTrial(rank=3), 1e-3, batch_size=3),
    "lora of another rank": trial_of(LoraTrial(rank=5, alpha=3.0), 3e-3, batch_size=3),
    "lora with dropout": trial_of(LoraTrial(rank=2, dropout=0.3), 1e-3, batch_size=4),
    "lora in parts": trial_of(LoraTrial(rank=4), 1e-3, grad_accumulation=2, max_grad_norm=0.1),
}
ADAPTERS = {
    "adapter": trial_of(AdapterTrial(bottleneck=5), 3e-3, batch_size=4),
    "adapter of another size": trial_of(AdapterTrial(bottleneck=3), 1e-3, batch_size=2),
    "adapters in sub-layers": trial_of(AdapterTrial(bottleneck=4, design=2), 3e-3, batch_size=2),
    "more of them": trial_of(AdapterTrial(bottleneck=2, design=2), 3e-3, batch_size=2, weight_decay=0.3),
}
ALL: Mapping[str, TrialConfig] = {**LORAS, "prefix": MIXED["prefix"], **ADAPTERS}


@pytest.fixture(autouse=True)
def stacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU's way of running trials, on the CPU."""
    monkeypatch.setitem(backend._FAST, "cpu", CUDABackend())
    yield


def _run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on trials run by functions of their own, which know no stacks."""
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1")


@pytest.mark.parametrize(
    ("architecture", "token_budget"), [("gpt2", 120), ("llama", None), ("bart", None), ("t5", None)]
)
def test_stacked_and_alone_agree(
    make_base: MakeBase, architecture: str, token_budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(architecture, torch.float64)
    _assert_alone_agree(base, pack_of(base, ALL, token_budget=token_budget), ALL, monkeypatch)


@pytest.mark.parametrize("knows_lines", [True, False], ids=["in a line", "side by side"])
@pytest.mark.parametrize("num_trials", [1, 2])
def test_stacked_and_alone_agree_where_a_layer_has_no_axis_of_rows(
    make_base: MakeBase, num_trials: int, knows_lines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT's feed-forward layers see all tokens of a batch one behind another, side by side as well."""
    trials = {key: ADAPTERS[key] for key in ("adapters in sub-layers", "more of them")[:num_trials]}
    base = make_base("opt", torch.float64)
    pack = pack_of(base, trials)
    assert pack.layout.knows_lines
    pack.layout.knows_lines = knows_lines
    _assert_alone_agree(base, pack, trials, monkeypatch)


def _assert_alone_agree(
    base: Base, pack: Pack, trials: Mapping[str, TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps and an evaluation of a pack, and those of each of its trials alone, plainly."""
    together, scores = run_steps(pack, trials, 2), pack.evaluate(trials, rows_of(base))
    _run_plainly(monkeypatch)
    for key, config in trials.items():
        lone = pack_of(base, {key: config})
        alone = run_steps(lone, [key], 2)
        assert_same(pack.members[key], lone.members[key], EXACT)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours[key].loss == pytest.approx(theirs[key].loss, abs=EXACT)
            assert ours[key].grad_norm == pytest.approx(theirs[key].grad_norm, abs=EXACT)
        assert scores[key] == pytest.approx(lone.evaluate([key], rows_of(base))[key], abs=EXACT)


def test_stacked_trials_join_pause_and_leave(make_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base("gpt2", torch.float64)
    pack = pack_of(base, {key: ALL[key] for key in ("lora", "lora of another rank", "adapter")})
    run_steps(pack, pack.members, 3)
    pack.drop("lora of another rank")
    pack.admit("lora with dropout", ALL["lora with dropout"], SEEDS)
    pack.admit("adapter of another size", ALL["adapter of another size"], SEEDS)
    run_steps(pack, pack.members, 2)
    run_steps(pack, ["lora with dropout", "adapter"], 2)  # the others wait
    run_steps(pack, pack.members, 1)
    steps = {"lora": 6, "adapter": 8, "lora with dropout": 5, "adapter of another size": 3}
    _run_plainly(monkeypatch)
    for key, num_steps in steps.items():
        lone = pack_of(base, {key: ALL[key]})
        run_steps(lone, [key], num_steps)
        assert_same(pack.members[key], lone.members[key], EXACT)


def test_stacked_trials_of_low_precision_are_those_alone(make_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base("gpt2", torch.bfloat16)
    pack = pack_of(base, ALL)
    together = run_steps(pack, ALL, 2)[-1]
    _run_plainly(monkeypatch)
    for key, config in ALL.items():
        alone = run_steps(pack_of(base, {key: config}), [key], 2)[-1]
        assert together[key].loss == pytest.approx(alone[key].loss, abs=2e-2)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_stacked_trials_decode_what_each_decodes_alone(make_base: MakeBase, architecture: str) -> None:
    base = make_base(architecture, torch.float64)
    pack = pack_of(base, ALL)
    run_steps(pack, ALL, 2)
    template = make_template(pack.base, TaskConfig(name="e2e"))
    keys = [key for key in (*LORAS, *ADAPTERS) for _ in range(3 if key == "lora" else 2)]
    sources = [f"name : {key} | food : {len(key)}" for key in keys]
    methods = [pack.members[key].method for key in ALL]
    shared = dict(zip(ALL, insert_all(methods, [None] * len(methods), stacked=True).of_trials, strict=True))
    apart = {key: pack.members[key].method.insert(None) for key in ALL}
    decoding = DecodingSettings(num_beams=3, max_new_tokens=6)
    with torch.no_grad():
        texts = [generate(pack.base, template, sources, [by[key] for key in keys], decoding) for by in (shared, apart)]
    assert texts[0] == texts[1] and any(texts[0])


LAUNCHED = {"mm", "addmm", "bmm", "baddbmm", "mul", "add", "relu", "native_layer_norm", "sum"}


class _Count(TorchDispatchMode):
    """Counts what computes with the rows of trials."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.launched += str(func).split(".")[1] in LAUNCHED
        return func(*args, **(kwargs or {}))


def _launches(pack: Pack) -> int:
    """The operators of forwards and backwards of a step of all members."""
    members = list(pack.members.values())
    with _Count() as count:
        pack._losses(members, [member.next_rows() for member in members], train=True)
    return count.launched


@pytest.mark.parametrize("method", [LoraTrial, AdapterTrial])
def test_eight_trials_launch_hardly_more_than_two(
    make_base: MakeBase, method: type[LoraTrial | AdapterTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as_on_gpu(monkeypatch)
    base, launches = make_base("gpt2", torch.float32), {}
    for way in (PlainBackend(), CUDABackend()):
        for count in (2, 8):
            sizes = [{"rank": 2 + n % 3} if method is LoraTrial else {"bottleneck": 2 + n % 3} for n in range(count)]
            trials = {str(n): trial_of(method(**size), 1e-3) for n, size in enumerate(sizes)}
            backend._FAST["cpu"] = way
            launches[type(way), count] = _launches(pack_of(base, trials))
    assert launches[CUDABackend, 8] < 1.2 * launches[CUDABackend, 2]
    assert launches[CUDABackend, 8] < 0.5 * launches[PlainBackend, 8]
