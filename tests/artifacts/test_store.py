"""What is written is read back whole; what is damaged is seen and passed over."""

import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefixray.artifacts.store import (
    artifact_meta,
    check_artifact,
    load_artifact,
    load_checkpoint,
    save_artifact,
    save_checkpoint,
)
from prefixray.config.trials import FinetuneTrial, TrialConfig
from prefixray.data.task_config import TaskConfig
from prefixray.errors import UserError
from prefixray.model.base import Base
from prefixray.trial import TrialFolder

STATE = {"step": 3, "best": 1.5625, "loss": 0.1 + 0.2, "order": [3, 1, 2], "nested": {"eos": None, "name": "Café"}}


def _tensors(scale: float = 1.0) -> dict[str, Tensor]:
    both = scale * torch.arange(24.0).view(2, 3, 4)
    return {"key": both[0], "value": both[1], "transposed": both[0].T, "count": torch.tensor(7)}


def _meta(base: Base) -> dict[str, object]:
    config = TrialConfig(arm="all", learning_rate=1e-3, num_steps=4, method=FinetuneTrial())
    return artifact_meta(base, config, task=TaskConfig(name="e2e"), template={"eos_id": 0}, scores={"dev/loss": 1.5})


def _assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def _steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@contextmanager
def _files_limited_to(num_bytes: int) -> Iterator[None]:
    """A disk that is full: writing more than this to one file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "trial", 3, _tensors(), STATE)
    assert path == tmp_path / "trial" / "step-3"
    loaded = load_checkpoint(tmp_path / "trial")
    assert loaded is not None
    step, tensors, state = loaded
    assert (step, state) == (3, STATE)
    _assert_same(tensors, _tensors())


def test_there_is_no_checkpoint_where_none_was_written(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "trial") is None
    (tmp_path / "artifact").mkdir()
    assert load_checkpoint(tmp_path) is None


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, _tensors(step), {})
    assert _steps(tmp_path) == ["step-10", "step-11"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 11
    _assert_same(loaded[1], _tensors(11))


def test_an_older_checkpoint_that_its_trials_end_deletes_meanwhile_is_no_fault_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, _tensors(step), {})
    monkeypatch.setattr(TrialFolder, "checkpoint_steps", lambda folder: [3, 2, 1, 0])  # the driver has deleted 0 by now
    save_checkpoint(tmp_path, 3, _tensors(3), {})
    assert _steps(tmp_path) == ["step-2", "step-3"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, _tensors(1), {"try": 1})
    save_checkpoint(tmp_path, 5, _tensors(2), {"try": 2})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[2] == {"try": 2}
    assert _steps(tmp_path) == ["step-5"]


@pytest.mark.parametrize("file", ["checkpoint.json", "checkpoint.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    save_checkpoint(tmp_path, 10, _tensors(10), STATE)
    path = save_checkpoint(tmp_path, 20, _tensors(20), STATE) / file
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[:-3])
        case "flipped":
            _flip(path, content.rindex(b"5625") if file.endswith("json") else len(content) - 2)
        case "emptied":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 10
    _assert_same(loaded[1], _tensors(10))
    assert "step-20" in caplog.text


def test_training_goes_on_past_a_damaged_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, _tensors(), {})
    _flip(save_checkpoint(tmp_path, 20, _tensors(), {}) / "checkpoint.safetensors", -1)
    save_checkpoint(tmp_path, 15, _tensors(15), {})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 15
    save_checkpoint(tmp_path, 20, _tensors(20), {})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 20


def test_a_full_disk_is_an_oserror_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _tensors(), {"step": 1})
    with _files_limited_to(4096), pytest.raises(OSError):
        save_checkpoint(tmp_path, 2, {"large": torch.ones(100_000)}, {})
    with _files_limited_to(4096), pytest.raises(OSError):
        save_checkpoint(tmp_path, 2, {}, {"large": "x" * 100_000})
    assert _steps(tmp_path) == ["step-1"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 1


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes_with_the_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _tensors(), {})
    (tmp_path / ".step-2.0a.tmp").mkdir()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 1
    save_checkpoint(tmp_path, 2, _tensors(), {})
    assert _steps(tmp_path) == ["step-1", "step-2"]


def test_an_artifact_is_two_files_named_by_its_method(tmp_path: Path, tiny_gpt2: Base) -> None:
    folder = tmp_path / "artifact"
    save_artifact(folder, _tensors(), _meta(tiny_gpt2))
    assert sorted(path.name for path in folder.iterdir()) == ["finetune.safetensors", "finetune_config.json"]
    tensors, meta = load_artifact(folder)
    _assert_same(tensors, _tensors())
    assert meta == json.loads(json.dumps(_meta(tiny_gpt2)))
    assert TrialConfig.model_validate(meta["config"]).method == FinetuneTrial()


def test_an_artifact_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path, tiny_gpt2: Base) -> None:
    save_artifact(tmp_path / "artifact", _tensors(1), {**_meta(tiny_gpt2), "method": "prefix"})
    (tmp_path / ".artifact.0a.tmp").mkdir()
    save_artifact(tmp_path / "artifact", _tensors(2), _meta(tiny_gpt2))
    _assert_same(load_artifact(tmp_path / "artifact")[0], _tensors(2))
    assert _steps(tmp_path) == ["artifact"]


def test_a_damaged_artifact_is_refused_with_what_is_wrong(tmp_path: Path, tiny_gpt2: Base) -> None:
    folder = tmp_path / "artifact"
    with pytest.raises(UserError, match=r"no artifact here; one has a file prefix_config\.json"):
        load_artifact(folder)
    save_artifact(folder, _tensors(), _meta(tiny_gpt2))
    _flip(folder / "finetune.safetensors", -1)
    with pytest.raises(UserError, match=r"the checksum over finetune_config\.json and finetune\.safetensors differs"):
        load_artifact(folder)
    (folder / "finetune.safetensors").unlink()
    with pytest.raises(UserError, match=r"finetune\.safetensors: no such file"):
        load_artifact(folder)
    save_artifact(folder, _tensors(), {**_meta(tiny_gpt2), "format": 99})
    with pytest.raises(UserError, match="artifact format 99; this prefixray reads format 3"):
        load_artifact(folder)


def test_of_two_artifacts_in_one_folder_none_is_chosen(tmp_path: Path, tiny_gpt2: Base) -> None:
    for method in ("prefix", "finetune"):
        save_artifact(tmp_path / method, _tensors(), {**_meta(tiny_gpt2), "method": method})
        shutil.copytree(tmp_path / method, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(UserError, match="both: artifacts of several methods: prefix, finetune; delete the files of"):
        load_artifact(tmp_path / "both")


def test_an_artifact_of_another_base_is_refused_naming_every_difference(tiny_gpt2: Base, tiny_llama: Base) -> None:
    check_artifact(_meta(tiny_gpt2), tiny_gpt2)
    with pytest.raises(UserError) as refused:
        check_artifact({**_meta(tiny_gpt2), "positions": "none"}, tiny_llama)
    message = str(refused.value)
    assert f"artifact: base sites.decoder.num_kv_heads: made for 4, {tiny_llama.name} has 2" in message
    assert f"made for {tiny_gpt2.name} with digest {tiny_gpt2.digest}" in message
    assert "artifact: positions: 'none'" in message
