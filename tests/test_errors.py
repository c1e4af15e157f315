"""Tokens and passwords reach no log, message or plan; that MLflow gets none, `test_tracking.py` shows."""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefixray import plan
from prefixray.config.schema import TrackingConfig
from prefixray.errors import UserError, printable, redacted
from prefixray.reporting.grid import one_line
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
        "http://127.0.0.1:5000 is MLflow's; someone@example.org knows",
        "hf://datasets/GEM/e2e_nlg@refs/convert/parquet/default/train/*.parquet",
        "mlflow ui --backend-store-uri sqlite:////home/me/runs/a/mlflow.db",
        "arms.prefix.init_token=pub, max_target_tokens=128; a bearer of news",
        'data/train.jsonl:17: no "target" column; columns are source, text (set task.columns.target)',
    ):
        assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://me:s3cr/3t@host/x is away", "https://***@host/x is away"),
        ("https://me:s3'cr3t@host/x", "https://***@host/x"),
        ("https://me:s3 cr3t@host/x", "https://***@host/x"),
        ("https://me@team.org:s3@cr3t@host/x", "https://***@host/x"),
        ("postgresql://me:p@ss/w@rd@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("redis://:s3cr3t@cache:6379", "redis://***@cache:6379"),
        ("https://s3cr3t@github.com/me/mine", "https://***@github.com/me/mine"),
        ("http://h/b?X-Amz-Signature=s3cr3t&X-Amz-Expires=5", "http://h/b?X-Amz-Signature=***&X-Amz-Expires=5"),
        ("http://h/b?a=1&X-Amz-Security-Token=s3cr3t", "http://h/b?a=1&X-Amz-Security-Token=***"),
        ("http://h/b?X-Amz-Credential=s3cr3t", "http://h/b?X-Amz-Credential=***"),
        ("Authorization: Bearer s3cr3t.s3cr3t-s3cr3t==", "Authorization: Bearer ***"),
        ("Server=db;Uid=me;Pwd=s3 cr3t;Database=x", "Server=db;Uid=me;Pwd=***;Database=x"),
        ("host=db user=me password='s3 cr3t' dbname=x", "host=db user=me password=*** dbname=x"),
        ("AccountName=me;AccountKey=s3cr3t+/==", "AccountName=me;AccountKey=***"),
        ("Endpoint=sb://a/;SharedAccessKey=s3cr3t=;EntityPath=x", "Endpoint=sb://a/;SharedAccessKey=***;EntityPath=x"),
        ('{"user": "me", "password": "s3 cr3t"}', '{"user": "me", "password": ***}'),
        ("AWS_SECRET_ACCESS_KEY=s3cr3t/s3cr3t", "AWS_SECRET_ACCESS_KEY=***"),
    ],
)
def test_credentials_of_many_forms_are_hidden(text: str, hidden: str) -> None:
    assert redacted(text) == hidden
    assert "s3" not in redacted(f"tried {text!r} and 'http://127.0.0.1:5000'")


def test_what_others_wrote_cannot_command_a_terminal() -> None:
    assert printable("a\x1b[2Jb\x9bc\u202ed\te\n\x7f") == "a\\x1b[2Jb\\x9bc\\u202ed\te\n\\x7f"
    assert str(UserError("columns are \x1b]0;mine\x07")) == "columns are \\x1b]0;mine\\x07"
    assert one_line("a\n b \x1b[31m café 🙂") == "a b \\x1b[31m café 🙂"


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
