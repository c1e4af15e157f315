"""Random draws that are hashes of numbers: of a seed, a step, a place, a position, a channel.

They are the same on every device and in any order, since nothing but whole numbers is computed, and the device computes
them itself. Torch's own generators differ between a CPU and a GPU.
"""

# T trials, S rows of draws, C channels

import functools
import hashlib

import torch
from torch import Tensor

_ODD_64, _ODD_32 = (-7046029254386353131, -4417276706812531889), (2146121005, -2073254261)  # whose products mix well
_ROWS = 512  # multiple of rows whose keys are known
_CHANNELS = 1 << 60  # where the numbers of channels start: apart from those of rows


def key_of(*numbers: int) -> int:
    """Numbers as one of 32 bits."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "little", signed=True)


def draws_of(key: int | Tensor, shape: tuple[int, int], *, index: int = 0, device: torch.device) -> Tensor:
    """A number of 32 bits for each element (S, C) at the place `index`, given a key; (T, S, C), given keys (T, 1)."""
    keys = _known(index << 40, -(-shape[0] // _ROWS) * _ROWS, device)[: shape[0]] + key
    return _hashed(keys[..., None] + _known(_CHANNELS, shape[1], device))


@functools.lru_cache(maxsize=1024)
def _known(first: int, count: int, device: torch.device) -> Tensor:
    """Of numbers that come again in every step, (count,)."""
    return mixed(torch.arange(first, first + count, device=device))


def mixed(numbers: Tensor) -> Tensor:
    """A number of 32 bits for each of 64 bits, which depends on all of them."""
    for odd in _ODD_64:
        numbers = (numbers ^ (numbers >> 31)) * odd
    return (numbers >> 32).int()


def _hashed(sums: Tensor) -> Tensor:
    """Sums of keys, which this changes, as draws."""
    for odd in _ODD_32:
        sums.bitwise_xor_(sums >> 15).mul_(odd)
    return sums


def least_kept(p: float) -> int:
    """The smallest draw of an element that is not dropped."""
    return round(p * 2**32) - 2**31


def kept(keys: Tensor, channels: Tensor, p: float) -> Tensor:
    """Which elements stay, each with the probability 1 - p, from the numbers of their rows and of their channels."""
    return _hashed(keys + mixed(channels)) >= least_kept(p)


def scaled(values: Tensor, is_kept: Tensor, p: float) -> Tensor:
    """Dropout: the values that stay, divided by the share of those, and zeros."""
    return torch.where(is_kept, values / (1.0 - p), values.new_zeros(()))
