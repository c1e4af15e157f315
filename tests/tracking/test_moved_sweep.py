"""MLflow's store of a sweep whose folder was copied or moved."""

import shutil
from pathlib import Path

import pytest
from support.tracked_sweep import local, open_sweep, run_trials


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_sweep_that_was_copied_or_moved_writes_nothing_where_it_was(
    folder: Path, is_moved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    tracker = open_sweep(folder)
    run_trials(tracker, folder)
    tracker.close("interrupted")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = folder.parent / "an other 100% place"
    if is_moved:
        folder.rename(other)
    else:
        shutil.copytree(folder, other)
    (other / "sweep.yaml").write_text("name: changed\n")
    _artifact_repos_cache.clear()  # the next driver is a process of its own
    tracker = open_sweep(other)
    tracker.trial("prefix/4", {}, {})
    tracker.end("prefix/4", "done", other / "trials" / "prefix" / "0" / "artifact")
    tracker.close("finished")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == ({} if is_moved else kept)
    assert folder.exists() is not is_moved
    assert [record.args for record in caplog.records if "was at" in record.msg] == [(other, folder)]
    stored = local(other)
    for key in ("prefix/0", "prefix/4"):
        assert stored.files(stored.children[key].info.run_id, "artifact") == ["artifact/prefix.safetensors"]
        assert stored.children[key].info.artifact_uri.startswith(f"{other.as_uri()}/")
    attached = stored.client.download_artifacts(stored.parent.info.run_id, "sweep.yaml")
    assert Path(attached).read_text() == "name: changed\n"


def test_a_server_gets_runs_of_their_own_from_a_copied_sweep_and_the_same_from_a_moved_one(folder: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{(folder / 'mlflow.db').rename(folder.parent / 'server.db')}"
    open_sweep(folder, uri).close("interrupted")
    copied = Path(shutil.copytree(folder, folder.parent / "copied"))
    moved = folder.rename(folder.parent / "moved")
    for place in (moved, copied):
        for _ in range(2):
            open_sweep(place, uri).close("finished")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["prefixray.folder"] for run in runs) == [str(copied), str(moved)]
    assert len({run.data.tags["prefixray.id"] for run in runs}) == 2
