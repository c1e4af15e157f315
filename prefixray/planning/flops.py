"""Floating-point operations of training and decoding, from the base's sizes and the lengths of texts."""

from dataclasses import replace

from prefixray.batching.lengths import Lengths
from prefixray.config.trials import AnyTrial
from prefixray.methods.catalog import facts_of
from prefixray.model.shape import Shape, matrices


def forward_flops(shape: Shape, lengths: Lengths, *, is_last_whole: bool = False) -> float:
    """Operations of one example's forward: two per parameter and token, without the attention scores.

    The head runs on target tokens alone. So do the last feed-forward layers, if not `is_last_whole`.
    """
    sizes = matrices(shape)
    inside = sizes.encoder * lengths.encoder + (sizes.decoder - sizes.last) * lengths.decoder
    last = sizes.last * (lengths.decoder if is_last_whole else lengths.targets)
    return 2 * (inside + last + sizes.head * lengths.targets)


def training_flops(shape: Shape, lengths: Lengths, method: AnyTrial, *, is_checkpointed: bool = False) -> float:
    """Operations of one example's forward and backward; see `forward_flops`.

    Frozen weights have no gradients. Below the blocks that a fine-tuning trains there is no backward, unless the word
    embeddings are trained. The work that a trial does once per step is left out, such as the forward over an
    embedding-only prefix.
    """
    facts = facts_of(method)
    longer = replace(lengths, decoder=lengths.decoder + facts.infix_positions(method))
    weights, inputs = facts.differentiated(method, shape)
    once = forward_flops(shape, longer, is_last_whole=not facts.runs_last_ffn_on_targets)
    return (1 + weights + inputs + is_checkpointed) * once


def decoding_flops(shape: Shape, source: float, *, num_beams: int, max_new_tokens: int) -> float:
    """Operations of decoding one source, if every beam runs to `max_new_tokens`."""
    sizes = matrices(shape)
    prompt = 2 * (sizes.encoder or sizes.decoder) * source
    return prompt + 2 * num_beams * max_new_tokens * (sizes.decoder + sizes.head)
