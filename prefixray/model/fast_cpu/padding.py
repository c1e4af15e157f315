"""Sizes filled up to multiples, so that few shapes occur."""

from torch import Tensor
from torch.nn import functional

MULTIPLE = 64  # of tokens that are filled up to one


def filled(count: int, multiple: int = MULTIPLE) -> int:
    """The next multiple of so many tokens."""
    return -(-count // multiple) * multiple


def filled_up(tokens: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """(n, W) -> (N, W), the next multiple, with zeros behind."""
    return functional.pad(tokens, (0, 0, 0, filled(len(tokens), multiple) - len(tokens)))
