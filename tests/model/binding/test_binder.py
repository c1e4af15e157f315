"""A model has one binder, which all packs and artifacts on the model share."""

from collections.abc import Callable

import pytest
import torch

from prefixray.batching.batches import encode
from prefixray.batching.template import make_template
from prefixray.config.schema import DecodingSettings
from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.decoding.tuned_model import Tuned
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder
from prefixray.training.member import Seeds
from prefixray.training.pack import Pack

MakeBase = Callable[[str, torch.dtype], Base]

EXAMPLES = [Example(f"name : {name}", f"{name} serves tea.") for name in ("The Eagle", "Aromi")]


def _pack(base: Base, preseqlen: int) -> Pack:
    template = make_template(base, TaskConfig(name="e2e"))
    pack = Pack(base, encode(EXAMPLES, template), pad_id=template.pad_id)
    method = PrefixTrial(preseqlen=preseqlen, mid_dim=None, init_token=None)
    pack.admit("a", TrialConfig(arm="a", learning_rate=1e-2, num_steps=3, batch_size=2, method=method), Seeds(1, 2, 3))
    return pack


def _text(base: Base, pack: Pack) -> list[str]:
    template, method = make_template(base, TaskConfig(name="e2e")), pack.members["a"].method
    tuned = Tuned(base, method, template, DecodingSettings(max_new_tokens=6))
    return tuned.generate([example.source for example in EXAMPLES])


def test_a_second_binder_of_a_model_is_impossible(tiny_base: Base) -> None:
    binder = Binder.of(tiny_base.model)
    assert Binder.of(tiny_base.model) is binder
    with pytest.raises(AssertionError, match="a model has one binder"):
        Binder(tiny_base.model)
    assert Binder.of(tiny_base.model) is binder


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bart"])
def test_two_packs_and_an_artifact_on_one_model_each_see_their_own_prefixes(
    make_base: MakeBase, architecture: str
) -> None:
    alone = [(base := make_base(architecture, torch.float64), _pack(base, length)) for length in (2, 5)]
    base = make_base(architecture, torch.float64)
    packs = [_pack(base, length) for length in (2, 5)]
    assert packs[0].binder is packs[1].binder
    for _ in range(2):
        ours = [pack.step(["a"])["a"].loss for pack in packs]
        theirs = [pack.step(["a"])["a"].loss for _, pack in alone]
        assert ours == pytest.approx(theirs, abs=1e-10) and ours[0] != ours[1]
        assert [_text(base, pack) for pack in packs] == [_text(own, pack) for own, pack in alone]
