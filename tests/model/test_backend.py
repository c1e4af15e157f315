"""The plain backend runs nothing of a faster one, and both give the same losses, gradients and hypotheses."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import AdapterTrial, AnyTrial, PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.generate import generate
from prefixray.model.backend import backend_for, padded_count
from prefixray.model.base import Base
from prefixray.model.fast_cpu.backend import CPUBackend
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}
"""Of losses, and of every parameter after all steps: AdamW's first steps magnify roundings of tiny gradients."""
EXAMPLES = tuple(
    Example(f"name : {name} | food : {food}", f"{name} serves {food}.")
    for name, food in (("The Eagle", "Chinese"), ("The Mill", "French"), ("Aromi", "wine"), ("The Mill", "tea"))
)
METHODS: dict[str, AnyTrial] = {
    "short": PrefixTrial(preseqlen=3, mid_dim=8, init_token=None),
    "long": PrefixTrial(preseqlen=70, mid_dim=None, init_token=None),
    "adapter": AdapterTrial(bottleneck=4),
}
Outcome = tuple[list[float], list[torch.Tensor], list[str]]


class _NoFastOperation(TorchDispatchMode):
    """Refuses products by oneDNN."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        assert "mkldnn" not in str(func), func
        return func(*args, **(kwargs or {}))


def _refused(*args: object, **options: object) -> None:
    raise AssertionError("the fast backend is switched off")


def _train_and_decode(base: Base) -> Outcome:
    """Losses and scores, trained tensors and hypotheses after two steps of three trials."""
    template = make_template(base, TaskConfig(name="e2e"))
    rows = encode(EXAMPLES, template)
    pack = Pack(base, rows, pad_id=template.pad_id)
    for key, method in METHODS.items():
        config = TrialConfig(arm=key, learning_rate=1e-2, num_steps=2, batch_size=3, method=method)
        pack.admit(key, config, Seeds(1, 2, 3))
    losses = [result.loss for _ in range(2) for result in pack.step(METHODS).values()]
    losses += pack.evaluate(METHODS, rows).values()
    trained = [p.detach() for member in pack.members.values() for p in member.method.parameters()]
    sources = [example.source for example in EXAMPLES]
    insert = pack.members["long"].method.insert(None)
    decoding = DecodingSettings(num_beams=3, max_new_tokens=8)
    return losses, trained, generate(base, template, sources, [insert] * len(sources), decoding)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bart"])
def test_the_plain_backend_runs_nothing_of_a_faster_one(
    make_base: MakeBase, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1")
    for name in [name for name in vars(CPUBackend) if not name.startswith("_")]:
        monkeypatch.setattr(CPUBackend, name, _refused)
    with _NoFastOperation():
        losses, _, _ = _train_and_decode(make_base(architecture, torch.bfloat16))
    assert all(loss > 0 for loss in losses)
    assert padded_count(65) == 65 and type(backend_for(torch.device("cpu"))) is not CPUBackend


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bart", "t5"])
def test_both_backends_train_score_and_decode_alike(
    make_base: MakeBase, architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = _train_and_decode(make_base(architecture, dtype))
    assert type(backend_for(torch.device("cpu"))) is CPUBackend
    monkeypatch.setenv("PREFIXRAY_PLAIN", "1")
    plain = _train_and_decode(make_base(architecture, dtype))
    assert fast[0] == pytest.approx(plain[0], abs=TOLERANCE[dtype])
    for ours, theirs in zip(fast[1], plain[1], strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE[dtype]
    assert fast[2] == plain[2]
