"""How large trials and packs are, and how many there is room for, from configurations and the base's sizes alone."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, assert_never

from pydantic import ValidationError

from prefixray.arms import samples, searched
from prefixray.config import AdapterTrial, AnyTrial, ArmConfig, FinetuneTrial, LoraTrial, PrefixTrial
from prefixray.space import Scalar

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments
MOST_SLOTS = 64  # trials in a pack at most, whatever the memory
_MEMORY_SHARE = 0.6  # of what is free after loading the base, for trials; the rest is for activations
_WORDS = 8  # prefix positions assumed where init_token sets them
_TOLERANCE = 1.02  # a base's parameters may be this much fewer than its matrices suggest


def trained_parameters(method: AnyTrial, shape: Mapping[str, Any]) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this `Shape` (as a dict).

    Exact for prefixes and adapters. For LoRA an upper bound (a fused query-key-value projection in every layer), where
    no projection is wider than the model. For fine-tuning of the last blocks, or without word embeddings, an estimate:
    the matrices alone, the output layer tied.
    """
    hidden, sites = int(shape["hidden_size"]), shape["sites"]
    num_attentions = sum(int(site["num_layers"]) for site in sites.values())
    match method:
        case PrefixTrial():
            return _of_prefix(method, shape)
        case AdapterTrial():
            num_adapters, width, rest = _adapters(method, shape)
            return num_adapters * (adapter_bottleneck(method, shape) * width + rest)
        case LoraTrial():
            widest = max(hidden, *(site["num_kv_heads"] * site["head_dim"] for site in sites.values()))
            return num_attentions * method.rank * 4 * int(widest)
        case FinetuneTrial(top_layers=None, tune_embeddings=True):
            return int(shape["num_parameters"])
        case FinetuneTrial():
            blocks, words = int(_block_matrices(shape) * top_share(method, shape)), hidden * int(shape["vocab_size"])
            return blocks + hidden + (words if method.tune_embeddings else 0)
        case _:
            assert_never(method)


def adapter_bottleneck(method: AdapterTrial, shape: Mapping[str, Any]) -> int:
    """The width of the adapters' inner layer: the given one, or the one whose size comes nearest to `percent`."""
    if method.bottleneck is not None:
        return method.bottleneck
    assert method.percent is not None, "one of the two is given"
    num_adapters, width, rest = _adapters(method, shape)
    wanted = method.percent / 100 * int(shape["num_parameters"]) / num_adapters
    return max(1, round((wanted - rest) / width))


def _adapters(method: AdapterTrial, shape: Mapping[str, Any]) -> tuple[int, int, int]:
    """How many adapters there are, and the parameters of each: per unit of its bottleneck, and besides."""
    hidden, sites = int(shape["hidden_size"]), shape["sites"]
    blocks = _num_blocks(shape)
    if method.design == 1:
        return blocks, 2 * hidden + 1, 3 * hidden
    return blocks + sum(site["num_layers"] for site in sites.values()), 2 * hidden + 1, hidden


def top_share(method: FinetuneTrial, shape: Mapping[str, Any]) -> float:
    """The share of the blocks that a fine-tuning trains."""
    return 1.0 if method.top_layers is None else min(1.0, method.top_layers / _num_blocks(shape))


def infix_positions(method: AnyTrial) -> int:
    """How many tokens longer a trial makes its rows."""
    return _positions(method) if isinstance(method, PrefixTrial) and method.format_mode == "infix" else 0


@dataclass(frozen=True)
class Matrices:
    """Parameters by how often they are used: per token of the encoder, of the decoder, per predicted token."""

    encoder: float
    decoder: float
    last: float  # those of the decoder that are in its last feed-forward layers
    head: float


def matrices(shape: Mapping[str, Any]) -> Matrices:
    """The sizes of a base's matrices, from its `Shape` (as a dict).

    Whether the feed-forward layers have two or three matrices is told from the number of all parameters. Keys and
    values of cross-attention are computed once per encoder token.
    """
    hidden, ffn, sites = shape["hidden_size"], shape["ffn_size"], shape["sites"]
    head = hidden * shape["vocab_size"]
    attention = {name: site["num_layers"] * 2 * hidden * hidden for name, site in sites.items()}  # queries and output
    from_inputs = {name: site["num_layers"] * 2 * hidden * _kv_width(site) for name, site in sites.items()}
    num_blocks = {name: site["num_layers"] for name, site in sites.items() if name != "cross"}
    total = sum(attention.values()) + sum(from_inputs.values()) + head
    is_gated = total + 3 * sum(num_blocks.values()) * hidden * ffn <= _TOLERANCE * shape["num_parameters"]
    wide = {name: count * (3 if is_gated else 2) * hidden * ffn for name, count in num_blocks.items()}
    encoder = sum(part.get("encoder", 0) for part in (attention, from_inputs, wide)) + from_inputs.get("cross", 0)
    decoder = sum(part["decoder"] for part in (attention, from_inputs, wide)) + attention.get("cross", 0)
    return Matrices(encoder, decoder, wide["decoder"] / num_blocks["decoder"], head)


def _block_matrices(shape: Mapping[str, Any]) -> float:
    sizes = matrices(shape)
    return sizes.encoder + sizes.decoder


def _num_blocks(shape: Mapping[str, Any]) -> int:
    return sum(int(site["num_layers"]) for name, site in shape["sites"].items() if name != "cross")


def copied_parameters(method: AnyTrial, shape: Mapping[str, Any]) -> int:
    """Weights of the base that a trial has a copy of without training them, in fp32."""
    if not isinstance(method, FinetuneTrial):
        return 0
    return int(shape["num_parameters"]) - trained_parameters(method, shape)


