"""Where a model attends: its sites, and their attention modules."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefixray.errors import UserError


def attentions(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, int]]:
    """Every attention module with its site and its layer there.

    Raises `UserError` where a decoder-only model's layers do not have one attention each.
    """
    if not model.config.is_encoder_decoder:
        found = [module for module in model.modules() if _is_attention(module)]
        num_layers = model.config.get_text_config().num_hidden_layers
        if len(found) != num_layers:
            raise UserError(
                f"base: {type(model).__name__} has {len(found)} attentions in {num_layers} layers, where a prefix "
                "needs one in each; take another base"
            )
        yield from ((module, "decoder", layer) for layer, module in enumerate(found))
        return
    encoder, decoder = model.get_encoder(), model.get_decoder()  # type: ignore[no-untyped-call]
    for side, sites in ((encoder, ("encoder",)), (decoder, ("decoder", "cross"))):
        blocks = [module for module in side.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer, block in enumerate(blocks):
            found = [module for module in block.modules() if _is_attention(module)]
            yield from ((module, site, layer) for module, site in zip(found, sites, strict=True))


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")
