"""Tokens and passwords reach no log, message or plan; that MLflow gets none, `test_tracking.py` shows."""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefixray import plan
from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError, redacted
from prefixray.system.logs import to_file
from prefixray.tracking.tracker import open_tracker

LOGIN = "https://me:s3cr3t-w0rd@mlflow.example.org/team?token=abcdef123"
HUB_TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"
SECRETS = ("s3cr3t-w0rd", "abcdef123", HUB_TOKEN, "an-environments-own")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "an-environments-own")


def _hides(text: str) -> bool:
    return "***" in text and not any(secret in text for secret in SECRETS)


def test_credentials_are_hidden_and_nothing_else() -> None:
    assert redacted(f"MLflow at {LOGIN} is away") == "MLflow at https://***@mlflow.example.org/team?token=*** is away"
    assert redacted("postgresql://me:s3cr3t-w0rd@db/mlflow") == "postgresql://***@db/mlflow"
    assert redacted("password an-environments-own, token hf_ZyXwVuTsRqPoNmLkJiHg") == "password ***, token hf_***"
    for text in (
        "sqlite:///runs/quickstart/mlflow.db",
        "http://127.0.0.1:5000",
        "someone@example.org wrote http://a/b@c",
        "hf_hub: tokens per second = 3, lr=1e-3",
        "name : The Eagle | Type : pub",
        "https://huggingface.co/datasets/GEM/e2e_nlg?page=2",
    ):
        assert redacted(text) == text


def test_a_message_to_the_user_has_none_even_when_it_has_travelled() -> None:
    error = UserError(f"tracking.mlflow: {LOGIN}: cannot be reached", "another")
    again = pickle.loads(pickle.dumps(error))
    assert _hides(str(error)) and again.problems == error.problems == tuple(str(error).splitlines())


def test_the_log_has_none_in_lines_and_in_tracebacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("prefixray")
    before = logger.handlers, logger.propagate, logger.level
    try:
        to_file(tmp_path / "sweep.log")
        logger.warning("at %s with %s", LOGIN, HUB_TOKEN)
        try:
            raise OSError(f"no answer from {LOGIN} to an-environments-own")
        except OSError:
            logger.exception("failed")
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate, logger.level = before
    assert _hides((tmp_path / "sweep.log").read_text()) and _hides(capsys.readouterr().err)


def test_a_tracker_names_its_server_without_the_login(tmp_path: Path) -> None:
    tracker = open_tracker(TrackingConfig(mlflow="http://me:s3cr3t-w0rd@127.0.0.1:9"), tmp_path, "x", {})
    assert tracker.uri == "http://***@127.0.0.1:9"


def test_the_plan_has_none(
    tmp_path: Path,
    base_folders: Mapping[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFIXRAY_CACHE", str(tmp_path / "cache"))
    row = json.dumps({"source": "name : The Mill", "target": "A pub."})
    (tmp_path / "data.jsonl").write_text(f"{row}\n{row}\n")
    data = tmp_path / "data.jsonl"
    (tmp_path / "sweep.yaml").write_text(
        f"name: x\nbase: {base_folders['gpt2']}\n"
        f"task: {{name: custom, train: {data}, dev: {data}, test: {data}}}\n"
        "train: {batch_size: 1, num_steps: 2}\n"
        "arms: {lora: {rank: {choice: [1, 2]}, learning_rate: 1e-3}}\n"
        f"search: {{num_trials: 2}}\nfinal: {{max_new_tokens: 4}}\ntracking: {{mlflow: '{LOGIN}'}}\n"
    )
    assert plan.main([str(tmp_path / "sweep.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "Plan of x" in shown and not any(secret in shown for secret in SECRETS)
    assert plan.main([str(tmp_path / "sweep.yaml"), "--set", f"tracking.mlflow=[{LOGIN}]"]) == 2
    assert not any(secret in capsys.readouterr().err for secret in SECRETS)