@dataclass(frozen=True)
class Load:
    """What a pack's largest micro-batch holds."""

    rows: int
    tokens: int  # of the decoder, padding included
    targets: int  # that the head is run on
    is_checkpointed: bool = False
    encoder_tokens: int = 0


def pack_bytes(methods: Sequence[AnyTrial], shape: Mapping[str, Any], load: Load, *, weight_bytes: int = 4) -> int:
    """Peak memory of training these trials in one pack, the base included; an estimate.

    Counted are the base; of each trial its fp32 values and Adam's moments, what its prefix folds to and the gradient of
    that; the gradients of the one trial that is being updated; a fine-tuning's copy of the weights that it does not
    train; and what a micro-batch keeps for its backward, with the stack of its trials' prefixes and the gradient of
    that.
    """
    total = int(shape["num_parameters"])
    trained = [trained_parameters(method, shape) for method in methods]
    folded = sorted((stored_prefix(m, shape) for m in methods if isinstance(m, PrefixTrial)), reverse=True)
    state = (BYTES_PER_TRAINED - 4) * sum(trained) + 4 * max(trained) + 8 * sum(folded)
    state += 4 * sum(copied_parameters(method, shape) for method in methods)
    stacked = 8 * sum(folded[: load.rows])
    longest = folded[0] if folded else 0
    return weight_bytes * total + state + stacked + _kept_bytes(longest, shape, load)


def _kept_bytes(folded: int, shape: Mapping[str, Any], load: Load) -> int:
    """What the forward of one micro-batch keeps, in fp32; frozen matrices keep nothing of their inputs.

    Per token and block the inputs of norms and of the activation, per attention queries, keys, values and its output;
    per row the keys and values of its prefix, copied in front of its own; per target token three rows of logits. With
    checkpointing, each block's input and all of one block.
    """
    hidden, ffn, sites = shape["hidden_size"], shape["ffn_size"], shape["sites"]
    depth = sites["decoder"]["num_layers"]
    decoder = (ffn + 9 * hidden) if shape["is_encoder_decoder"] else 3 * ffn + 6 * hidden  # gated, or GELU in its parts
    encoder = ffn + 8 * hidden  # its output's keys and values in a decoder block with it
    encoder_depth = sites["encoder"]["num_layers"] if "encoder" in sites else 0
    tokens = load.tokens * depth * decoder + load.encoder_tokens * encoder_depth * encoder
    if load.is_checkpointed:
        inputs = (load.tokens * depth + load.encoder_tokens * encoder_depth) * hidden
        tokens = inputs + max(load.tokens * decoder, load.encoder_tokens * encoder)
        folded //= max(1, depth + encoder_depth)
    return int(4 * (tokens + load.rows * folded + 3 * load.targets * shape["vocab_size"]))


def stored_prefix(method: PrefixTrial, shape: Mapping[str, Any]) -> int:
    """How many numbers a folded prefix has, at all its sites."""
    sites = shape["sites"]
    return sum(_positions(method) * _width(sites[name]) for name in method.active_sites(sites))


def _of_prefix(method: PrefixTrial, shape: Mapping[str, Any]) -> int:
    hidden, sites = int(shape["hidden_size"]), shape["sites"]
    if method.prefix_mode == "embedding":
        return _rows(method, hidden, hidden)
    own = sum(_rows(method, hidden, _width(sites[name])) for name in method.active_sites(sites))
    return own + infix_positions(method) * hidden


def _rows(method: PrefixTrial, hidden: int, width: int) -> int:
    """Of one parametrisation that gives a row of this width for each position."""
    positions, mid = _positions(method), method.mid_dim
    if mid is None:
        return positions * width
    return positions * hidden + (hidden + 1) * mid + (mid + 1) * width


def _positions(method: PrefixTrial) -> int:
    return method.preseqlen or _WORDS


def _width(site: Mapping[str, int]) -> int:
    """Numbers per prefix position: keys and values of all layers."""
    return site["num_layers"] * 2 * site["num_kv_heads"] * site["head_dim"]


def largest_trial(arm: ArmConfig, shape: Mapping[str, Any]) -> int:
    """Bytes of the state of an arm's largest trial."""
    method = largest_method(arm, shape)
    return BYTES_PER_TRAINED * trained_parameters(method, shape) + 4 * copied_parameters(method, shape)


def largest_method(arm: ArmConfig, shape: Mapping[str, Any]) -> AnyTrial:
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


def num_slots(free_bytes: float, trial_bytes: float) -> int:
    """Trials that a worker takes at once, given what is free beside the base and the largest trial's state."""
    return max(1, min(MOST_SLOTS, int(_MEMORY_SHARE * free_bytes / trial_bytes)))


def num_at_once(arm: ArmConfig, concurrency: int | None, *, num_slots: int, num_workers: int) -> int:
    """Trials of an arm at once: few enough that the sampler learns from generation to generation."""
    slots = num_workers if arm.exclusive else num_slots * num_workers
    return min(slots, concurrency or math.ceil(arm.num_trials / 4))


def cpu_workers(num_cpus: int) -> tuple[int, int]:
    """How many workers a machine without GPUs has, and the threads of each.

    Two with half the threads each beat one with all: 15 % on two idle cores, and more on busy ones, where every
    operation waits for the slowest thread.
    """
    num_workers = min(2, num_cpus)
    return num_workers, num_cpus // num_workers


def _kv_width(site: Mapping[str, int]) -> int:
    return site["num_kv_heads"] * site["head_dim"]
