"""Rows in arrays, and from the cache, are those that tokenising makes."""

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefixray.batching import packed_rows
from prefixray.batching.batches import encode
from prefixray.batching.lengths import row_lengths
from prefixray.batching.packed_rows import PackedRows, packed
from prefixray.batching.rows import Row
from prefixray.batching.template import Template, make_template
from prefixray.data import Example
from prefixray.data.task_config import TaskConfig
from prefixray.data.teacher import Teacher
from prefixray.model.base import Base

MakeBase = Callable[[str, torch.dtype], Base]

EXAMPLES = [
    Example("name : The Eagle | food : French", "The Eagle serves French food."),
    Example("name : The Mill", "The Mill is a pub."),
    Example("name : The Mill", "A pub near the river is The Mill, and it is cheap, \N{POUND SIGN} 20 at the most."),
    Example("", "Nothing is known."),
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is used for few examples, too."""
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_rows, "FEWEST", 1)
    return tmp_path / "cache" / "rows"


def _template(base: Base, **task: object) -> Template:
    return make_template(base, TaskConfig.model_validate({"name": "custom", **task}))


def _refuse(examples: Sequence[Example], template: Template) -> list[Row]:
    raise AssertionError("rows are tokenised")


def _same(rows: PackedRows, exact: Sequence[Row]) -> bool:
    return list(rows) == exact and rows.lengths == row_lengths(exact)


def test_packed_rows_are_the_rows(tiny_base: Base) -> None:
    template = _template(tiny_base)
    exact = encode(EXAMPLES, template)
    rows = PackedRows.of(exact)
    assert _same(rows, exact) and len(rows) == 4
    assert rows.longest == max(row.num_inputs for row in exact) and type(rows[0].ids[0]) is int
    assert rows[-1] == exact[-1] and rows[1:3] == exact[1:3]
    with pytest.raises(IndexError):
        rows[4]


def test_the_digest_is_that_of_the_tokens_and_of_their_parts(tiny_base: Base, cache: Path) -> None:
    template = _template(tiny_base)
    rows = packed(EXAMPLES, template)
    others = [_template(tiny_base, separator=" :"), replace(template, before=(5,)), replace(template, after=())]
    digests = [packed(EXAMPLES, other).digest for other in others]
    assert len({rows.digest, *digests}) == 4
    assert rows.digest == packed(EXAMPLES, template).digest == PackedRows.of(encode(EXAMPLES, template)).digest
    assert rows.digest != PackedRows.of([replace(row, num_prompt=1) for row in rows]).digest


def test_rows_come_from_the_cache_as_they_were_made(
    tiny_base: Base, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    template = _template(tiny_base, max_source_tokens=4, max_target_tokens=6)
    exact = encode(EXAMPLES, template)
    told = caplog.messages.copy()
    caplog.clear()
    assert _same(packed(EXAMPLES, template), exact)
    assert caplog.messages == told and len(told) == 2, "how many texts are cut"
    caplog.clear()
    monkeypatch.setattr(packed_rows, "encode", _refuse)
    assert _same(packed(EXAMPLES, template), exact)
    assert caplog.messages == told
    assert len(list(cache.iterdir())) == 1


def test_what_changes_rows_misses_the_cache(make_base: MakeBase, cache: Path) -> None:
    base = make_base("llama", torch.float32)
    template = replace(_template(base), vocab_size=999)  # for a further token
    others = [
        (EXAMPLES, template),
        (EXAMPLES, _template(base)),
        ([*EXAMPLES[:3], replace(EXAMPLES[3], target="Nothing is known!")], template),
        ([EXAMPLES[0], EXAMPLES[2], EXAMPLES[1], EXAMPLES[3]], template),
        (EXAMPLES[:3], template),
        (EXAMPLES, _template(base, max_source_tokens=3)),
        (EXAMPLES, _template(base, max_target_tokens=3)),
        (EXAMPLES, _template(base, separator=" =>")),
        (EXAMPLES, _template(base, instruction="Say it.")),
    ]
    for number, (examples, of) in enumerate(others, start=1):
        assert _same(packed(examples, of), encode(examples, of))
        assert len(list(cache.iterdir())) == number
    base.tokenizer.add_tokens(["Eagle"])
    assert _same(packed(EXAMPLES, template), encode(EXAMPLES, template))
    assert len(list(cache.iterdir())) == len(others) + 1, "another tokenizer"


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-7], lambda _: b"", lambda whole: whole[:99] + b"?" + whole[100:]]
)
def test_a_damaged_file_is_made_anew(tiny_gpt2: Base, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    template = _template(tiny_gpt2)
    exact = encode(EXAMPLES, template)
    packed(EXAMPLES, template)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert _same(packed(EXAMPLES, template), exact)
    assert file.read_bytes() == whole and list(cache.iterdir()) == [file]


def test_a_sweep_does_without_a_cache_that_cannot_be_written(
    tiny_gpt2: Base, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = _template(tiny_gpt2)
    exact = encode(EXAMPLES, template)
    cache.parent.write_text("a file")
    assert _same(packed(EXAMPLES, template), exact)
    cache.parent.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert _same(packed(EXAMPLES, template), exact)
    assert not list(cache.iterdir())


def test_the_files_that_were_used_last_are_kept(tiny_gpt2: Base, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_rows, "KEPT", 2)
    templates = [_template(tiny_gpt2, max_source_tokens=number) for number in (3, 4, 5)]
    packed(EXAMPLES, templates[0])
    (first,) = cache.iterdir()
    packed(EXAMPLES, templates[1])
    for file in cache.iterdir():
        os.utime(file, (1.0, 1.0 if file == first else 2.0))  # moments apart, which a file system may not tell apart
    packed(EXAMPLES, templates[0])
    packed(EXAMPLES, templates[2])
    assert first in cache.iterdir() and len(list(cache.iterdir())) == 2


def test_few_and_taught_examples_and_tokenizers_in_python_have_no_cache(
    tiny_gpt2: Base, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = _template(tiny_gpt2)
    length = len(encode(EXAMPLES[:1], template)[0].ids)
    teacher = Teacher(np.zeros((length, 2), np.int32), np.zeros((length, 2), np.float32), np.zeros(length, np.float32))
    taught = [
        replace(EXAMPLES[0], teacher=teacher),
        replace(EXAMPLES[0], target="The Eagle is there.", teacher=teacher),
    ]
    rows = packed(taught, template)
    assert [len(row.teacher or ()) for row in rows] == [row.num_targets for row in rows]

    class Own(type(template.tokenizer)):  # type: ignore[misc]
        """As weights may bring it along."""

    with monkeypatch.context() as patched:
        patched.setattr(template.tokenizer, "__class__", Own)
        packed(EXAMPLES, template)
    monkeypatch.setattr(packed_rows, "FEWEST", 5)
    packed(EXAMPLES, template)
    assert not cache.exists()
    monkeypatch.setattr(packed_rows, "FEWEST", 4)
    packed(EXAMPLES, template)
    assert cache.exists()
