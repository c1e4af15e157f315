"""The command `serve`: from artifacts to answers, and to its end."""

import json
import os
import re
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from support.tuned_artifacts import METHODS, save_tuned

from prefixray import serve
from prefixray.model.base import Base
from prefixray.serving.batch import Batch
from prefixray.system import exit_codes

LONG = {"model": "long", "prompt": "name : The Mill", "max_tokens": 200, "one_line": False, "stream": True}


def test_ctrl_c_ends_a_server_and_the_answers_that_it_writes(
    tiny_gpt2: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("long", "finetune"):
        save_tuned(tmp_path / name, tiny_gpt2, METHODS[name])
    step, printed, events = Batch.step, [], []

    def slow_step(self: Batch) -> list:
        time.sleep(0.05)
        return step(self)

    monkeypatch.setattr(Batch, "step", slow_step)
    monkeypatch.setattr(exit_codes, "_own_start", None)  # this process is no command afterwards either

    def use() -> None:
        while not (found := re.search(r"http://127.0.0.1:\d+/v1", "".join(printed))):
            printed.append(capfd.readouterr().out)
            time.sleep(0.01)
        content = {"content-type": "application/json"}
        request = urllib.request.Request(f"{found[0]}/completions", json.dumps(LONG).encode(), content)
        with urllib.request.urlopen(request) as answer:
            events.append(answer.readline().decode())
            os.kill(os.getpid(), signal.SIGINT)
            events.extend(line.decode() for line in answer if line.strip())

    user = threading.Thread(target=use)
    user.start()
    arguments = [str(tmp_path / "long"), str(tmp_path / "finetune"), "--port", "0", "--device", "cpu"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(SystemExit) as ended:
            exit_codes.leave(lambda: serve.main(arguments))
    finally:
        signal.signal(signal.SIGINT, before)
    user.join()
    assert ended.value.code == 130
    assert "the server has ended" in events[-1] and len(events) < 100
    shown = "".join(printed)
    assert "untuned: " in shown and "long: " in shown and "finetune: left out: a fine-tuned model" in shown
    assert capfd.readouterr().err.strip() == "interrupted", "no traceback"


def test_a_server_that_others_can_reach_wants_a_token(
    tiny_gpt2: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFIXRAY_TOKEN", raising=False)
    save_tuned(tmp_path / "long", tiny_gpt2, METHODS["long"])
    assert serve.main([str(tmp_path / "long"), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--host: 0.0.0.0: others can reach it; set a token" in capsys.readouterr().err
    assert serve.main([str(tmp_path / "long"), "--host", "no.such.host.invalid"]) == 2
    assert serve.main([str(tmp_path / "nothing")]) == 2
    assert "is no results folder" in capsys.readouterr().err
