"""How large trials and packs are, and how many there is room for, from configurations and the base's sizes alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from prefixray.config import AdapterTrial, AnyTrial, ArmConfig, FinetuneTrial, LoraTrial, PrefixTrial

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments
MOST_SLOTS = 64  # trials in a pack at most, whatever the memory
_MEMORY_SHARE = 0.6  # of what is free after loading the base, for trials; the rest is for activations
_WORDS = 8  # prefix positions assumed where init_token sets them


def trained_parameters(method: AnyTrial, shape: Mapping[str, Any]) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this `Shape` (as a dict).

    Exact for prefixes; for adapters too; for LoRA an upper bound (a fused query-key-value projection in every
    layer), where no projection is wider than the model.
    """
    hidden, sites = shape["hidden_size"], shape["sites"]
    num_blocks = sum(site["num_layers"] for name, site in sites.items() if name != "cross")
    num_attentions = sum(site["num_layers"] for site in sites.values())
    match method:
        case PrefixTrial():
            return sum(_of_site(method, sites[name], hidden) for name in method.active_sites(sites))
        case AdapterTrial():
            return int(num_blocks * (2 * hidden * method.bottleneck + method.bottleneck + 3 * hidden))
        case LoraTrial():
            widest = max(hidden, *(site["num_kv_heads"] * site["head_dim"] for site in sites.values()))
            return int(num_attentions * method.rank * 4 * widest)
        case FinetuneTrial():
            return int(shape["num_parameters"])
        case _:
            assert_never(method)


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
    that; the gradients of the one trial that is being updated; and what a micro-batch keeps for its backward, with the
    stack of its trials' prefixes and the gradient of that.
    """
    trained = [trained_parameters(method, shape) for method in methods]
    folded = sorted((stored_prefix(m, shape) for m in methods if isinstance(m, PrefixTrial)), reverse=True)
    state = (BYTES_PER_TRAINED - 4) * sum(trained) + 4 * max(trained) + 8 * sum(folded)
    stacked = 8 * sum(folded[: load.rows])
    longest = folded[0] if folded else 0
    return weight_bytes * int(shape["num_parameters"]) + state + stacked + _kept_bytes(longest, shape, load)


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


def _of_site(method: PrefixTrial, site: Mapping[str, int], hidden: int) -> int:
    positions, width = _positions(method), _width(site)
    if method.mid_dim is None:
        return positions * width
    mid = method.mid_dim
    return positions * hidden + (hidden + 1) * mid + (mid + 1) * width


def _positions(method: PrefixTrial) -> int:
    return method.preseqlen or _WORDS


def _width(site: Mapping[str, int]) -> int:
    """Numbers per prefix position: keys and values of all layers."""
    return site["num_layers"] * 2 * site["num_kv_heads"] * site["head_dim"]


def largest_trial(arm: ArmConfig, shape: Mapping[str, Any]) -> int:
    """Bytes of the state of an arm's largest trial."""
    return BYTES_PER_TRAINED * trained_parameters(largest_method(arm, shape), shape)


def largest_method(arm: ArmConfig, shape: Mapping[str, Any]) -> AnyTrial:
    """The method of an arm's largest trial."""
    values = {key: dimension.ends()[0] for key, dimension in arm.dimensions.items()}
    for key, dimension in arm.dimensions.items():
        values[key] = max(dimension.ends(), key=lambda end, key=key: _size(arm, {**values, key: end}, shape))  # type: ignore[misc]
    return arm.trial(values).method


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


def _size(arm: ArmConfig, values: Mapping[str, object], shape: Mapping[str, Any]) -> int:
    return trained_parameters(arm.trial(values).method, shape)
