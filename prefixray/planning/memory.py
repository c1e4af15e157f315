"""How much memory trials and packs take, computed from their configurations and the base's sizes alone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from prefixray.config.schema import ArmConfig
from prefixray.config.space import searched_values
from prefixray.config.trials import AnyTrial
from prefixray.methods.catalog import copied_parameters, facts_of, trained_parameters
from prefixray.model.shape import Shape
from prefixray.system.records import Scalar

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments


@dataclass(frozen=True)
class Load:
    """The size of a pack's largest micro-batch."""

    rows: int
    tokens: int  # of the decoder, padding included
    targets: int  # tokens that the head is run on
    is_checkpointed: bool = False
    encoder_tokens: int = 0


def pack_bytes(
    methods: Sequence[AnyTrial], shape: Shape, load: Load, *, weight_bytes: int = 4, on_gpu: bool = False
) -> int:
    """Peak memory of training these trials in one pack, the base included; an estimate in bytes.

    It is the sum of
    - the base;
    - each trial's fp32 values and Adam's moments, its folded prefix and that prefix's gradient;
    - the gradients of the one trial that is being updated, on a GPU of all, which are updated together;
    - on a GPU, copies of the tensors of trials that share products, in fp32 and in bf16;
    - a fine-tuning's copies of the weights that it does not train;
    - the activations that a micro-batch keeps for its backward, with the stacked prefixes of its trials and their
      gradient.
    """
    folded = sorted((facts_of(method).folded(method, shape) for method in methods), reverse=True)
    stacked = 8 * sum(folded[: load.rows])
    longest = folded[0] if folded else 0
    base = weight_bytes * shape.num_parameters
    if on_gpu:
        number = 4 if weight_bytes == 4 else 2  # bytes
        state = sum(_bytes_on_gpu(method, shape) for method in methods)
        return base + state + stacked + number * kept_numbers(longest, shape, load)
    trained = [trained_parameters(method, shape) for method in methods]
    state = (BYTES_PER_TRAINED - 4) * sum(trained) + 4 * max(trained) + 8 * sum(folded)
    state += 4 * sum(copied_parameters(method, shape) for method in methods)
    return base + state + stacked + 4 * kept_numbers(longest, shape, load)


def _bytes_on_gpu(method: AnyTrial, shape: Shape) -> int:
    """A trial with its gradients, its folded prefix and that prefix's gradient, or its part of the trials' stacks."""
    trained, folded = trained_parameters(method, shape), facts_of(method).folded(method, shape)
    is_stacked = not (folded or method.has_own_model)
    state = BYTES_PER_TRAINED * trained + 4 * copied_parameters(method, shape)
    return state + 8 * folded + (6 * trained if is_stacked else 0)


def kept_numbers(folded: int, shape: Shape, load: Load) -> int:
    """The activations that the forward of one micro-batch keeps. Frozen matrices keep no inputs.

    A token keeps, in each block, the inputs of the norms and of the activation, and queries, keys, values and output of
    the attention. A row keeps the keys and values of its prefix, copied in front of its own. A target token keeps three
    rows of logits. With checkpointing, each block's input and everything of one block are kept.
    """
    hidden, ffn, num_blocks = shape.hidden_size, shape.ffn_size, shape.block_counts
    depth, encoder_depth = num_blocks["decoder"], num_blocks.get("encoder", 0)
    decoder = (ffn + 9 * hidden) if shape.is_encoder_decoder else 3 * ffn + 6 * hidden  # gated, or GELU in its parts
    encoder = ffn + 8 * hidden  # with the keys and values of its output in a decoder block
    tokens = load.tokens * depth * decoder + load.encoder_tokens * encoder_depth * encoder
    if load.is_checkpointed:
        inputs = (load.tokens * depth + load.encoder_tokens * encoder_depth) * hidden
        tokens = inputs + max(load.tokens * decoder, load.encoder_tokens * encoder)
        folded //= max(1, depth + encoder_depth)
    return int(tokens + load.rows * folded + 3 * load.targets * shape.vocab_size)


def largest_trial(arm: ArmConfig, shape: Shape, *, on_gpu: bool = False) -> int:
    """Bytes that the state of an arm's largest trial takes, on a GPU with all that its step adds to those of others."""
    method = largest_method(arm, shape)
    if on_gpu:
        return _bytes_on_gpu(method, shape)
    return BYTES_PER_TRAINED * trained_parameters(method, shape) + 4 * copied_parameters(method, shape)


def largest_method(arm: ArmConfig, shape: Shape) -> AnyTrial:
    """The method of an arm's largest trial."""
    methods = [arm.trial(values).method for values in arm.corners()]
    values = {key: dimension.ends()[0] for key, dimension in arm.dimensions.items()}
    for key, dimension in arm.dimensions.items():
        sizes: dict[Scalar, int] = {}
        for end in dimension.ends():
            with suppress(ValidationError):  # three values may not go together where every two do
                searched = searched_values(arm.dimensions, arm.fixed, {**values, key: end})
                methods.append(arm.trial(searched).method)
                sizes[end] = trained_parameters(methods[-1], shape)
        values[key] = max(sizes, key=sizes.__getitem__, default=values[key])
    return max(methods, key=lambda method: trained_parameters(method, shape))
