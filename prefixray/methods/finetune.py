"""Full fine-tuning: all weights of an own copy of the base, with the model's own dropout. A pack of one.

The copy holds fp32 master weights; the pack runs it under autocast where the sweep's precision is bf16.
"""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefixray.attention import Insert
from prefixray.base import Base, checkpoint_blocks, load_base
from prefixray.methods.contract import Method


class Finetune(Method):
    """A trial's own model."""

    def __init__(self, base: Base, dropout_seed: int) -> None:
        super().__init__()
        self.dropout_seed = dropout_seed
        self.model = _full_precision_copy(base)
        if base.is_checkpointed:
            checkpoint_blocks(self.model)
        fixed = _fixed_parameters(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in fixed)

    @property
    def own_model(self) -> PreTrainedModel:
        """The tuned model."""
        return self.model

    def insert(self, step: int | None) -> Insert:
        """Nothing is inserted; the model itself is tuned."""
        return Insert()

    def artifact(self) -> dict[str, Tensor]:
        """All weights, tied ones once."""
        return {name: p.detach().cpu().contiguous() for name, p in self.model.named_parameters()}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over all weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])


def _fixed_parameters(model: PreTrainedModel) -> set[str]:
    """What the architecture does not train: the position tables of Pegasus and Marian are computed."""
    with torch.device("meta"):
        fresh = type(model)(model.config)
    return {name for name, parameter in fresh.named_parameters() if not parameter.requires_grad}


def _full_precision_copy(base: Base) -> PreTrainedModel:
    """The base's weights as they were stored: a base in bf16 is loaded again in fp32."""
    if base.model.dtype == torch.bfloat16:
        return load_base(
            base.name, dtype=torch.float32, device=str(base.device), trust_remote_code=base.trusts_code
        ).model
    model: PreTrainedModel = type(base.model)(copy.deepcopy(base.model.config))
    torch.nn.Module.to(model, base.device, base.model.dtype)
    model.load_state_dict(base.model.state_dict())
    model.train(False)
    return model
