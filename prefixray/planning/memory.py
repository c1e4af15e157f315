"""How large trials and packs are, and how many there is room for, from configurations and the base's sizes alone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from prefixray.config.arms import samples, searched
from prefixray.config.schema import ArmConfig
from prefixray.config.trials import AnyTrial
from prefixray.methods.catalog import copied_parameters, facts_of, trained_parameters
from prefixray.model.shape import Shape
from prefixray.system.records import Scalar

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments
_MEMORY_SHARE = 0.6  # of what is free after loading the base, for trials; the rest is for activations


@dataclass(frozen=True)
class Load:
    """What a pack's largest micro-batch holds."""

    rows: int
    tokens: int  # of the decoder, padding included
    targets: int  # that the head is run on
    is_checkpointed: bool = False
    encoder_tokens: int = 0


def pack_bytes(methods: Sequence[AnyTrial], shape: Shape, load: Load, *, weight_bytes: int = 4) -> int:
    """Peak memory of training these trials in one pack, the base included; an estimate.

    Counted are the base; of each trial its fp32 values and Adam's moments, what its prefix folds to and the gradient of
    that; the gradients of the one trial that is being updated; a fine-tuning's copy of the weights that it does not
    train; and what a micro-batch keeps for its backward, with the stack of its trials' prefixes and the gradient of
    that.
    """
    total = shape.num_parameters
    trained = [trained_parameters(method, shape) for method in methods]
    folded = sorted((facts_of(method).folded(method, shape) for method in methods), reverse=True)
    state = (BYTES_PER_TRAINED - 4) * sum(trained) + 4 * max(trained) + 8 * sum(folded)
    state += 4 * sum(copied_parameters(method, shape) for method in methods)
    stacked = 8 * sum(folded[: load.rows])
    longest = folded[0] if folded else 0
    return weight_bytes * total + state + stacked + _kept_bytes(longest, shape, load)


def _kept_bytes(folded: int, shape: Shape, load: Load) -> int:
    """What the forward of one micro-batch keeps, in fp32; frozen matrices keep nothing of their inputs.

    Per token and block the inputs of norms and of the activation, per attention queries, keys, values and its output;
    per row the keys and values of its prefix, copied in front of its own; per target token three rows of logits. With
    checkpointing, each block's input and all of one block.
    """
    hidden, ffn, num_blocks = shape.hidden_size, shape.ffn_size, shape.block_counts
    depth, encoder_depth = num_blocks["decoder"], num_blocks.get("encoder", 0)
    decoder = (ffn + 9 * hidden) if shape.is_encoder_decoder else 3 * ffn + 6 * hidden  # gated, or GELU in its parts
    encoder = ffn + 8 * hidden  # its output's keys and values in a decoder block with it
    tokens = load.tokens * depth * decoder + load.encoder_tokens * encoder_depth * encoder
    if load.is_checkpointed:
        inputs = (load.tokens * depth + load.encoder_tokens * encoder_depth) * hidden
        tokens = inputs + max(load.tokens * decoder, load.encoder_tokens * encoder)
        folded //= max(1, depth + encoder_depth)
    return int(4 * (tokens + load.rows * folded + 3 * load.targets * shape.vocab_size))


def largest_trial(arm: ArmConfig, shape: Shape) -> int:
    """Bytes of the state of an arm's largest trial."""
    method = largest_method(arm, shape)
    return BYTES_PER_TRAINED * trained_parameters(method, shape) + 4 * copied_parameters(method, shape)


def largest_method(arm: ArmConfig, shape: Shape) -> AnyTrial:
    """The method of an arm's largest trial."""
    methods = [arm.trial(values).method for values in samples(arm)]
    values = {key: dimension.ends()[0] for key, dimension in arm.dimensions.items()}
    for key, dimension in arm.dimensions.items():
        sizes: dict[Scalar, int] = {}
        for end in dimension.ends():
            with suppress(ValidationError):  # three values may not go together where every two do
                methods.append(arm.trial(searched(arm, {**values, key: end})).method)
                sizes[end] = trained_parameters(methods[-1], shape)
        values[key] = max(sizes, key=sizes.__getitem__, default=values[key])
    return max(methods, key=lambda method: trained_parameters(method, shape))
