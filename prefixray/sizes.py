"""How large trials and packs are, from configurations and the base's sizes alone: no tensor is made for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from prefixray.config import AdapterTrial, AnyTrial, ArmConfig, FinetuneTrial, LoraTrial, PrefixTrial

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments
_WORDS = 8  # prefix positions assumed where init_token sets them


def trained_parameters(method: AnyTrial, shape: Mapping[str, Any]) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this `Shape` (as a dict).

    Exact for prefixes; for adapters too; for LoRA an upper bound (a fused query-key-value projection in every layer).
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
    tokens: int  # padded, of encoder and decoder
    targets: int  # that the head is run on
    is_checkpointed: bool = False


def pack_bytes(methods: Sequence[AnyTrial], shape: Mapping[str, Any], load: Load, *, weight_bytes: int = 4) -> int:
    """Peak memory of training these trials in one pack, the base included; an estimate, a few per cent high.

    Counted are the base; of each trial its fp32 values and Adam's moments, and five copies of what its prefix folds to
    (the network's output, its gradient, the pack's stack of all prefixes, that one's gradient, one in passing); the
    gradients of the one trial that is being updated; and what a micro-batch keeps for its backward.
    """
    trained = [trained_parameters(method, shape) for method in methods]
    folded = sum(stored_prefix(method, shape) for method in methods if isinstance(method, PrefixTrial))
    state = (BYTES_PER_TRAINED - 4) * sum(trained) + 4 * max(trained)
    return weight_bytes * int(shape["num_parameters"]) + state + 20 * folded + _kept_bytes(methods, shape, load)


def _kept_bytes(methods: Sequence[AnyTrial], shape: Mapping[str, Any], load: Load) -> int:
    """What the forward of one micro-batch keeps, in fp32; frozen matrices keep nothing of their inputs.

    Per token and block the inputs of norms and of the activation; per attention queries, keys, values and its output;
    per row the keys and values of its prefix, copied in front of its own; per target token three rows of logits.
    """
    hidden, ffn, sites = shape["hidden_size"], shape["ffn_size"], shape["sites"]
    num_blocks = sum(site["num_layers"] for name, site in sites.items() if name != "cross")
    num_attentions = sum(site["num_layers"] for site in sites.values())
    prefixes = [stored_prefix(method, shape) for method in methods if isinstance(method, PrefixTrial)]
    row = max(prefixes, default=0)
    if load.is_checkpointed:
        per_token = num_blocks * hidden + (2 * ffn + 8 * hidden)
        row //= max(1, num_blocks)
    else:
        per_token = num_blocks * (2 * ffn + 2 * hidden) + num_attentions * 5 * hidden
    return int(4 * (load.tokens * per_token + load.rows * row + 3 * load.targets * shape["vocab_size"]))


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
    lows = {key: dimension.ends()[0] for key, dimension in arm.dimensions.items()}
    largest = 0
    for key, dimension in arm.dimensions.items():
        lows[key] = max(dimension.ends(), key=lambda end, key=key: _size(arm, {**lows, key: end}, shape))  # type: ignore[misc]
    largest = _size(arm, lows, shape)
    return BYTES_PER_TRAINED * largest


def _size(arm: ArmConfig, values: Mapping[str, object], shape: Mapping[str, Any]) -> int:
    return trained_parameters(arm.trial(values).method, shape)
