"""Fine-tuning: a trial trains its own copy of the base, with the model's own dropout, and so runs in no shared forward.

All weights are trained, or those of the last blocks alone. Then nothing below these blocks is differentiated, unless
the word embeddings are trained as well. The copy holds fp32 master weights; the pack runs it under autocast where the
sweep's precision is bf16. The artifact holds the trained weights; the others are the base's.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefixray.config.trials import FinetuneTrial
from prefixray.errors import UserError
from prefixray.methods.contract import Method
from prefixray.model.base import Base, checkpoint_blocks, fuse_gelu, load_base
from prefixray.model.binding.insert import Insert
from prefixray.model.dropout.row_dropout import RowDropout
from prefixray.system.path_or_hub import is_commit


class Finetune(Method):
    """A trial's own model."""

    def __init__(self, config: FinetuneTrial, base: Base, dropout_seed: int) -> None:
        super().__init__()
        self.dropout_seed = dropout_seed
        trained = trained_names(config, base)
        self.model = _full_precision_copy(base)
        self.dropout = RowDropout(self.model)
        if base.is_checkpointed:
            checkpoint_blocks(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)

    @property
    def own_dropout(self) -> RowDropout:
        """The tuned model's dropout."""
        return self.dropout

    @property
    def own_model(self) -> PreTrainedModel:
        """The tuned model."""
        return self.model

    def insert(self, step: int | None) -> Insert:
        """Nothing is inserted; the model itself is tuned."""
        return Insert()

    def artifact(self) -> dict[str, Tensor]:
        """The trained weights, tied ones once."""
        return {name: p.detach().cpu().contiguous() for name, p in self._trained()}

    def load_artifact(self, tensors: dict[str, Tensor]) -> None:
        """Take over the trained weights."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(tensors[name])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)


def trained_names(config: FinetuneTrial, base: Base) -> set[str]:
    """The names of the base's parameters that are trained, tied ones once. Needs no weights.

    Raises `UserError` where the base has fewer blocks.
    """
    parameters = dict(base.model.named_parameters())
    words = _word_parameters(base.model)
    if config.top_layers is None:
        chosen = set(parameters) - _fixed_parameters(base.model)
    else:
        chosen = _top(base, config.top_layers)
    if config.tune_embeddings:
        return chosen | words
    return chosen - words


def _top(base: Base, num_blocks: int) -> set[str]:
    """The parameters of the last blocks and of the norm behind them; an encoder's blocks count before its decoder's."""
    blocks = [name for name, _ in base.blocks()]
    if num_blocks > len(blocks):
        raise UserError(f"top_layers: {num_blocks}: {base.name} has {len(blocks)} blocks")
    stack = blocks[-1].rsplit(".", 2)[0]  # "transformer" of "transformer.h.23"
    norms = [
        f"{stack}.{name}" if stack else name
        for name, module in base.model.get_submodule(stack).named_children()
        if type(module).__name__.endswith("Norm") and "emb" not in name
    ]
    modules = (*blocks[len(blocks) - num_blocks :], *norms)
    prefixes = tuple(f"{module}." for module in modules)
    return {name for name, _ in base.model.named_parameters() if name.startswith(prefixes)}


def _word_parameters(model: PreTrainedModel) -> set[str]:
    """The tables over the vocabulary: word embeddings and the output layer, tied or not."""
    size = model.config.get_text_config().vocab_size
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = [module for module in embeddings if module.num_embeddings == size]
    word_ids = {id(parameter) for module in (*tables, head) for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in word_ids}


def _fixed_parameters(model: PreTrainedModel) -> set[str]:
    """The parameters that the architecture does not train: Pegasus' and Marian's position tables are computed."""
    with torch.device("meta"):
        fresh = type(model)(model.config)
    return {name for name, parameter in fresh.named_parameters() if not parameter.requires_grad}


def _full_precision_copy(base: Base) -> PreTrainedModel:
    """The base's weights as they were stored: a base in bf16 is loaded again in fp32."""
    if base.model.dtype == torch.bfloat16:
        commit = base.digest if is_commit(base.digest) else None
        device, code = str(base.device), base.trusts_code
        return load_base(base.name, dtype=torch.float32, device=device, trust_remote_code=code, commit=commit).model
    model: PreTrainedModel = type(base.model)(copy.deepcopy(base.model.config))
    fuse_gelu(model)
    torch.nn.Module.to(model, base.device, base.model.dtype)
    model.load_state_dict(base.model.state_dict())
    model.generation_config = copy.deepcopy(base.model.generation_config)
    model.train(False)
    return model
