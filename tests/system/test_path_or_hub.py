"""Names that are a path or a hub id."""

from pathlib import Path

import pytest

from prefixray.system.path_or_hub import is_path, leads_nowhere, local_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt2", False), ("owner/name", False), ("./folder", True), ("~/folder", True), ("/a", True), ("a/b/c", True)],
)
def test_a_name_that_cannot_be_a_hub_id_is_a_path(name: str, expected: bool) -> None:
    assert is_path(name) == expected


def test_a_path_that_exists_is_meant_even_where_a_hub_id_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("owner/name") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert local_path("owner/name") == Path("owner/name")
    assert local_path("~/owner") == tmp_path / "owner"
    assert [leads_nowhere(name) for name in ("./owner", "./nowhere", "not/there")] == [False, True, False]
