"""Names that are a path or a hub id."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefixray.errors import UserError
from prefixray.system.path_or_hub import check_base, digest_of_base, is_path, leads_nowhere, local_path, weights_of


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


def test_a_folder_that_is_no_model_is_refused_before_anything_is_loaded(
    tmp_path: Path, base_folders: Mapping[str, Path]
) -> None:
    for folder in base_folders.values():
        check_base(str(folder))
    with pytest.raises(UserError, match=r"is no model: it has no config.json and no weights and no tokenizer;"):
        check_base(str(tmp_path))
    folder = Path(shutil.copytree(base_folders["gpt2"], tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is no model: it has no weights;"):
        check_base(str(folder))


def test_a_base_of_the_hub_that_is_not_here_is_refused_where_the_hub_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = "base: nobody/nothing: is not on this machine, and the hub cannot be asked (HF_HUB_OFFLINE is set)"
    with pytest.raises(UserError, match=re.escape(told)):
        check_base("nobody/nothing")
    snapshot = tmp_path / "models--nobody--nothing" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_base("nobody/nothing", "a" * 40)
    with pytest.raises(UserError, match=re.escape(told)):
        check_base("nobody/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="it does not answer"):
        check_base("nobody/nothing")


def test_a_base_whose_name_can_be_no_hub_id_is_refused() -> None:
    with pytest.raises(UserError, match="base: my model: is nothing on this machine and no hub id"):
        check_base("my model")


def test_a_base_is_told_by_the_weights_that_transformers_loads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights, digests = tmp_path / "pytorch_model.bin", []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        digests.append(digest_of_base(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    weights.write_bytes(b"three")
    digests.append(digest_of_base(tmp_path))
    assert len(set(digests)) == 2 and digests[1] == digests[2], "safetensors come first, as in transformers"
    assert weights_of(weights) == [weights]
