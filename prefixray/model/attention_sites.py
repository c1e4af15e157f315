"""Where a model attends: its attention modules, by site and layer."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefixray.errors import UserError


def attentions(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, int]]:
    """Every attention module, its site, and its layer within the site.

    Sites are "decoder", and in an encoder-decoder also "encoder" and "cross" (from decoder to encoder). Raises
    `UserError` where a decoder-only model does not have one attention in each layer.
    """
    if not model.config.is_encoder_decoder:
        modules = [module for module in model.modules() if _is_attention(module)]
        num_layers = model.config.get_text_config().num_hidden_layers
        if len(modules) != num_layers:
            raise UserError(
                f"base: {type(model).__name__} has {len(modules)} attentions in {num_layers} layers, where a prefix "
                "needs one in each; take another base"
            )
        yield from ((module, "decoder", layer) for layer, module in enumerate(modules))
        return
    encoder, decoder = model.get_encoder(), model.get_decoder()  # type: ignore[no-untyped-call]
    for side, sites in ((encoder, ("encoder",)), (decoder, ("decoder", "cross"))):
        blocks = [module for module in side.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer, block in enumerate(blocks):
            modules = [module for module in block.modules() if _is_attention(module)]
            yield from ((module, site, layer) for module, site in zip(modules, sites, strict=True))


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")
