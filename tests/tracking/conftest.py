"""A sweep's folder with a database that MLflow can open at once."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, since making them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder; its artifact lies in trials/prefix/0/artifact."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "sweep"
    artifact = folder / "trials" / "prefix" / "0" / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "prefix.safetensors").write_bytes(b"prefix")
    (folder / "sweep.yaml").write_text("name: sweep\n")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder
