"""Documents are read from files and folders, and what is no document is refused with its place."""

from pathlib import Path

import pytest

from prefixray.data.documents import Document, read_documents
from prefixray.errors import UserError


def problem_of(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_documents(str(path))
    return str(refused.value)


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_bytes("\ufeff# Guide\r\n\r\nIt says café.\r\n".encode())
    (tmp_path / "notes.rst").write_text("Any suffix may be named.\n")
    assert read_documents(str(tmp_path / "guide.md")) == (Document("guide", "# Guide\n\nIt says café.\n"),)
    assert read_documents(str(tmp_path / "notes.rst")) == (Document("notes", "Any suffix may be named.\n"),)


def test_a_folder_gives_the_documents_of_its_files_by_name_and_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.md").write_text("first\n")
    (tmp_path / "c.jsonl").write_text('{"name": "x", "text": "third"}\n\n{"name": "y", "text": "fourth"}\n')
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\x00")
    (tmp_path / ".hidden.md").write_text("not this\n")
    names = [document.name for document in read_documents(str(tmp_path))]
    assert names == ["a", "b", "x", "y"]
    assert "left out: photo.png" in caplog.text


def test_what_is_no_document_is_refused_with_all_places(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(" \n\n")
    (tmp_path / "b.txt").write_bytes(b"%PDF-1.7\n\xff\xfe\n")
    (tmp_path / "c.txt").write_bytes(b"text\nwith\0NUL\n")
    (tmp_path / "d.jsonl").write_text('{"name": "x"}\n{"name": "../x", "text": "t"}\n{"name": 3, "text": " "}\n[1]\n')
    (tmp_path / "e.jsonl").write_text("\n")
    said = problem_of(tmp_path)
    assert "a.md: is empty; a document must have text" in said
    assert "b.txt:2: is not UTF-8 (byte 0xff); save it as UTF-8" in said
    assert "c.txt:2: holds a NUL byte" in said
    assert 'd.jsonl:1: has no "text"; a line is {"name": "manual", "text": "..."}' in said
    assert "d.jsonl:2: \"name\" '../x': is no name for a document" in said
    assert 'd.jsonl:3: "text" is empty' in said
    assert 'd.jsonl:3: "name" is a number; it must be text' in said
    assert "d.jsonl:4: is a list; it must be an object" in said
    assert "e.jsonl: is empty; it must have a document on each line" in said


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("one\n")
    (tmp_path / "Guide.txt").write_text("two\n")
    assert "2 documents are called 'guide'" in problem_of(tmp_path)


def test_a_folder_without_documents_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    assert "has no document; it must have files that end in .md" in problem_of(tmp_path)
    assert "no such file or folder" in problem_of(tmp_path / "missing.md")
