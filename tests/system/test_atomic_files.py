"""What is written whole: the old one stays until the new one is there, and nothing is left beside it."""

import os
from pathlib import Path

import pytest

from prefixray.system.atomic_files import clear_scratch, whole_folder, write_whole


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content in ("one", "zweite Fassung, größer"):
        write_whole(path, content)
        assert path.read_text(encoding="utf-8") == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "artifact"
    for content in ("one", "two"):
        with whole_folder(folder) as scratch:
            (scratch / content).write_text(content)
            assert scratch != folder
        assert [path.name for path in folder.iterdir()] == [content]
    with pytest.raises(OSError, match="No space"), whole_folder(folder) as scratch:
        (scratch / "three").write_text("three")
        raise OSError(28, "No space left on device")
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_a_killed_writer_has_left_is_cleared_and_others_stay(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *arguments, **named: None)  # it was killed
        with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "artifact"):
            raise KeyboardInterrupt
    for other in ("artifact", ".other.0.tmp"):
        (tmp_path / other).mkdir()
    clear_scratch(tmp_path, "artifact")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0.tmp", "artifact"]
