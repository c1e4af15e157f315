"""One configuration from its file, without Ray: `prefixray train`."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefixray import decode, train
from prefixray.artifacts.store import load_artifact
from prefixray.train import main
from prefixray.training import progress

FILE = """\
name: small
base: {base}
task: {{name: custom, train: {data}, dev: {data}, test: {data}}}
train: {{batch_size: 2, num_steps: 3, eval_every: 1, precision: fp32}}
arms:
  prefix: {{preseqlen: {{choice: [2, 4]}}, mid_dim: null, init_token: eagle, learning_rate: 1e-2}}
search: {{num_trials: 2}}
final: {{num_beams: 2, max_new_tokens: 4}}
"""


@pytest.fixture
def file(tmp_path: Path, base_folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    data, path = tmp_path / "data.jsonl", tmp_path / "small.yaml"
    rows = [{"source": f"name : The Mill | food : {food}", "target": f"{food} food."} for food in ("Thai", "French")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(FILE.format(base=base_folders["gpt2"], data=data))
    monkeypatch.chdir(tmp_path)
    return path


def test_a_configuration_is_trained_and_decoded_as_the_command_says(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--arm", "prefix", "--set", "preseqlen=3", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small  prefix  preseqlen 3")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/3", "2/3", "3/3"]
    command = lines[-1].split()
    assert command[:2] == ["prefixray", "decode"]
    record = load_artifact(Path(command[2]))[1]
    assert record["config"]["method"]["preseqlen"] == 3
    assert (record["decoding"]["num_beams"], record["decoding"]["max_new_tokens"]) == (2, 4), "those of the file"
    assert decode.main(command[2:]) == 0
    assert "test, 2 sources" in capsys.readouterr().out


def test_another_task_or_base_is_trained_in_a_folder_of_its_own(
    file: Path, base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = file.with_name("other.yaml")
    other.write_text(file.read_text().replace(str(base_folders["gpt2"]), str(base_folders["llama"])))
    commands = [[str(file)], [str(file), "--set", "task.num_train=1"], [str(other)]]
    for command in commands:
        assert main([*command, "--arm", "prefix", "--threads", "1"]) == 0
        assert "step 1/3" in capsys.readouterr().out, "it begins at the start"
    assert len(list(Path("runs/small/train").iterdir())) == len(commands)


def test_data_that_has_changed_under_its_name_is_trained_on_from_the_start(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, arguments = file.with_name("data.jsonl"), [str(file), "--arm", "prefix", "--threads", "1"]
    assert main(arguments) == 0
    data.write_text(data.read_text().replace("Thai food.", "Noodles."))
    capsys.readouterr()
    assert main(arguments) == 0
    changed, folders = capsys.readouterr().out, [*Path("runs/small/train").iterdir()]
    assert "step 1/3" in changed and len(folders) == 2
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert "step 3/3" in again and "step 1/3" not in again, "the same command goes on"
    assert again.splitlines()[1] == changed.splitlines()[1]


def test_an_interrupted_run_goes_on_from_a_checkpoint_whose_step_is_due_for_a_report(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> str:
        raise KeyboardInterrupt

    arguments = [str(file), "--arm", "prefix", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)  # a checkpoint after the first report
        patch.setattr(train, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments)
    capsys.readouterr()
    assert train.main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("train/loss" in line and "dev/loss" in line for line in lines), "the first report is made again, whole"


def test_what_is_wrong_with_the_command_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--arm", "prefix", "--set", "preseqlenn=3"]) == 2
    assert "did you mean 'preseqlen'?" in capsys.readouterr().err
    assert main([str(file), "--arm", "prefx"]) == 2
    assert "prefx" in capsys.readouterr().err
