"""What is found out on the base before a search: whether each of its trials can be built."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_bases import MakeBase
from support.trainers import EXAMPLES, TASK, spec_of
from torch import Tensor

from prefixray.config.schema import ArmConfig
from prefixray.config.space import Choice
from prefixray.config.trials import AnyTrial, PrefixTrial, TrainConfig
from prefixray.data import Subset
from prefixray.data.documents import Document
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.methods.prefix import Prefix
from prefixray.training import base_checks
from prefixray.training.trainer import Trainer


def test_what_differs_in_its_network_alone_is_built_once_to_find_out_whether_it_can_be(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(make_base("gpt2", torch.float64), TASK, TaskConfig(name="custom"))
    built, build = list[AnyTrial](), base_checks.build_method

    def counted(config: AnyTrial, *given: Any, **named: Any) -> Method:  # noqa: ANN401
        built.append(config)
        return build(config, *given, **named)

    monkeypatch.setattr(base_checks, "build_method", counted)
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"learning_rate": 1e-2},
        dimensions={
            "preseqlen": Choice(choice=[1, 3]),
            "mid_dim": Choice(choice=[None, 4, 8]),
            "init_token": Choice(choice=["food", None]),
        },
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    starts = {(method.preseqlen, method.init_token) for method in built if isinstance(method, PrefixTrial)}
    assert len(built) == len(starts) == 4


def test_the_base_runs_once_over_tokens_with_which_other_prefixes_begin_to_find_out_whether_they_can_be_built(
    make_base: MakeBase,
) -> None:
    trainer = Trainer(make_base("gpt2", torch.float64), TASK, TaskConfig(name="custom"))
    record, run = trainer.pack.binder.record, list[int]()

    def counted(tokens: Tensor) -> Mapping[str, Tensor]:
        run.append(tokens.shape[1])
        return record(tokens)

    once = base_checks.recorded_once(counted)
    for ids in ([1, 2, 3, 4], [1, 2], [1, 3], [1, 2, 3]):
        tokens = torch.tensor([ids])
        found = once(tokens)
        for site, exact in record(tokens).items():
            torch.testing.assert_close(found[site], exact)
    assert run == [4, 2]

    runs = list[int]()
    hook = trainer.base.model.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"learning_rate": 1e-2, "mid_dim": None},
        dimensions={"preseqlen": Choice(choice=[1, 3, 5]), "init_token": Choice(choice=["food", None])},
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    hook.remove()
    assert len(runs) == 2, "one for each start, though each has three lengths"


def test_a_prefix_starts_as_the_document_of_its_subset_and_too_long_ones_are_refused_before_the_search(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base, texts = make_base("gpt2", torch.float64), ("@#%&" * 5, "The Eagle is a coffee shop")  # fewer tokens
    documents = [Document(f"text{index}", text) for index, text in enumerate(texts)]
    subsets = [Subset(EXAMPLES[:4], EXAMPLES[4:6], document) for document in documents]
    task = replace(TASK, train=subsets[0].train, dev=subsets[0].dev, document=documents[0], others=(subsets[1],))
    trainer = Trainer(base, task, TaskConfig(name="custom"))
    long, short = (len(base.text_ids(text)) for text in texts)
    assert long > short and len(texts[0]) < len(texts[1])
    arm = ArmConfig(
        name="prefix",
        method="prefix",
        fixed={"preseqlen": short, "mid_dim": None, "init_token": None, "init_from": "document", "learning_rate": 1e-2},
        dimensions={},
        num_trials=1,
        train=TrainConfig(num_steps=4),
    )
    trainer.check([arm])
    told = f"arms.prefix.preseqlen: {short + 1}: .* and the document text1 has {short}; .* out of task.path"
    with pytest.raises(UserError, match=told):
        trainer.check([arm.model_copy(update={"fixed": {**arm.fixed, "preseqlen": short + 1}})])
    for subset, text in enumerate(texts):
        key = f"prefix-{subset}"
        trainer.admit(spec_of(tmp_path, key, arm.trial({}), subset=subset))
        method = trainer.pack.members[key].method
        assert isinstance(method, Prefix) and method.tokens == base.tokenizer(text).input_ids[:short]
