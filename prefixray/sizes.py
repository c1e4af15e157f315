"""How large a trial is, from its configuration and the base's sizes alone: no tensor is made for it."""

from collections.abc import Mapping
from typing import assert_never

from prefixray.config import AdapterTrial, AnyTrial, ArmConfig, FinetuneTrial, LoraTrial, PrefixTrial

BYTES_PER_TRAINED = 16  # fp32 value, gradient and Adam's two moments
_WORDS = 8  # prefix positions assumed where init_token sets them


def trained_parameters(method: AnyTrial, shape: Mapping[str, int]) -> int:
    """How many numbers the optimiser of a trial moves, on a base of this `Shape` (as a dict).

    Exact for prefixes and adapters; for LoRA an upper bound (a fused query-key-value projection in every layer).
    """
    layers, hidden = shape["num_layers"], shape["hidden_size"]
    match method:
        case PrefixTrial():
            positions = method.preseqlen or _WORDS
            width = layers * 2 * shape["num_kv_heads"] * shape["head_dim"]
            if method.mid_dim is None:
                return positions * width
            mid = method.mid_dim
            return positions * hidden + (hidden + 1) * mid + (mid + 1) * width
        case AdapterTrial():
            return layers * (2 * hidden * method.bottleneck + method.bottleneck + 3 * hidden)
        case LoraTrial():
            return layers * method.rank * 4 * hidden
        case FinetuneTrial():
            return shape["num_parameters"]
        case _:
            assert_never(method)


def largest_trial(arm: ArmConfig, shape: Mapping[str, int]) -> int:
    """Bytes of the state of an arm's largest trial."""
    lows = {key: dimension.ends()[0] for key, dimension in arm.dimensions.items()}
    largest = 0
    for key, dimension in arm.dimensions.items():
        lows[key] = max(dimension.ends(), key=lambda end, key=key: _size(arm, {**lows, key: end}, shape))  # type: ignore[misc]
    largest = _size(arm, lows, shape)
    return BYTES_PER_TRAINED * largest


def _size(arm: ArmConfig, values: Mapping[str, object], shape: Mapping[str, int]) -> int:
    return trained_parameters(arm.trial(values).method, shape)
