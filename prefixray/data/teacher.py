"""What a teacher, a model that sees more than the student does, expects at each token of a target.

Of its distribution over the vocabulary a few likely tokens are kept one by one, and all others as one sum: the tail.
"""

# n tokens of a target, its end token included; k tokens of the vocabulary that are kept; N tokens of several targets

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from prefixray.errors import UserError
from prefixray.system.atomic_files import write_whole

_PARTS = {"ids": np.int32, "log_p": np.float32, "tail": np.float32}
_LENGTHS = "lengths"
_SLACK = 1e-3  # by which the likelihoods of all tokens may miss 1: they are rounded to float32


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher's distribution at each token of one target, given the target's tokens before it; temperature 1."""

    ids: NDArray[np.int32]  # (n, k) different tokens
    log_p: NDArray[np.float32]  # (n, k) their log-likelihoods
    tail: NDArray[np.float32]  # (n,) the logarithm of the likelihood of all others together

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_kept(self) -> int:
        """Tokens of the vocabulary that are kept one by one: k."""
        return int(self.ids.shape[1])

    def cut(self, length: int) -> "Teacher":
        """The first tokens alone. What is expected at a token does not depend on what comes behind it."""
        return Teacher(self.ids[:length], self.log_p[:length], self.tail[:length])


def write_teachers(file: Path, teachers: Sequence[Teacher]) -> None:
    """Keep the teachers of one target or several, in their order; all keep the same number of tokens.

    The file is a safetensors file: `ids` and `log_p` (N, k), `tail` (N,), and `lengths`, the tokens of each target.
    """
    tensors = {
        part: np.concatenate([getattr(teacher, part) for teacher in teachers]).astype(dtype)
        for part, dtype in _PARTS.items()
    }
    lengths = np.array([len(teacher) for teacher in teachers], np.int32)
    write_whole(file, save({**tensors, _LENGTHS: lengths}))


def read_teachers(file: Path) -> list[Teacher]:
    """The teachers of a file that `write_teachers` wrote. Raises `UserError` where the file is not whole."""
    try:
        tensors: dict[str, NDArray[Any]] = load_file(file)
        problem = _problem(tensors)
    except (OSError, SafetensorError) as error:
        problem = f"cannot be read ({error})"
    if problem is not None:
        raise UserError(f"{file}: {problem}; delete the file, and it is made again")
    ends = np.cumsum(tensors[_LENGTHS])[:-1]
    parts = (np.split(tensors[part], ends) for part in _PARTS)
    return [Teacher(*of_target) for of_target in zip(*parts, strict=True)]


def _problem(tensors: dict[str, NDArray[Any]]) -> str | None:
    """What is wrong with the tensors of a file."""
    missing = [name for name in (*_PARTS, _LENGTHS) if name not in tensors]
    if missing:
        return f"has no {' and no '.join(missing)}, which a teacher has"
    shape, count = tensors["ids"].shape, int(tensors[_LENGTHS].sum())
    if len(shape) != 2 or shape[0] != count or tensors["log_p"].shape != shape or tensors["tail"].shape != (count,):
        shapes = ", ".join(f"{part} {tensors[part].shape}" for part in _PARTS)
        return f"must have ids and log_p of ({count}, k) and a tail of ({count},) by its lengths, but has {shapes}"
    total = np.exp(tensors["log_p"].astype(np.float64)).sum(axis=1) + np.exp(tensors["tail"].astype(np.float64))
    if not (np.abs(total - 1.0) < _SLACK).all():
        return "has likelihoods that do not sum to 1"
    return None
