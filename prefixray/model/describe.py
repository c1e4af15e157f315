"""The sizes of a model, read off its configuration."""

from transformers import PreTrainedConfig

from prefixray.model.shape import Shape, SiteShape


def describe(config: PreTrainedConfig, num_parameters: int) -> Shape:
    """The shape of a model with this configuration.

    Raises `AttributeError` or `RuntimeError` where the configuration does not give each size once for all layers.
    """
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    num_kv_heads = _first(text, "num_key_value_heads") or num_heads
    head_dim = _first(text, "head_dim") or text.hidden_size // num_heads
    own = SiteShape(text.num_hidden_layers, num_heads, num_kv_heads, head_dim)  # of an encoder-decoder: the encoder's
    sites = {"decoder": own}
    if config.is_encoder_decoder:
        layers = _first(text, "decoder_layers", "num_decoder_layers") or own.num_layers
        heads = _first(text, "decoder_attention_heads") or num_heads
        decoder = SiteShape(layers, heads, heads, head_dim if heads == num_heads else text.hidden_size // heads)
        sites = {"encoder": own, "decoder": decoder, "cross": decoder}
    return Shape(
        is_encoder_decoder=config.is_encoder_decoder,
        sites=sites,
        hidden_size=text.hidden_size,
        ffn_size=_first(text, "intermediate_size", "encoder_ffn_dim", "d_ff", "n_inner") or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        num_parameters=num_parameters,
        is_tied=bool(text.tie_word_embeddings),
        max_positions=_max_positions(text),
    )


def _max_positions(config: PreTrainedConfig) -> int | None:
    """The most positions of a row; None: no limit.

    Where a layer's attention only reaches back over a window or a chunk, its length is the limit. A prefix is seen from
    everywhere, and so is a prompt that rows share: a longer row would see more than the base was trained to see.
    """
    limits = [getattr(config, "max_position_embeddings", None), getattr(config, "attention_chunk_size", None)]
    kinds = getattr(config, "layer_types", None)
    if kinds is None or "sliding_attention" in kinds:
        limits.append(getattr(config, "sliding_window", None))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # a longer row would change the positions of all rows beside it
        name = "original_max_position_embeddings"
        limits.append(rope.get(name, getattr(config, name, None)))
    return min((limit for limit in limits if limit is not None), default=None)


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    """The first of these entries that the configuration has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
