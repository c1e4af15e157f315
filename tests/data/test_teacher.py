"""Teachers are read as they were written, or refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from prefixray.data import Example
from prefixray.data.teacher import Teacher, read_teachers, write_teachers
from prefixray.errors import UserError

NUM_KEPT = 3


def _teacher(length: int, seed: int) -> Teacher:
    draw = np.random.default_rng(seed)
    likelihoods = draw.dirichlet(np.ones(NUM_KEPT + 1), size=length)
    ids = np.stack([draw.permutation(50)[:NUM_KEPT] for _ in range(length)])
    log_p: NDArray[np.float32] = np.log(likelihoods).astype(np.float32)
    return Teacher(ids.astype(np.int32), log_p[:, :-1], log_p[:, -1])


def _equal(one: Teacher, other: Teacher) -> bool:
    pairs = ((one.ids, other.ids), (one.log_p, other.log_p), (one.tail, other.tail))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_teachers_are_read_as_they_were_written(tmp_path: Path) -> None:
    teachers = [_teacher(length, length) for length in (4, 1, 7)]
    write_teachers(tmp_path / "teacher.safetensors", teachers)
    read = read_teachers(tmp_path / "teacher.safetensors")
    assert [len(teacher) for teacher in read] == [4, 1, 7] and read[0].num_kept == NUM_KEPT
    assert all(map(_equal, read, teachers))


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("tail", None, "has no tail"),
        ("lengths", np.array([4, 2], np.int32), r"of \(6, k\).*by its lengths, but has ids \(5, 3\)"),
        ("tail", np.zeros(5, np.float32), "do not sum to 1"),
        ("log_p", np.full((5, NUM_KEPT), np.nan, np.float32), "do not sum to 1"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, change: NDArray[np.float32] | None, problem: str) -> None:
    file = tmp_path / "teacher.safetensors"
    write_teachers(file, [_teacher(4, 1), _teacher(1, 2)])
    tensors = load_file(file)
    save_file(
        {other: tensor for other, tensor in tensors.items() if other != name}
        | ({} if change is None else {name: change}),
        file,
    )
    with pytest.raises(UserError, match=problem):
        read_teachers(file)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    write_teachers(file, [_teacher(4, 1)])
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"teacher.safetensors: cannot be read .*; delete the file"):
        read_teachers(file)


def test_an_example_is_its_texts_whoever_teaches_it() -> None:
    taught = Example("a question", "an answer", _teacher(3, 1))
    assert taught == Example("a question", "an answer") and hash(taught) == hash(Example("a question", "an answer"))
    assert taught.teacher is not None and len(taught.teacher.cut(2)) == 2
