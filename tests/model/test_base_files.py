"""GGUF weights are converted once, whatever happens meanwhile."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefixray.model import base_files
from prefixray.model.base import load_base


def test_a_gguf_file_is_converted_by_one_process_and_one_that_failed_or_was_killed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf, cache = tmp_path / "some.gguf", tmp_path / "cache"
    gguf.write_bytes(b"weights")
    monkeypatch.setenv("PREFIXRAY_CACHE", str(cache))
    conversions = []

    def save(path: Path, folder: Path) -> None:
        conversions.append(folder)
        (folder / "model.safetensors").write_bytes(path.read_bytes())
        time.sleep(0.2)
        if len(conversions) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_files, "_save_converted", save)
    with pytest.raises(OSError, match="No space"):
        load_base(str(gguf))
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert left == []
    converted, digest = base_files.find_weights(str(gguf))
    killed = cache / f".{Path(converted).name}.0.tmp"
    shutil.move(converted, killed)
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(base_files.find_weights, [str(gguf)] * 2)) == {(converted, digest)}
    assert len(conversions) == 3 and [path for path in cache.iterdir() if path.is_dir()] == [Path(converted)]
