"""Methods of every kind on a tiny base: built, called and trained for a few steps."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prefixray.config.trials import AdapterTrial, AnyTrial, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.methods import build_method
from prefixray.methods.contract import Method
from prefixray.model.base import Base
from prefixray.model.binding.binder import Binder

WORDS = "table-to-text: restaurant"
METHODS: Mapping[str, AnyTrial] = {
    "flat": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None),
    "flat of words": PrefixTrial(preseqlen=None, mid_dim=None, init_token=WORDS),
    "network": PrefixTrial(preseqlen=6, mid_dim=16, init_token=None, prefix_dropout=0.1),
    "network of words": PrefixTrial(preseqlen=6, mid_dim=16, init_token=WORDS),
    "embedding": PrefixTrial(preseqlen=5, mid_dim=None, init_token=None, prefix_mode="embedding"),
    "embedding network of words": PrefixTrial(preseqlen=6, mid_dim=16, init_token=WORDS, prefix_mode="embedding"),
    "infix": PrefixTrial(preseqlen=4, mid_dim=16, init_token=None, prefix_dropout=0.1, format_mode="infix"),
    "infix of words": PrefixTrial(preseqlen=4, mid_dim=None, init_token=WORDS, format_mode="infix"),
    "adapter": AdapterTrial(bottleneck=7),
    "adapter of a size": AdapterTrial(percent=2.5),
    "adapters in sub-layers": AdapterTrial(bottleneck=7, design=2),
    "lora": LoraTrial(rank=3),
    "lora with dropout": LoraTrial(rank=3, alpha=5.0, dropout=0.2),
    "finetune": FinetuneTrial(),
    "finetune without words": FinetuneTrial(tune_embeddings=False),
    "finetune top": FinetuneTrial(top_layers=1, tune_embeddings=False),
    "finetune top and words": FinetuneTrial(top_layers=1),
}
INFIXES = ("infix", "infix of words")  # not for encoder-decoders


def build(name: str, base: Base, binder: Binder, *, seed: int = 1) -> Method:
    return build_method(METHODS[name], base, binder.record, init_seed=seed, dropout_seed=seed)


def ids_of(base: Base, text: str) -> Tensor:
    ids = base.tokenizer(text, add_special_tokens=False).input_ids
    return torch.tensor([ids], device=base.device)


def logits_of(base: Base, binder: Binder, method: Method, ids: Tensor, step: int | None = None) -> Tensor:
    """The model's output (B, S, vocabulary) with the method in it; an infix stands behind the second token."""
    own, insert = method.own_model, method.insert(step)
    model, binder = (base.model, binder) if own is None else (own, Binder.of(own))
    room = ids.new_zeros(ids.shape[0], insert.infix_length)
    ids = torch.cat([ids[:, :2], room, ids[:, 2:]], dim=1)
    with binder.bind([insert], [0] * ids.shape[0], infix_starts=[2] * ids.shape[0]):
        logits: Tensor = model(**inputs_of(base, ids), use_cache=False).logits
    return torch.cat([logits[:, :2], logits[:, 2 + insert.infix_length :]], dim=1)


def inputs_of(base: Base, ids: Tensor) -> dict[str, Tensor]:
    """What a model is called with to read these tokens; an encoder-decoder on both sides."""
    if base.shape.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1], device=ids.device).expand_as(ids)}


def train(base: Base, binder: Binder, method: Method, num_steps: int = 3) -> None:
    """A few plain steps, so that every tensor has moved."""
    ids = ids_of(base, " name : The Eagle | food : Chinese")
    trained = [p for p in method.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.05)
    for step in range(num_steps):
        logits = logits_of(base, binder, method, ids, step)
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
        method.push_gradients()
        optimiser.step()
        optimiser.zero_grad()
