"""What a checkpoint keeps of a trial."""

from pathlib import Path

import torch
from support.packs import MakeBase

from prefixray.config.trials import PrefixTrial, TrialConfig
from prefixray.data import Example, Sourced, Task
from prefixray.data.documents import Document
from prefixray.data.task_config import TaskConfig
from prefixray.training.trainer import Trainer
from prefixray.trial import TrialSpec

EXAMPLES = (Example("name : The Eagle", "The Eagle serves French food."),)
SOURCED = (Sourced(EXAMPLES[0].source, (EXAMPLES[0].target,)),)


def test_frozen_positions_come_from_the_checkpoint_whatever_the_document_says_now(
    make_base: MakeBase, tmp_path: Path
) -> None:
    method = PrefixTrial(preseqlen=4, mid_dim=None, init_token=None, init_from="document", frozen_positions=2)
    trial = TrialConfig(arm="prefix", num_steps=4, learning_rate=1e-2, method=method)
    spec = TrialSpec("one", trial, seed=1, replicate=0, rungs=(), folder=str(tmp_path))
    kept = []
    for text in ("The Eagle serves French food near Zizzi .", "A very short text ."):
        task = Task("custom", EXAMPLES, EXAMPLES, SOURCED, SOURCED, 1, ("bleu",), document=Document("page", text))
        trainer = Trainer(make_base("gpt2", torch.float64), task, TaskConfig(name="custom"))
        trainer.admit(spec)
        trainer.checkpoint(["one"])
        kept.append(trainer.pack.members["one"].method.artifact()["decoder.key"])
    assert torch.equal(*kept)
