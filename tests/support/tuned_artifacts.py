"""Artifacts of every method on a tiny base, each moved from its start."""

from collections.abc import Mapping
from pathlib import Path

import torch

from prefixray.artifacts.store import artifact_meta, save_artifact
from prefixray.batching.template import make_template
from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.methods import build_method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder

DECODING: Mapping[str, int] = {"num_beams": 3, "max_new_tokens": 8}
METHODS: Mapping[str, AnyTrial] = {
    "short": PrefixTrial(preseqlen=2, mid_dim=None, init_token=None),
    "long": PrefixTrial(preseqlen=5, mid_dim=8, init_token="restaurant"),
    "adapter": AdapterTrial(bottleneck=3),
    "lora": LoraTrial(rank=2),
    "finetune": FinetuneTrial(),
}
DECODER_ONLY: Mapping[str, AnyTrial] = {
    "infix": PrefixTrial(preseqlen=3, mid_dim=None, init_token="pub", format_mode="infix"),
    "embedding": PrefixTrial(preseqlen=3, mid_dim=None, init_token=None, prefix_mode="embedding"),
}


def save_tuned(
    folder: Path, base: Base, trial: AnyTrial, *, seed: int = 0, decoding: Mapping[str, int] = DECODING
) -> None:
    """An artifact of this method, moved from its start."""
    task = TaskConfig(name="e2e")
    method = build_method(trial, base, Binder.of(base.model).record, init_seed=seed, dropout_seed=1)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    config = TrialConfig(arm=folder.name, learning_rate=1e-3, num_steps=3, method=trial)
    meta = artifact_meta(base, config, task=task, template=make_template(base, task).record(), decoding=decoding)
    save_artifact(folder, method.artifact(), meta)
