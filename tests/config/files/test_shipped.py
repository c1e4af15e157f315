"""The sweep files that ship with prefixray, as `prefixray examples` shows and copies them."""

from pathlib import Path

import pytest

from prefixray.cli import main
from prefixray.config.files.shipped import first_sentence, shipped_sweeps

SWEEPS = Path(__file__).parents[3] / "sweeps"


def test_every_sweep_file_of_the_checkout_ships_and_says_in_a_sentence_what_it_is_for() -> None:
    shipped = shipped_sweeps()
    names = {file.relative_to(SWEEPS).with_suffix("").as_posix() for file in SWEEPS.rglob("*.yaml")}
    assert set(shipped) == names >= {"quickstart", "paper/e2e"}
    sentences = [first_sentence(file) for file in shipped.values()]
    assert all(20 < len(sentence) < 400 for sentence in sentences) and len(set(sentences)) == len(names)


def test_examples_are_listed_and_copied_and_never_overwrite_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["examples"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] != " "] == list(shipped_sweeps())
    assert main(["examples", "quickstart", "paper/e2e"]) == 0
    copy = Path("sweeps/quickstart.yaml")
    assert copy.read_text() == (SWEEPS / "quickstart.yaml").read_text() and Path("sweeps/paper/e2e.yaml").is_file()
    assert capsys.readouterr().out.splitlines()[0] == f"{copy}   # prefixray plan {copy}"
    copy.write_text("mine")
    assert main(["examples", "quickstart", "own_data"]) == 2
    assert capsys.readouterr().err.startswith(f"{copy}: exists; --force overwrites it")
    assert copy.read_text() == "mine" and not Path("sweeps/own_data.yaml").exists()
    assert main(["examples", "quickstart", "--force"]) == 0 and copy.read_text() != "mine"
    assert main(["examples", "quickstart", "--out", "mine"]) == 0 and Path("mine/quickstart.yaml").is_file()
    assert main(["examples", "document", "--out", "mine"]) == 0 and Path("mine/document.md").is_file()
    assert "path: mine/document.md" in Path("mine/document.yaml").read_text(), "it names its document where that is"
    Path("a_file").touch()
    assert main(["examples", "own_data", "--out", "a_file"]) == 2
    assert capsys.readouterr().err.startswith("a_file/own_data.yaml: cannot be written: a_file: File exists; ")
    assert main(["examples", "quikstart"]) == 2
    assert "quikstart: no such sweep file (did you mean 'quickstart'?)" in capsys.readouterr().err
