"""The `prefixray` command: what it hands over, what it refuses, and that asking for help loads nothing heavy."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefixray import sweep
from prefixray.cli import COMMANDS, main
from prefixray.system.exit_codes import INTERRUPTED, TERMINATED, UNREAD

HEAVY = ("torch", "ray", "optuna", "mlflow", "transformers")


def imported(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has after this code, which may exit."""
    after = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('loaded', *{HEAVY} & sys.modules.keys())"
    after = after.replace(f"{HEAVY}", f"set({HEAVY})")
    output = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True, check=True).stdout
    return set(output.splitlines()[-1].split()[1:])


def test_help_names_every_command_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert (
        "prefixray sweep sweeps/quickstart.yaml" in shown and "130  interrupted" in shown and "143  terminated" in shown
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"\npython -m prefixray.{name.replace(' ', '_')} " in shown and "usage:" in shown


def test_help_loads_nothing_heavy() -> None:
    calls = "; ".join(f"_try({[*name.split(), '--help']})" for name in COMMANDS)
    define = "exec('def _try(argv):\\n try: main(argv)\\n except SystemExit: pass')"
    assert imported(f"from prefixray.cli import main; {define}; main([]); {calls}") == set()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sweeep", "did you mean 'sweep'?"),
        ("cluster", "did you mean 'cluster check'?"),
        ("dashboard", f"the commands are {', '.join(COMMANDS)}"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err == f"prefixray: {name}: no such command ({hint})\n"


def test_arguments_go_to_the_command_and_its_exit_code_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "nothing"]) == 2
    assert "nothing: is no results folder" in capsys.readouterr().err
    (tmp_path / "sweep.yaml").write_text("name: x\nbas: y\n")
    assert main(["sweep", "sweep.yaml"]) == 2
    assert "no such key (did you mean 'base'?)" in capsys.readouterr().err


def test_the_package_is_a_command_too() -> None:
    ran = subprocess.run([sys.executable, "-m", "prefixray", "trian"], capture_output=True, text=True)
    assert ran.returncode == 2 and "did you mean 'train'?" in ran.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "QUICKSTART", "--set", "base=BASE"]])
def test_output_that_nobody_reads_on_ends_a_command_without_a_traceback(
    arguments: list[str], base_folders: Mapping[str, Path]
) -> None:
    places = {"QUICKSTART": Path(__file__).parents[1] / "sweeps" / "quickstart.yaml", "BASE": base_folders["llama"]}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    command = [sys.executable, "-m", "prefixray", *arguments]
    ours, theirs = os.pipe()
    os.close(ours)  # the reader has gone before the first line
    ran = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (ran.returncode, ran.stderr) == (UNREAD, "")


ENDS = {
    "return 0": (0, ""),
    "return 1": (1, ""),
    "raise KeyboardInterrupt": (INTERRUPTED, "\ninterrupted\n"),
    "raise BrokenPipeError": (1, "BrokenPipeError"),
    "open('/dev/full', 'w').write('x' * 99999)": (
        1,
        "No space left on device; make room or give access there, then run the same command again\n",
    ),
    "open('/dev/full/x')": (
        1,
        "/dev/full/x: Not a directory; make room or give access there, then run the same command again\n",
    ),
    "open('/nowhere')": (1, "FileNotFoundError"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_command_leaves_with_its_code_and_hides_no_defect(end: str) -> None:
    script = f"from prefixray.system.exit_codes import leave\ndef main():\n    {end}\nleave(main)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    code, said = ENDS[end]
    assert ran.returncode == code
    assert ran.stderr == said or (said.isidentifier() and said in ran.stderr), "another pipe's end is not hidden"


SIGNALLED = """
import os, signal
from prefixray.system.exit_codes import interruptible, leave
def main():
    with interruptible():
        try:
            os.kill(os.getpid(), signal.{first})
        except KeyboardInterrupt:
            {then}
            raise
leave(main)
"""


@pytest.mark.parametrize(("first", "code"), [("SIGINT", INTERRUPTED), ("SIGTERM", TERMINATED)])
def test_a_first_signal_lets_all_be_put_away_and_a_second_of_either_kind_ends_at_once(first: str, code: int) -> None:
    for then, ended in [
        ("pass", code),
        ("raise KeyboardInterrupt from None", code),  # as Ray's calls make one of their own of it
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.kill(os.getpid(), signal.SIGINT)", -2),
    ]:
        script = SIGNALLED.format(first=first, then=then)
        usual = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # ignored in the background
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, **usual)  # type: ignore[call-overload]
        assert ran.returncode == ended, ran.stderr
        assert ended < 0 or ran.stderr == "\ninterrupted\n"


@pytest.mark.parametrize(("entry", "where"), [("_run", "--address auto"), ("_run_there", "--cluster my.yaml")])
def test_the_command_to_go_on_goes_on_where_the_sweep_was_started(
    entry: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, entry, interrupted)
    monkeypatch.setattr(sweep, "load_sweep", lambda *given: None)
    overrides = ["--scale", "laptop", "--set", "search.num_trials=2"]
    assert sweep.main(["my sweep.yaml", *where.split(), *overrides]) == INTERRUPTED
    told = capsys.readouterr().err
    assert f"python -m prefixray.sweep 'my sweep.yaml' {where} --scale laptop --set search.num_trials=2\n" in told
