"""Bases, trials and tasks for the tests on a GPU."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data import Sourced, Task
from prefixray.trial import TrialSpec
from support.packs import EXAMPLES, trial_of
from support.pretend_gpu import device as pretended

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]
DECODER_ONLY = ("gpt2", "llama")  # Llama has two key/value heads for four query heads
ARCHITECTURES = (*DECODER_ONLY, "bart", "t5")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}  # of losses per token of about 6
METHODS: Mapping[str, AnyTrial] = {
    "flat": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    "network": PrefixTrial(preseqlen=6, mid_dim=16, init_token="restaurant", prefix_dropout=0.1),
    "embedding": PrefixTrial(preseqlen=5, mid_dim=8, init_token=None, prefix_mode="embedding"),
    "infix": PrefixTrial(preseqlen=4, mid_dim=16, init_token=None, format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=7),
    "adapters in sub-layers": AdapterTrial(bottleneck=7, design=2),
    "lora": LoraTrial(rank=3),
    "lora with dropout": LoraTrial(rank=3, alpha=5.0, dropout=0.2),
    "finetune": FinetuneTrial(),
    "finetune top": FinetuneTrial(top_layers=1, tune_embeddings=False),
}
pretended_alone = pytest.mark.skipif(not pretended.is_there(), reason="only a pretended GPU counts")
every_base = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


def trials_for(architecture: str, **recipe: object) -> dict[str, TrialConfig]:
    """A trial of each method that the architecture knows, and one with the dropout of the base."""
    known = {key: method for key, method in METHODS.items() if architecture in DECODER_ONLY or key != "infix"}
    trials = {key: trial_of(method, 1e-3, batch_size=3, **recipe) for key, method in known.items()}
    return trials | {"base dropout": trial_of(METHODS["flat"], 1e-3, batch_size=3, base_dropout=True, **recipe)}


def task_of(num_dev: int) -> Task:
    """The examples, of which some are for dev."""
    sources = tuple(Sourced(example.source, (example.target,)) for example in EXAMPLES[:2])
    parts = {"train": EXAMPLES, "dev": EXAMPLES[:num_dev], "dev_sources": sources, "test_sources": sources}
    return Task(name="custom", num_test_total=2, metrics=("bleu",), **parts)  # type: ignore[arg-type]


def spec_of(folder: Path, key: str, config: TrialConfig) -> TrialSpec:
    """The spec of a trial, in a folder of its own."""
    return TrialSpec(key, config, seed=1, replicate=0, rungs=(), folder=str(folder / key))
